"""Sections `plain` and `compiled`: each stepper is compared with eager float32 and timed."""

import time
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.correctness import Yardstick
from benchmarks.gpu.plan import Unit
from benchmarks.gpu.rows import BASE, COMPILED, PLAIN, Row
from benchmarks.gpu.speed import speed, warm_up
from benchmarks.gpu.steppers import Stepper

PLAIN_S, COMPILED_S = 3.0, 60.0
"""Estimated time of a row on a GPU (s): mostly the timing, or the compilation."""


class Streams:
    """Reference and base row for one number of streams; each is made once per process."""

    def __init__(self, bench: Bench, batch: int) -> None:
        self.bench, self.batch = bench, batch

    @cached_property
    def yardstick(self) -> Yardstick:
        return Yardstick(self.bench, self.batch)

    @cached_property
    def base(self) -> Stepper:
        stepper = next(row for row in PLAIN if row.name == BASE).make(self.bench, self.batch)
        warm_up(self.bench, stepper, self.batch)
        return stepper

    def run(self, row: Row) -> dict[str, Any]:
        """Make a row's stepper, compare it with the reference, which fills its ring, and time it."""
        # Make base and reference first, so that their time and memory are not counted for the row.
        base, _ = None if row.name == BASE else self.base, self.yardstick.expected
        before = 0
        if self.bench.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        started = time.monotonic()
        stepper = row.make(self.bench, self.batch)
        compared = self.yardstick.compare(stepper)
        found = {"ready_s": round(time.monotonic() - started, 2), **compared}
        found |= speed(self.bench, stepper, base, self.batch)
        if self.bench.on_gpu:
            found["peak_memory_bytes"] = torch.cuda.max_memory_allocated() - before
        return found


def plain(bench: Bench, batch: int) -> list[Unit]:
    """List the rows without compilation."""
    return _units(bench, batch, f"plain at batch {batch}", PLAIN, PLAIN_S)


def compiled(bench: Bench, batch: int) -> list[Unit]:
    """List the compiled rows."""
    return _units(bench, batch, f"compiled at batch {batch}", COMPILED, COMPILED_S)


def _units(bench: Bench, batch: int, section: str, rows: Sequence[Row], cost_s: float) -> list[Unit]:
    streams, batches = Streams(bench, batch), bench.settings.batches
    between = batch not in (batches[0], batches[-1])
    return [
        Unit(
            section=section,
            row=row.name,
            tier=row.tier + between,
            cost_s=cost_s,
            work=partial(streams.run, row),
        )
        for row in rows
    ]
