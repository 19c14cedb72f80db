"""State of one server: the scheduler that all sessions share, the sessions, and the uploaded clips."""

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
from e3d_deploy.serve.answers import Problem
from e3d_deploy.serve.clips import Clips
from e3d_deploy.serve.metrics import Meters
from e3d_deploy.serve.outbox import Outbox
from e3d_deploy.serve.protocol import Open, Refused, text_message
from e3d_deploy.serve.session import Session
from e3d_deploy.serve.settings import Settings
from e3d_deploy.serve.source import Chosen
from e3d_deploy.serve.webcam import Webcam

T = TypeVar("T")

log = logging.getLogger(__name__)

WORKERS = 2
"""Predictions that are computed at a time."""
MOST_REQUESTS = 8
"""Uploads and predictions that are on their way at a time; others are asked to come again."""
CONNECTIONS, LEAST_CONNECTIONS = 4, 64
"""Connections that are taken for each session that may be open, and at least."""
DRAIN_S = 10.0
"""Time that running predictions and sessions have to end when the server stops (s)."""


class Service:
    """Shared state of the endpoints of one server."""

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self.predictor, self.settings = predictor, settings
        self.form = Form.of(predictor.config, predictor.card)
        self.meters = Meters(name=settings.name, backend=predictor.backend.name, precision=settings.precision)
        self.streams = predictor.streams(
            renewal=settings.renewal,
            max_streams=settings.max_sessions,
            memory_limit_bytes=settings.memory_limit_bytes,
        )
        self.clips = Clips(most_bytes=MOST_REQUESTS * settings.max_upload_bytes, lifetime_s=settings.idle_timeout_s)
        self.meters.clips.set_function(lambda: len(self.clips))
        self.picture_bytes = math.prod(self.form.shape)
        """Size of a picture of a webcam."""
        self.message_bytes = max(self.picture_bytes, 4 * protocol.MOST_TEXT)
        """Largest message of a viewer (bytes); a character has at most four."""
        self.stopping = False
        """The server takes nothing new."""
        self.closed = False
        """Nothing is finished any more."""
        self._drained_s: float | None = None
        self._offers = {offer.id: offer for offer in settings.offers}
        self._sessions: dict[str, Session] = {}
        self.most_connections = max(LEAST_CONNECTIONS, CONNECTIONS * settings.max_sessions)
        """Connections of any kind that are taken at a time."""
        self.connections = 0
        """WebSockets that are open, counted on the event loop."""
        self._lock = threading.Lock()
        self._requests = 0
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="e3d predict")
        self.meters.sessions.set_function(lambda: len(self._sessions))

    def open_session(self, message: Open, outbox: Outbox) -> tuple[Session, Webcam | None]:
        """Start a session, and return it with the queue for the viewer's pictures if it takes them.

        Raises:
            Refused: the source is not allowed, or too many sessions are open.
        """
        webcam = Webcam() if message.source == "webcam" else None
        session = Session(
            self.predictor,
            self.streams,
            self.settings,
            self.meters,
            outbox,
            chosen=self._chosen(message.source) if webcam is None else Chosen(open=lambda: webcam, kind="webcam"),
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
            raise Refused(protocol.TOO_MANY, "full", "the system has no thread for one more session") from error
        return session, webcam

    def _chosen(self, source: str) -> Chosen:
        """Return an offered source or an uploaded clip by its name.

        Raises:
            Refused: there is no such source.
        """
        kind, _, name = source.partition(":")
        if kind == "offer" and (offer := self._offers.get(name)) is not None:
            address, names, clip_id = offer.address, {offer.address.text: offer.name}, None
        elif kind == "clip" and (clip := self.clips.find(name)) is not None:
            address, names, clip_id = parse_address(str(clip.path)), {str(clip.path): clip.name}, clip.id
        else:
            raise Refused(protocol.FORBIDDEN, "source", "no such source; ask /v1/model for those there are")
        options = FeedOptions(queue_length=1, realtime=True)
        return Chosen(
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
        """Count an upload or prediction while it is on its way.

        Raises:
            Problem: too many are, or the server is shutting down.
        """
        with self._lock:
            if self.stopping:
                raise Problem(503, "stopping", "the server is shutting down", retry=True)
            if self._requests >= MOST_REQUESTS:
                raise Problem(429, "busy", f"{self._requests} requests are on their way; ask again later", retry=True)
            self._requests += 1
        try:
            yield
        finally:
            with self._lock:
                self._requests -= 1

    async def compute(self, work: Callable[[], T]) -> T:
        """Run blocking work in the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def expire(self) -> None:
        """Delete clips that nobody uses any more, until cancelled."""
        while True:
            await asyncio.sleep(min(10.0, self.settings.idle_timeout_s / 4))
            await asyncio.to_thread(self.expire_clips)

    def expire_clips(self) -> None:
        """Delete the clips that no session has played for a while."""
        with self._lock:
            playing = [session.chosen.clip for session in self._sessions.values() if session.chosen.clip is not None]
        for clip in playing:
            self.clips.find(clip)
        self.clips.expire()

    def stop_sessions(self) -> None:
        """Take nothing new, and end all sessions with a word to their viewers."""
        with self._lock:
            self.stopping = True
            sessions = list(self._sessions.values())
        for session in sessions:
            session.stop(protocol.STOPS, text_message("end", reason="the server is shutting down"))

    async def drain(self) -> None:
        """End all sessions, and wait for what runs and until their viewers know, `DRAIN_S` at most in all calls."""
        self.stop_sessions()
        self._drained_s = self._drained_s or time.monotonic() + DRAIN_S
        while (self._requests or self._sessions or self.connections) and time.monotonic() < self._drained_s:
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """Free the scheduler, the pool and the clips; what still runs fails."""
        self.stop_sessions()
        self.closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.streams.close()
        self.clips.close()
