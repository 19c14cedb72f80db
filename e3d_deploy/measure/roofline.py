"""Limits of this machine, measured with float32 matrix products and copies in NumPy."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.measure.child import call_child

SIDES = (512, 1024, 2048)
"""Numbers of rows of the square matrices that are multiplied; the fastest product counts."""
COPIED = 256 << 20
"""Size of the array that is copied, far larger than the caches (bytes)."""
TRIES = 8
"""Number of timed calls of each product and of the copy; the fastest call counts."""


@dataclass(frozen=True)
class Roofline:
    """Limits of the roofline model (Williams et al., 2009)."""

    gflops: float
    """Speed of the fastest float32 matrix product (10⁹ FLOP/s)."""
    gigabytes_per_second: float
    """Speed of the fastest copy, bytes read plus bytes written (GB/s)."""

    def least_ms(self, flop: float, bytes_moved: float) -> float:
        """Return the minimum time of the work within both limits (ms)."""
        return max(flop / self.gflops, bytes_moved / self.gigabytes_per_second) / 1e6


def measure(threads: int | None) -> Roofline:
    """Measure the limits with the given number of threads, or with one thread per core if `threads` is None.

    The measurement runs in a new process, because NumPy sets its number of threads when it is imported.

    Raises:
        BackendUnavailable: The process cannot be started, or fails.
    """
    count = threads or _cores()
    variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(count))
    try:
        return Roofline(*json.loads(call_child(__name__, str(count), timeout_s=120, variables=variables)))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise BackendUnavailable(f"roofline: cannot be measured here ({error}); profile with --no-roofline") from error


def child(threads: str) -> str:
    """Measure both limits in this process; return [GFLOP/s, GB/s] as JSON."""
    return json.dumps([_matrix_product(), _copy(int(threads))])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _matrix_product() -> float:
    rates = []
    for side in SIDES:
        one, result = np.ones((side, side), np.float32), np.empty((side, side), np.float32)
        seconds = _least(partial(np.matmul, one, one.copy(), out=result))
        rates.append(2 * side**3 / seconds / 1e9)
    return max(rates)


def _copy(threads: int) -> float:
    source, copy = np.ones(COPIED // 4, np.float32), np.zeros(COPIED // 4, np.float32)
    parts = list(zip(np.array_split(copy, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:  # NumPy releases the GIL while it copies
        seconds = _least(lambda: list(pool.map(lambda pair: np.copyto(*pair), parts)))
    return 2 * COPIED / seconds / 1e9


def _least(work: Callable[[], object]) -> float:
    times = []
    for _ in range(TRIES):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
