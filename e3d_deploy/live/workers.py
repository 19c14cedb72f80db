"""Run the workers of several sources at the same time."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from queue import Empty, SimpleQueue
from typing import Self

from e3d_deploy.data.live.feed import Feed
from e3d_deploy.live.follower import Follower
from e3d_deploy.live.sinks import Output, Put
from e3d_deploy.live.worker import SourceWorker
from e3d_deploy.runtime.predictor import Predictor
from e3d_deploy.runtime.streams.streams import Streams

TICK_S = 0.25
"""Interval at which `SourceWorkers.ticks` yields (s)."""
ABANDON_S = 2.0
"""Maximum time for abandoned workers to remove incomplete outputs (s). A worker that still
blocks then is left running."""


def open_workers(
    predictor: Predictor,
    streams: Streams,
    feeds: Mapping[str, Feed],
    sinks: Sequence[Sequence[AbstractContextManager[Put]]],
    *,
    horizon: int,
    reset_on_cut: bool = False,
) -> list[SourceWorker]:
    """Return a worker with its own stream for each source.

    Args:
        streams: scheduler in which a stream is opened for each source.
        feeds: sources by label.
        sinks: outputs of each source, in the order of `feeds`.
        horizon: number of frames to forecast after each picture.
        reset_on_cut: reset the state before a picture that begins a new scene.

    Raises:
        ResourceLimit: the maximum number of streams, or the maximum memory of their states, is reached.
    """
    found = []
    for (label, feed), puts in zip(feeds.items(), sinks, strict=True):
        slot = streams.open()
        follower = Follower(slot, predictor.config, horizon=horizon, renewal=streams.renewal, reset_on_cut=reset_on_cut)
        found.append(SourceWorker(label, feed, slot, follower, puts))
    return found


class SourceWorkers:
    """Context manager that starts workers, and stops the workers that still run when the `with` block ends.

    A stopped worker completes its outputs. If the block or the shutdown is interrupted by an error or a signal, the
    workers are abandoned, and incomplete outputs are removed.

    Args:
        workers: the workers, not yet started.
        outputs: outputs that the workers share and whose readers may stall; abandoned at the end.
    """

    def __init__(self, workers: Sequence[SourceWorker], outputs: Sequence[Output] = ()) -> None:
        self._workers, self._outputs = workers, outputs
        self._ended: SimpleQueue[SourceWorker] = SimpleQueue()

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start(self._ended)
        return self

    def ticks(self) -> Iterator[None]:
        """Yield periodically after the first picture of any worker, until all workers have ended.

        Stop early if the reader of any output has closed its pipe.
        """
        while self._running() and not any(isinstance(one.error, BrokenPipeError) for one in self._workers):
            self._wait(TICK_S)
            if any(worker.statistics.has_begun for worker in self._workers):
                yield

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                for worker in self._workers:
                    worker.stop()
                while self._running():
                    self._wait(TICK_S)
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Abandon the workers that still run."""
        for worker in self._running():
            worker.abandon()
        for output in self._outputs:
            output.abandon()
        deadline = time.monotonic() + ABANDON_S
        while self._running() and (left_s := deadline - time.monotonic()) > 0:
            self._wait(left_s)

    def _running(self) -> list[SourceWorker]:
        return [worker for worker in self._workers if not worker.has_ended]

    def _wait(self, timeout_s: float) -> None:
        """Wait until a worker ends, or for `timeout_s`.

        A queue is used because `Thread.join` can regard a running thread as ended after a signal interrupted `join`.
        """
        with suppress(Empty):
            self._ended.get(timeout=timeout_s)
