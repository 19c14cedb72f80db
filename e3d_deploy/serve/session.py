"""Session of one viewer: a thread that reads a source, forecasts and sends pictures."""

import queue
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

from e3d_deploy.data.live.feed import Arrival, Ended
from e3d_deploy.data.rate import other_interval
from e3d_deploy.errors import ClipError, E3DError, ResourceLimit, ShapeError, SourceLost
from e3d_deploy.frames import to_pictures
from e3d_deploy.live.follower import FollowedPicture, Follower
from e3d_deploy.runtime import Predictor, SlotStream, Streams
from e3d_deploy.serve import protocol
from e3d_deploy.serve.error_responses import problem_of
from e3d_deploy.serve.metrics import Metrics
from e3d_deploy.serve.outbox import Outbox
from e3d_deploy.serve.protocol import Refused, SetHorizon, ViewerCommand, picture_message, text_message
from e3d_deploy.serve.session_statistics import SessionStatistics
from e3d_deploy.serve.settings import ServerSettings
from e3d_deploy.serve.source import ChosenSource, Source

POLL_S = 0.05
"""Interval at which a session that waits for a picture checks for commands of its viewer (s)."""


class Session:
    """Reads one source and forecasts it for one viewer, in a thread of its own.

    Args:
        predictor: model.
        streams: scheduler in which the session opens its stream.
        settings: settings of the server.
        metrics: metrics of the server.
        outbox: queue of the messages to the viewer.
        chosen: source that the viewer chose.
        horizon: initial horizon (frames); the viewer may change it.
        on_end: called in the thread of the session when the session has ended.
    """

    def __init__(
        self,
        predictor: Predictor,
        streams: Streams,
        settings: ServerSettings,
        metrics: Metrics,
        outbox: Outbox,
        *,
        chosen: ChosenSource,
        horizon: int,
        on_end: Callable[["Session"], None],
    ) -> None:
        self.id = secrets.token_hex(8)
        self.outbox, self.chosen = outbox, chosen
        self._predictor, self._streams, self._settings, self._metrics = predictor, streams, settings, metrics
        self._horizon, self._on_end = horizon, on_end
        self._commands: queue.SimpleQueue[SetHorizon | ViewerCommand] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._active_s = time.monotonic()
        self._paused = self._skipped = False
        self._stream: SlotStream | None = None
        self._statistics = SessionStatistics(metrics, settings.horizon)
        self._thread = threading.Thread(target=self._run, name=f"e3d session {self.id}", daemon=True)

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: the system cannot create another thread.
        """
        self._thread.start()

    def add_command(self, message: SetHorizon | ViewerCommand) -> None:
        """Queue a command of the viewer, which also restarts the idle timeout."""
        self._active_s = time.monotonic()
        self._commands.put(message)

    def stop(self, code: int = protocol.END, *messages: str) -> None:
        """Notify the viewer, and end the session. Closing the stream ends a running forecast after the current step.

        Args:
            code: close code of the WebSocket.
            messages: text messages to send before the connection is closed.
        """
        self.outbox.close(code, *messages)
        self._stopping.set()
        if self._stream is not None:
            self._stream.close()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the thread has ended; return False if it still runs after the timeout."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._follow()
        except Ended:
            self.stop(protocol.END, text_message("end", reason="the source has ended"))
        except Refused as refusal:
            self._refuse(refusal)
        except Exception as error:
            # The runtime stores the error of a failed forecast. The stack frames in the traceback refer to the source
            # and would keep the decoder of the source alive.
            traceback.clear_frames(error.__traceback__)
            if not self._stopping.is_set():  # after `stop`, the error only means that the stream was closed
                self._refuse(refusal_of(error, self.chosen))
        finally:
            self.outbox.close(protocol.END)
            self._on_end(self)

    def _follow(self) -> None:
        """Open the stream and the source, and play the source to its end."""
        with self._streams.open() as self._stream, closing(self.chosen.open()) as source:
            renewal = self._predictor.renewal(self._settings.renewal)
            config, most = self._predictor.config, self._settings.horizon
            follower = Follower(self._stream, config, horizon=most, renewal=renewal)
            follower.horizon = self._horizon
            self._metrics.opened.labels(self.chosen.kind).inc()
            self._send_ready(source)
            try:
                self._play(source, follower)
            finally:
                self._statistics.count_drops(source.dropped, self.outbox.dropped)

    def _refuse(self, refusal: Refused) -> None:
        self._metrics.errors.labels(refusal.code).inc()
        self.stop(refusal.close_code, text_message("error", code=refusal.code, message=refusal.message))

    def _send_ready(self, source: Source) -> None:
        config, rate = self._predictor.config, source.frames_per_second
        other = other_interval([] if rate is None else [rate], self._predictor.card.window)
        self.outbox.put(
            text_message(
                "ready",
                session=self.id,
                image_size=list(config.image_size),
                channels=config.channels,
                horizon=self._horizon,
                frames_per_second=rate,
                backend=self._predictor.backend.name,
                precision=self._settings.precision,
                remark=None if other is None else f"this source {other}",
            )
        )

    def _play(self, source: Source, follower: Follower) -> None:
        while not self._stopping.is_set():
            waits = self._paused and not source.is_live
            for command in self._queued_commands(POLL_S if waits else 0):
                self._carry_out(command, follower, source)
            self._check_idle()
            if self._statistics.is_due:
                self._statistics.count_drops(source.dropped, self.outbox.dropped)
                self.outbox.put(self._statistics.message(self._horizon))
            if self._paused and not source.is_live:
                continue
            arrival = source.take(POLL_S)
            if arrival is None or self._paused:
                continue
            # A recording waits for the model, so its latency starts when the picture is taken from the queue.
            arrived_s = arrival.arrived_s if source.is_live else time.perf_counter()
            followed = follower.follow(arrival.picture, begins_video=arrival.begins_video or self._skipped)
            self._active_s, self._skipped = time.monotonic(), False
            self._show(followed, arrival, source, time.perf_counter() - arrived_s)

    def _queued_commands(self, wait_s: float) -> Iterator[SetHorizon | ViewerCommand]:
        """Yield the queued commands; wait up to `wait_s` for the first command."""
        with suppress(queue.Empty):
            yield self._commands.get(timeout=wait_s)
            while True:
                yield self._commands.get_nowait()

    def _carry_out(self, command: SetHorizon | ViewerCommand, follower: Follower, source: Source) -> None:
        """Carry out a command of the viewer."""
        if isinstance(command, SetHorizon):
            self._horizon = follower.horizon = min(command.value, self._settings.horizon)
        elif command.type == "reset":
            follower.reset()
            self.outbox.put(text_message("was_reset"))
        elif command.type == "close":
            self.stop(protocol.END, text_message("end", reason="the viewer closed the session"))
        else:
            self._paused = command.type == "pause"
            # A live source continues during a pause, so the next picture does not continue the last one.
            self._skipped |= self._paused and source.is_live
            self.outbox.put(text_message("paused" if self._paused else "resumed"))

    def _check_idle(self) -> None:
        if time.monotonic() - self._active_s > self._settings.idle_timeout_s:
            raise Refused(protocol.IDLE, "idle", f"no picture and no message for {self._settings.idle_timeout_s:g} s")

    def _show(self, followed: FollowedPicture, arrival: Arrival, source: Source, latency_s: float) -> None:
        """Send a picture, the forecast after it and, if there is one, the earlier forecast of the picture."""
        ahead = self._horizon - 1
        known = len(followed.errors) > ahead
        pictures = [followed.picture, to_pictures(followed.forecast[ahead])]
        if known:
            pictures.append(to_pictures(followed.expected[ahead]))
        header = {
            "index": arrival.index,
            "time_s": arrival.time_s,
            "age": followed.age,
            "cut": followed.cut,
            "horizon": self._horizon,
            "pictures": ["now", "forecast", "expected"][: len(pictures)],
            "error": followed.errors[ahead] if known else None,
            "copy_error": followed.copy_errors[ahead] if known else None,
            "novelty": followed.novelty[ahead] if known else None,
            "latency_ms": 1000 * latency_s,
            "dropped": source.dropped + self.outbox.dropped,
        }
        self.outbox.put(picture_message(header, pictures))
        self._statistics.add(followed, latency_s)


def refusal_of(error: Exception, chosen: ChosenSource) -> Refused:
    """Return the refusal that describes an exception of a session to its viewer."""
    problem = problem_of(error, chosen.names)
    if isinstance(error, ResourceLimit):
        return Refused(protocol.TOO_MANY, "full", problem.message)
    if isinstance(error, SourceLost) and not chosen.is_file:
        return Refused(protocol.LOST, "source_lost", problem.message)
    if isinstance(error, SourceLost | ClipError | ShapeError):
        return Refused(protocol.UNREADABLE, "unreadable", problem.message)
    known = isinstance(error, E3DError)
    return Refused(protocol.FAILED, "internal", problem.message if known else "the session failed")
