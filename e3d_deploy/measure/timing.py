"""Timing of calls: warmed up until they settle, then in turn, block by block."""

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
"""Confidence wanted for the interval of a median; the one reached depends on the repeats, and is recorded."""
SETTLED = 0.05
"""Warm-up ends when two blocks in turn have medians this close, as a share."""
PATIENCE = 10
"""Blocks that warm-up takes at most to settle."""
FEWEST = 3
"""Calls of a block at least, unless one alone fills it."""


@dataclass
class Block:
    """Calls timed one after the other."""

    seconds: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)
    """Empty where the backend does not tell."""

    @property
    def median(self) -> float:
        """Return the median time of a call (s)."""
        return float(np.median(self.seconds))


@dataclass
class Runner:
    """One side of a comparison."""

    name: str
    task: Task
    clock: Clock = time.perf_counter
    calls: int = 0
    warm_up_calls: int = 0
    settled: bool = False
    """True if warm-up ended because the time no longer changed."""

    def block(self, seconds: float) -> Block:
        """Calls for so long."""
        device_ms: list[float] = []

        def call() -> None:
            if (ms := self.task.call()) is not None:
                device_ms.append(ms)

        times = turns.block(call, fewest=FEWEST, seconds=seconds, clock=self.clock)
        self.calls += len(times)
        return Block(times, device_ms)

    def warm_up(self, seconds: float) -> None:
        """Calls until the task is filled, then blocks of `seconds` until their medians settle."""
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
    """Blocks of each runner, which take turns (A B A B …), so that a machine that slows down slows all."""
    for runner in runners:
        progress(f"{runner.name}, warming up")
        runner.warm_up(seconds)

    def measure(runner: Runner, number: int) -> Block:
        progress(f"{runner.name}, {number} of {repeats}")
        return runner.block(seconds)

    return turns.in_turn([partial(measure, runner) for runner in runners], repeats)


def summary(blocks: Sequence[Block]) -> Timing:
    """Return the times of a call that the blocks of one runner show."""
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
    """The narrowest interval between values that holds their true median by `CONFIDENCE`, and how sure that is.

    From the order of independent values alone: with fewer than `REPEATS` of them the widest one is less sure.
    """
    ordered, count = sorted(values), len(values)

    def sure(cut: int) -> float:
        return float(1 - 2 * sum(comb(count, below) for below in range(cut + 1)) / 2**count)

    cut = max([0, *(cut for cut in range((count - 1) // 2) if sure(cut) >= CONFIDENCE)])
    return float(ordered[cut]), float(ordered[-1 - cut]), max(sure(cut), 0.0)
