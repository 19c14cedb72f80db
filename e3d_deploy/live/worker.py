"""One source of a live stream: its pictures through a follower into sinks, in a thread of its own."""

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from queue import SimpleQueue

import numpy as np

from e3d_deploy.config import ModelConfig
from e3d_deploy.data.levels import Range
from e3d_deploy.data.live.feed import Arrival, Ended, Feed
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import E3DError
from e3d_deploy.live.counts import Counts
from e3d_deploy.live.follower import Follower
from e3d_deploy.live.observation import Observation
from e3d_deploy.live.sinks import Put
from e3d_deploy.runtime.streams.streams import SlotStream

WAIT_S = 0.1
"""Longest time after which a worker that waits for a picture sees that it shall end (s)."""


def needed_bytes(config: ModelConfig, horizon: int) -> int:
    """Return the memory that the forecasts of one source take until all their truth has come (bytes)."""
    height, width = config.image_size
    return horizon**2 * config.channels * height * width * np.dtype(np.float32).itemsize


class Abandoned(Exception):
    """The worker shall end at once, and keep nothing."""


class SourceWorker:
    """Follows one source until it ends, breaks off, or the worker is stopped.

    Args:
        label: name of the source, not that of another one.
        feed: its pictures; closed at the end.
        slot: its stream; closed at the end.
        follower: follower of that stream.
        sinks: opened with the first picture, and closed at the end, whole.
    """

    def __init__(
        self,
        label: str,
        feed: Feed,
        slot: SlotStream,
        follower: Follower,
        sinks: Sequence[AbstractContextManager[Put]],
    ) -> None:
        self.label, self.feed, self.slot, self.follower = label, feed, slot, follower
        self.counts, self._range = Counts(follower.horizon), Range()
        self.error: Exception | None = None
        """Error that ended it; BrokenPipeError where the reader of an output had enough."""
        self.has_ended = False
        self.is_kept = False
        """True once its outputs are whole."""
        self._sinks = sinks
        self._stopping, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow {label}", daemon=True)
        self._ended: SimpleQueue[SourceWorker] = SimpleQueue()

    def start(self, ended: "SimpleQueue[SourceWorker]") -> None:
        """Start; the worker puts itself into a queue when it has ended."""
        self._ended = ended
        self._thread.start()

    def stop(self) -> None:
        """End after the picture at hand, with whole outputs."""
        self._stopping.set()

    def abandon(self) -> None:
        """End at once, and leave no output."""
        self._abandoned.set()
        self._stopping.set()
        self.slot.close()

    def _run(self) -> None:
        self.counts.begin()
        try:
            self._follow()
        except Abandoned:
            pass
        except Exception as error:
            self.error = self.error or error
        finally:
            self.counts.end()
            self._range.say(self.label, Remarks())
            self.feed.close()
            self.slot.close()
            self.has_ended = True
            self._ended.put(self)

    def _follow(self) -> None:
        arrival = self._take()
        if arrival is None:
            return
        with ExitStack() as stack:
            puts = [stack.enter_context(sink) for sink in self._sinks]
            while arrival is not None and self._see(arrival, puts):
                arrival = self._take()
            if self._abandoned.is_set():
                raise Abandoned
        self.is_kept = True

    def _take(self) -> Arrival | None:
        """Return the next picture; None at the end, whatever it is."""
        while not self._stopping.is_set():
            try:
                arrival = self.feed.take(WAIT_S)
            except Ended:
                return None
            except E3DError as error:
                self.error = error
                return None
            if arrival is not None:
                return arrival
        return None

    def _see(self, arrival: Arrival, puts: Sequence[Put]) -> bool:
        """Follow one picture; return False where an error ends the worker, so that its outputs are closed whole."""
        try:
            if not self._range.is_wide:
                self._range.add(arrival.picture)
            judged = self.follower.see(arrival.picture, begins=arrival.begins)
            latency_ms = 1000 * (time.perf_counter() - arrival.came_s)
            observation = Observation(
                source=self.label,
                arrival=arrival,
                judged=judged,
                latency_ms=latency_ms,
                dropped=self.feed.dropped,
            )
            self.counts.add(observation)
            for put in puts:
                put(observation)
        except Exception as error:
            self.error = error
            return False
        return True
