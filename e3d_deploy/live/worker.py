"""Thread of one source of `e3d stream`, in which pictures pass through a follower to the outputs."""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from queue import SimpleQueue

import numpy as np

from e3d_deploy.config import ModelConfig
from e3d_deploy.data.levels import Range
from e3d_deploy.data.live.feed import Arrival, Ended, Feed
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import E3DError
from e3d_deploy.live.follower import Follower
from e3d_deploy.live.observation import observe
from e3d_deploy.live.sinks import Put
from e3d_deploy.live.statistics import SourceStatistics
from e3d_deploy.runtime.streams.streams import SlotStream

WAIT_S = 0.1
"""Interval at which a worker that waits for a picture checks whether to stop (s)."""


def needed_bytes(config: ModelConfig, horizon: int) -> int:
    """Return the maximum memory of the forecasts that one source keeps until their true pictures arrive (bytes)."""
    height, width = config.image_size
    return horizon**2 * config.channels * height * width * np.dtype(np.float32).itemsize


class Abandoned(Exception):
    """Raised in an abandoned worker, so that the context managers of its outputs discard incomplete files."""


class SourceWorker:
    """Follows one source in a thread of its own: forecasts after each picture, and passes the results to the outputs.

    The thread ends when the source ends or fails, or when the worker is stopped.

    Args:
        label: unique name of the source.
        feed: pictures of the source; closed at the end.
        slot: stream of the source; closed at the end.
        follower: follower of the stream.
        sinks: outputs; opened before the first picture, and completed and closed at the end.
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
        self.statistics, self._range = SourceStatistics(follower.horizon), Range()
        self.error: Exception | None = None
        """Error that ended the worker, if any; BrokenPipeError if the reader of an output closed the pipe."""
        self.has_ended = False
        self.is_complete = False
        """True after all outputs were completed and closed."""
        self._sinks = sinks
        self._stopping, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow {label}", daemon=True)
        self._ended: SimpleQueue[SourceWorker] = SimpleQueue()

    def start(self, ended: "SimpleQueue[SourceWorker]") -> None:
        """Start the thread.

        Args:
            ended: queue that the worker puts itself into when it has ended.
        """
        self._ended = ended
        self._thread.start()

    def stop(self) -> None:
        """Make the worker end after the current picture, and complete its outputs."""
        self._stopping.set()

    def abandon(self) -> None:
        """Make the worker end as soon as possible, and discard its outputs."""
        self._abandoned.set()
        self._stopping.set()
        self.slot.close()

    def _run(self) -> None:
        self.statistics.begin()
        try:
            self._follow()
        except Abandoned:
            pass
        except Exception as error:
            self.error = self.error or error
        finally:
            self.statistics.end()
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
            while arrival is not None and self._follow_picture(arrival, puts):
                arrival = self._take()
            if self._abandoned.is_set():
                raise Abandoned
        self.is_complete = True

    def _take(self) -> Arrival | None:
        """Return the next picture; None if the source ended or failed, or the worker was stopped."""
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

    def _follow_picture(self, arrival: Arrival, puts: Sequence[Put]) -> bool:
        """Follow one picture, and return True; after an error, store the error and return False.

        The error is not raised, so that the outputs with the earlier pictures are completed.
        """
        try:
            if not self._range.is_wide:
                self._range.add(arrival.picture)
            observation = observe(self.follower, arrival, source=self.label, dropped=self.feed.dropped)
            self.statistics.add(observation)
            for put in puts:
                put(observation)
        except Exception as error:
            self.error = error
            return False
        return True
