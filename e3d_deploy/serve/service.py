"""State that the endpoints of one server share: the scheduler, the sessions and the uploaded clips."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from e3d_deploy.data.form import Form
from e3d_deploy.data.live.address import parse_address
from e3d_deploy.data.live.feed import Feed, FeedOptions
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.runtime import Predictor
from e3d_deploy.serve import protocol
from e3d_deploy.serve.clips import Clips
from e3d_deploy.serve.error_responses import Problem
from e3d_deploy.serve.metrics import Metrics
from e3d_deploy.serve.outbox import Outbox
from e3d_deploy.serve.protocol import Open, Refused, text_message
from e3d_deploy.serve.session import Session
from e3d_deploy.serve.settings import ServerSettings
from e3d_deploy.serve.source import ChosenSource
from e3d_deploy.serve.webcam import Webcam

T = TypeVar("T")

log = logging.getLogger(__name__)

WORKERS = 2
"""Number of threads that store uploads and answer requests to /v1/predict."""
MAX_REQUESTS = 8
"""Maximum number of concurrent requests to /v1/clips and /v1/predict; further requests get status 429."""
CONNECTIONS, MIN_CONNECTIONS = 4, 64
"""Maximum number of connections per allowed session, and lower limit of the resulting maximum."""
DRAIN_S = 10.0
"""Maximum time for running predictions and sessions to end when the server stops (s)."""


class Service:
    """State that the endpoints of one server share.

    Raises:
        ConfigError: the renewal is unknown, or a limit is invalid.
        ResourceLimit: the memory limit is too small for one stream.
    """

    def __init__(self, predictor: Predictor, settings: ServerSettings) -> None:
        self.predictor, self.settings = predictor, settings
        self.form = Form.of(predictor.config, predictor.card)
        self.metrics = Metrics(name=settings.name, backend=predictor.backend.name, precision=settings.precision)
        self.streams = predictor.streams(
            renewal=settings.renewal,
            max_streams=settings.max_sessions,
            memory_limit_bytes=settings.memory_limit_bytes,
        )
        self.clips = Clips(most_bytes=MAX_REQUESTS * settings.max_upload_bytes, lifetime_s=settings.idle_timeout_s)
        self.metrics.clips.set_function(lambda: len(self.clips))
        self.picture_bytes = math.prod(self.form.shape)
        """Size of a webcam picture (bytes)."""
        self.message_bytes = max(self.picture_bytes, 4 * protocol.MAX_TEXT)
        """Maximum size of a message from a viewer (bytes). A character of a text message has at most four bytes."""
        self.stopping = False
        """True while the server refuses new work, from the first call to `stop_sessions`."""
        self.closed = False
        """True after `close`, which aborts running work."""
        self._drained_s: float | None = None
        self._offers = {offer.id: offer for offer in settings.offers}
        self._sessions: dict[str, Session] = {}
        self.max_connections = max(MIN_CONNECTIONS, CONNECTIONS * settings.max_sessions)
        """Maximum number of HTTP connections, and of WebSockets."""
        self.connections = 0
        """Number of open WebSockets; changed only on the event loop."""
        self._lock = threading.Lock()
        self._requests = 0
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="e3d predict")
        self.metrics.sessions.set_function(lambda: len(self._sessions))

    def open_session(self, message: Open, outbox: Outbox) -> tuple[Session, Webcam | None]:
        """Start a session. Return the session and, if its source is the webcam, the queue for its pictures (else None).

        Args:
            message: first message of the viewer.
            outbox: queue of the messages to the viewer.

        Raises:
            Refused: the source is not allowed, too many sessions are open, or the server is shutting down.
        """
        webcam = Webcam() if message.source == "webcam" else None
        session = Session(
            self.predictor,
            self.streams,
            self.settings,
            self.metrics,
            outbox,
            chosen=self._chosen(message.source) if webcam is None else ChosenSource(open=lambda: webcam, kind="webcam"),
            horizon=min(message.horizon, self.settings.horizon),
            on_end=self._forget,
        )
        with self._lock:
            if self.stopping:
                raise Refused(protocol.STOPS, "stopping", "the server is shutting down")
            if len(self._sessions) >= self.settings.max_sessions:
                raise Refused(protocol.TOO_MANY, "full", "all sessions of the server are in use")
            self._sessions[session.id] = session
        try:
            session.start()
        except RuntimeError as error:
            self._forget(session)
            raise Refused(protocol.TOO_MANY, "full", "the system cannot start a thread for another session") from error
        return session, webcam

    def _chosen(self, source: str) -> ChosenSource:
        """Return the offered source or the uploaded clip that the message `open` names.

        Raises:
            Refused: there is no such source or clip.
        """
        kind, _, name = source.partition(":")
        if kind == "offer" and (offer := self._offers.get(name)) is not None:
            address, names, clip_id = offer.address, {offer.address.text: offer.name}, None
        elif kind == "clip" and (clip := self.clips.find(name)) is not None:
            address, names, clip_id = parse_address(str(clip.path)), {str(clip.path): clip.name}, clip.id
        else:
            raise Refused(protocol.FORBIDDEN, "source", "no such source; GET /v1/model lists the sources")
        options = FeedOptions(queue_length=1, realtime=True)
        return ChosenSource(
            open=lambda: Feed(
                address, self.form, options, remarks=Remarks(silent=True), notify=lambda text: log.warning("%s", text)
            ),
            kind=kind,
            names=names,
            is_file=address.kind == "file",
            clip=clip_id,
        )

    def _forget(self, session: Session) -> None:
        with self._lock:
            self._sessions.pop(session.id, None)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count a request to /v1/clips or /v1/predict as running while the block runs.

        Raises:
            Problem: `MAX_REQUESTS` requests are running, or the server is shutting down.
        """
        with self._lock:
            if self.stopping:
                raise Problem(503, "stopping", "the server is shutting down", retry=True)
            if self._requests >= MAX_REQUESTS:
                raise Problem(429, "busy", f"{self._requests} requests are in progress; retry later", retry=True)
            self._requests += 1
        try:
            yield
        finally:
            with self._lock:
                self._requests -= 1

    async def compute(self, work: Callable[[], T]) -> T:
        """Run blocking work in the thread pool, and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def expire(self) -> None:
        """Delete expired clips periodically, until cancelled."""
        while True:
            await asyncio.sleep(min(10.0, self.settings.idle_timeout_s / 4))
            await asyncio.to_thread(self.expire_clips)

    def expire_clips(self) -> None:
        """Renew the lifetime of the clips that sessions play, and delete expired clips."""
        with self._lock:
            playing = [session.chosen.clip for session in self._sessions.values() if session.chosen.clip is not None]
        for clip in playing:
            self.clips.find(clip)
        self.clips.expire()

    def stop_sessions(self) -> None:
        """Refuse new work, end all sessions, and notify their viewers."""
        with self._lock:
            self.stopping = True
            sessions = list(self._sessions.values())
        for session in sessions:
            session.stop(protocol.STOPS, text_message("end", reason="the server is shutting down"))

    async def drain(self) -> None:
        """End all sessions, and wait until all requests, sessions and WebSockets have ended.

        All calls return at most `DRAIN_S` after the first call began.
        """
        self.stop_sessions()
        self._drained_s = self._drained_s or time.monotonic() + DRAIN_S
        while (self._requests or self._sessions or self.connections) and time.monotonic() < self._drained_s:
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """Close the scheduler, the thread pool and the clips. Work that still runs fails."""
        self.stop_sessions()
        self.closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.streams.close()
        self.clips.close()
