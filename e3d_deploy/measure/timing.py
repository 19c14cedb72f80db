"""Timing of tasks: warm-up until the time settles, then blocks of calls in turn."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import comb

import numpy as np

from e3d_deploy import turns
from e3d_deploy.measure.results import Timing
from e3d_deploy.measure.tasks import Task
from e3d_deploy.progress import Notify
from e3d_deploy.turns import Clock

REPEATS = 5
CONFIDENCE = 0.9
"""Desired confidence of the interval of a median. The actual confidence depends on the number of blocks and is
recorded."""
SETTLED = 0.05
"""Relative difference of the medians of two successive blocks at which warm-up ends."""
PATIENCE = 10
"""Maximum number of warm-up blocks."""
FEWEST = 3
"""Minimum number of calls in a block, unless the first call takes the whole time of the block."""


@dataclass
class Block:
    """Times of successive calls."""

    seconds: list[float] = field(default_factory=list)
    """Time of each call (s)."""
    device_ms: list[float] = field(default_factory=list)
    """Time of each call on the device (ms); empty if the backend does not report it."""

    @property
    def median(self) -> float:
        """Median time of a call (s)."""
        return float(np.median(self.seconds))


@dataclass
class Runner:
    """Side of a comparison: a task, and the state of its timing."""

    name: str
    task: Task
    clock: Clock = time.perf_counter
    calls: int = 0
    warm_up_calls: int = 0
    settled: bool = False
    """True if the medians of the last two warm-up blocks differed by at most `SETTLED`."""

    def block(self, seconds: float) -> Block:
        """Time a block of calls of at least `seconds`."""
        device_ms: list[float] = []

        def call() -> None:
            if (ms := self.task.call()) is not None:
                device_ms.append(ms)

        times = turns.block(call, fewest=FEWEST, seconds=seconds, clock=self.clock)
        self.calls += len(times)
        return Block(times, device_ms)

    def warm_up(self, seconds: float) -> None:
        """Make the first `task.fill` calls, then blocks of `seconds` until their medians settle."""
        while self.calls < self.task.fill:
            self.task.call()
            self.calls += 1
        before = self.block(seconds).median
        for _ in range(PATIENCE - 1):
            now = self.block(seconds).median
            self.settled = abs(now - before) <= SETTLED * before
            if self.settled:
                break
            before = now
        self.warm_up_calls = self.calls


def blocks_in_turn(runners: Sequence[Runner], *, seconds: float, repeats: int, progress: Notify) -> list[list[Block]]:
    """Warm up each runner, then time blocks in turn (A B A B …); return the blocks of each runner."""
    for runner in runners:
        progress(f"{runner.name}, warming up")
        runner.warm_up(seconds)

    def measure(runner: Runner, number: int) -> Block:
        progress(f"{runner.name}, block {number} of {repeats}")
        return runner.block(seconds)

    return turns.in_turn([partial(measure, runner) for runner in runners], repeats)


def summary(blocks: Sequence[Block]) -> Timing:
    """Summarise the blocks of one runner."""
    medians = [1000 * block.median for block in blocks]
    every = 1000 * np.concatenate([block.seconds for block in blocks])
    device = [time for block in blocks for time in block.device_ms]
    low, high, _ = median_interval(medians)
    return Timing(
        median_ms=float(np.median(medians)),
        median_ci_ms=(low, high),
        p90_ms=float(np.percentile(every, 90)),
        p99_ms=float(np.percentile(every, 99)),
        device_median_ms=float(np.median(device)) if device else None,
        calls=int(every.size),
    )


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the confidence interval of the median of independent values: its lower end, upper end and confidence.

    The interval is the narrowest pair of order statistics with at least the confidence `CONFIDENCE`. With fewer than
    `REPEATS` values the confidence is lower, even for the interval from the smallest to the largest value.
    """
    ordered, count = sorted(values), len(values)

    def confidence(cut: int) -> float:
        return float(1 - 2 * sum(comb(count, below) for below in range(cut + 1)) / 2**count)

    cut = max([0, *(cut for cut in range((count - 1) // 2) if confidence(cut) >= CONFIDENCE)])
    return float(ordered[cut]), float(ordered[-1 - cut]), max(confidence(cut), 0.0)
