"""Streams of a server's sequences; knows nothing of Triton."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from e3d_deploy.errors import ConfigError, E3DError, StreamError
from e3d_deploy.runtime import Predictor, SlotStream
from e3d_deploy.triton.contract import MAX_HORIZON
from e3d_deploy.triton.pending import RESTART, Pending, answers_of, failure_of
from e3d_deploy.triton.requests import Answer, Counts, Request

GRACE = 1.25
"""Idle time of a stream, as a multiple of the server's; the server then refuses a late request first."""
QUEUED_BATCHES = 8
"""Number of batches for which a request may have waited in the server's queue; that time does not count as idle."""
REPORT_S = 1.0
"""Maximum time between two looks for idle streams, and between two reports (s)."""


@dataclass(slots=True)
class Entry:
    """Stream of a sequence."""

    stream: SlotStream
    used: float
    """Time of the end of the last request (s, of `time.monotonic`)."""


class Table:
    """Streams by the id of their sequence. One thread calls `answer`; another thread closes idle streams.

    Args:
        renewal: renewal of the streams; None uses the default of the bundle.
        max_streams: maximum number of sequences that the server keeps alive. One more takes the place of the stream
            that was idle for the longest time, because the server has given up that sequence.
        idle_s: time after which the server gives up a sequence without requests (s).
        report: function that the other thread calls about once per second.

    Raises:
        ConfigError, ResourceLimit: as `Predictor.streams`.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        renewal: str | None = None,
        max_streams: int,
        idle_s: float,
        report: Callable[[Counts], None] = lambda _: None,
    ) -> None:
        # Streams that are replaced or end with the current batch are open until it is answered.
        self._streams = predictor.streams(
            renewal=renewal, max_streams=2 * max_streams, max_wait_ms=0, on_bad_output="hold"
        )
        self._max_streams, self._idle_s, self._report = max_streams, idle_s, report
        self._entries: dict[int | str, Entry] = {}
        self._expired = 0
        self._batches_s = deque[float](maxlen=QUEUED_BATCHES)
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._close_idle_streams, name="e3d-idle-streams", daemon=True)
        self._watch.start()

    @property
    def counts(self) -> Counts:
        """Counts of this moment."""
        return Counts(len(self._entries), self._streams.stats()["frames"], self._expired)

    def answer(self, requests: Sequence[Request]) -> list[Answer | E3DError]:
        """Step the streams of all requests together, and return the results or the error of each request.

        Raises:
            StreamError: an internal error has ended the streams; the model must be loaded again.
        """
        with self._lock:
            began = time.monotonic()
            left: list[SlotStream] = []
            with self._streams.together():
                begun = [self._begin(request, left) for request in requests]
            answers = self._loop.run_until_complete(answers_of(begun))
            for pending, answer in zip(begun, answers, strict=True):
                if isinstance(pending, Pending):
                    self._settle(pending, answer)
            for stream in left:
                stream.close()
            self._batches_s.append(time.monotonic() - began)
            return answers

    def _begin(self, request: Request, left: list[SlotStream]) -> Pending | E3DError:
        """Queue a picture and the results that its request asks for.

        Args:
            left: receives the streams to close after the batch.
        """
        try:
            stream = self._stream(request, left)
            # Checked first, so that the picture of a refused request is not seen.
            if request.horizon is not None and not 1 <= request.horizon <= MAX_HORIZON:
                raise ConfigError(
                    f"horizon: got {request.horizon}, expected 1 to {MAX_HORIZON}; change it, or request only the "
                    "output prediction"
                )
            seen = stream.pushed
            stream.push(request.picture)
            return Pending(
                request,
                stream,
                seen,
                stream.forecast_async(1) if request.prediction or request.horizon is None else None,
                None if request.horizon is None else stream.predict_async(request.horizon),
            )
        except E3DError as error:
            return error
        finally:
            if request.end and (entry := self._entries.pop(request.sequence, None)):
                left.append(entry.stream)

    def _stream(self, request: Request, left: list[SlotStream]) -> SlotStream:
        entry = self._entries.get(request.sequence)
        if request.start:
            if entry is not None:
                left.append(self._entries.pop(request.sequence).stream)
            elif len(self._entries) >= self._max_streams:
                self._drop_longest_idle()
            entry = self._entries[request.sequence] = Entry(self._streams.open(), time.monotonic())
        if entry is None:
            raise StreamError(
                f"sequence {request.sequence}: has no state, because it was idle, a step failed, or the model was "
                f"loaded again; {RESTART}"
            )
        entry.used = time.monotonic()
        return entry.stream

    def _drop_longest_idle(self) -> None:
        sequence = min(self._entries, key=lambda one: self._entries[one].used)
        self._entries.pop(sequence).stream.close()
        self._expired += 1

    def _settle(self, pending: Pending, answer: Answer | E3DError) -> None:
        """Note the end of a request, and close a stream whose step failed, because its state is of no more use."""
        sequence = pending.request.sequence
        entry = self._entries.get(sequence)
        if entry is not None and entry.stream is pending.stream:
            entry.used = time.monotonic()
            if isinstance(answer, E3DError) and failure_of(pending.stream) is not None:
                self._entries.pop(sequence).stream.close()

    def _close_idle_streams(self) -> None:
        while not self._ended.wait(min(REPORT_S, self._idle_s / 4)):
            with self._lock:
                oldest = time.monotonic() - GRACE * self._idle_s - sum(self._batches_s)
                for sequence in [one for one, entry in self._entries.items() if entry.used < oldest]:
                    self._entries.pop(sequence).stream.close()
                    self._expired += 1
            self._report(self.counts)

    def close(self) -> None:
        """Close all streams and end the thread."""
        self._ended.set()
        self._watch.join()
        self._streams.close()
        self._loop.close()
