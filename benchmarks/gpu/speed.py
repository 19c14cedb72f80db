"""Timing of a row in turn with the base row, with full rings."""

from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu import flop
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.steppers import Stepper
from benchmarks.gpu.timing import calls_for, end_to_end_ms, timed_ms
from e3d_deploy.tf32 import arithmetic
from e3d_deploy.turns import in_turn


def warm_up(bench: Bench, stepper: Stepper, batch: int) -> None:
    """Step until the ring is full."""
    with arithmetic(stepper.precision):
        for frame in bench.frames(batch, bench.config.history_length + 4):
            stepper.step(frame)
    bench.wait()


def speed(bench: Bench, stepper: Stepper, base: Stepper | None, batch: int) -> dict[str, Any]:
    """Time a warm stepper in turn with a warm base, so that changes of the GPU's clocks affect both.

    Args:
        base: stepper to compare with; None if `stepper` is the base.
    """
    frame, pictures = bench.frames(batch, 1)[0], bench.pictures(batch, 8)
    sides = [stepper] if base is None else [base, stepper]
    calls = [calls_for(bench, side, frame) for side in sides]

    def on_device(side: Stepper, count: int, _: int) -> float:
        with arithmetic(side.precision):
            return timed_ms(bench, partial(side.step, frame), count)

    def end_to_end(_: int) -> float:
        with arithmetic(stepper.precision):
            return end_to_end_ms(bench, stepper, pictures, max(1, calls[-1] // 2))

    pairs = zip(sides, calls, strict=True)
    *device, whole = in_turn([*(partial(on_device, *pair) for pair in pairs), end_to_end], bench.rounds)
    return described(bench, stepper, batch, [list(times) for times in zip(*device, strict=True)], whole)


def described(
    bench: Bench, stepper: Stepper, batch: int, device: list[list[float]], whole: list[float]
) -> dict[str, Any]:
    """Return the figures of a row.

    Args:
        device: for each round, the step times of the base and of the row (ms); for the base itself only one time.
        whole: for each round, the time from picture to prediction (ms).
    """
    times = [blocks[-1] for blocks in device]
    median = float(np.median(times))
    counts = {
        "paper": flop.by_paper(bench.config, bench.config.history_length),
        "executed": stepper.flop_per_stream(),
    }
    return {
        "precision": stepper.precision,
        "device_ms": round(median, 4),
        "device_ms_range": [round(min(times), 4), round(max(times), 4)],
        "end_to_end_ms": round(float(np.median(whole)), 4),
        "frames_per_second": round(1000 * batch / median, 1),
        "speedup": round(float(np.median([blocks[0] / blocks[-1] for blocks in device])), 3),
        "gflop": {name: round(count * batch / 1e9, 4) for name, count in counts.items()},
        "tflops": {name: round(count * batch / median / 1e9, 3) for name, count in counts.items()},
    }
