"""Times of repeated calls on the device, and of single steps from picture to prediction."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.steppers import Stepper
from e3d_deploy.tf32 import arithmetic


def timed_ms(bench: Bench, work: Callable[[], object], calls: int) -> float:
    """Make calls without a pause; return the time on the device per call (ms)."""
    if not bench.on_gpu:
        started = time.perf_counter()
        for _ in range(calls):
            work()
        return 1000 * (time.perf_counter() - started) / calls
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(calls):
        work()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / calls


def least_s(bench: Bench, work: Callable[[], object]) -> float:
    """Time three blocks of ten calls; return the shortest time per call (s)."""
    for _ in range(3):
        work()
    return min(timed_ms(bench, work, 10) for _ in range(3)) / 1000


def calls_for(bench: Bench, stepper: Stepper, frame: torch.Tensor) -> int:
    """Return the number of steps that take about `bench.block_s`, between 3 and 2000."""
    with arithmetic(stepper.precision):
        once = timed_ms(bench, partial(stepper.step, frame), 3) / 1000
    return max(3, min(2000, int(bench.block_s / once)))


def end_to_end_ms(bench: Bench, stepper: Stepper, pictures: np.ndarray, calls: int) -> float:
    """Return the median time from a picture to its prediction, both in the memory of the host (ms)."""
    staging = torch.from_numpy(pictures[0].copy())
    staging = staging.pin_memory() if bench.on_gpu else staging
    times = []
    for call in range(calls):
        started = time.perf_counter()
        staging.copy_(torch.from_numpy(pictures[call % len(pictures)]))
        frame = staging.to(bench.device, non_blocking=True).permute(0, 3, 1, 2).contiguous().float() / 255
        stepper.step(frame).float().cpu().numpy()
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))
