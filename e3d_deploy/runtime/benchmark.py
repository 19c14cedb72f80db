"""How fast backends are: one method for all, in turn, in one process."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import __version__
from e3d_deploy.doctor import machine
from e3d_deploy.errors import ConfigError
from e3d_deploy.runtime.backend import Backend
from e3d_deploy.runtime.bundle import Bundle
from e3d_deploy.runtime.verify import verify

REPEATS = 5
CONFIDENCE = 1 - 2 * 0.5**REPEATS
"""Chance that the true median lies between the least and the largest of so many independent medians."""
SETTLED = 0.05
"""Warm-up ends when two blocks of steps in turn have medians this close, as a share."""


@dataclass
class _Runner:
    """One backend, stepping through the reference clip for ever."""

    backend: Backend
    frames: NDArray[np.float32]
    history_length: int

    def __post_init__(self) -> None:
        self.state = self.backend.initial_state()
        self.count = 0

    def block(self, seconds: float) -> list[float]:
        """Steps for so long, at least three; the seconds of each."""
        times: list[float] = []
        while len(times) < 3 or sum(times) < seconds:
            frame = self.frames[self.count % len(self.frames)]
            started = time.perf_counter()
            _, self.state = self.backend.step(frame, self.state)
            times.append(time.perf_counter() - started)
            self.count += 1
        return times

    def warm_up(self, seconds: float) -> int:
        """Steps until the history is full, then until the time settles, at most ten blocks; how many steps in all."""
        while self.count <= self.history_length:
            before = float(np.median(self.block(seconds)))
        for _ in range(10):
            now = float(np.median(self.block(seconds)))
            if abs(now / before - 1) < SETTLED:
                break
            before = now
        return self.count


def benchmark(
    bundle: Bundle,
    backends: Sequence[Backend],
    *,
    threads: int | None = None,
    seconds: float = 1.0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Time the step of each backend, and say how right it is.

    Timed is one step on frames that are in memory: frame and state in, prediction and next state out, on
    the host. Backends take turns, block by block (A B A B …), so that a machine that slows down slows
    all. What is reported as ratio is the median of the ratios within a turn.

    Args:
        backends: the first is what the others are compared with.
        threads: as they were opened with, for the record.
        seconds: length of a block.

    Returns:
        The table and the environment, as JSON knows them.

    Raises:
        ConfigError: no backend.
    """
    if not backends:
        raise ConfigError("backends: name at least one")
    frames = bundle.reference()["frames"]
    batched = np.repeat(frames[:, None], bundle.batch, axis=1)  # [T, B, C, H, W]
    runners = [_Runner(backend, batched, bundle.config.history_length) for backend in backends]
    warm_up = []
    for runner in runners:
        progress(f"warming up {runner.backend.name}")
        warm_up.append(runner.warm_up(seconds))
    blocks: list[list[list[float]]] = [[] for _ in runners]
    for repeat in range(REPEATS):
        for runner, times in zip(runners, blocks, strict=True):
            progress(f"{runner.backend.name}, {repeat + 1} of {REPEATS}")
            times.append(runner.block(seconds))
    medians = np.array([[np.median(block) for block in times] for times in blocks])  # [backend, repeat]
    rows = []
    for number, (runner, times) in enumerate(zip(runners, blocks, strict=True)):
        progress(f"verifying {runner.backend.name}")
        every_ms = 1000 * np.concatenate(times)
        row = {
            "backend": runner.backend.name,
            "median_ms": float(np.median(medians[number]) * 1000),
            "median_ci_ms": [float(medians[number].min() * 1000), float(medians[number].max() * 1000)],
            "p90_ms": float(np.percentile(every_ms, 90)),
            "p99_ms": float(np.percentile(every_ms, 99)),
            "frames_per_second": float(bundle.batch / np.median(medians[number])),
            "speedup": float(np.median(medians[0] / medians[number])),
            "max_abs_difference": verify(bundle, runner.backend).worst,
            "steps": int(every_ms.size),
            "warm_up_steps": warm_up[number],
        }
        rows.append(row)
    return {
        "what": "step: frame and state in, prediction and next state out, on the host",
        "compared_with": runners[0].backend.name,
        "max_abs_difference_from": "PyTorch float32, whole rollout and final states",
        "confidence": CONFIDENCE,
        "bundle": {"path": bundle.path.name, "digest": bundle.digest, "batch": bundle.batch},
        "results": rows,
        "environment": environment(threads),
    }


def environment(threads: int | None) -> dict[str, Any]:
    """What a number depends on: machine, threads, versions, date."""
    versions = {"e3d_deploy": __version__}
    for package in ("numpy", "torch", "onnxruntime"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        **machine(),
        "threads": threads,
        "clock_mhz": _clock(),
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "peak_resident_bytes": _peak(),
    }


def _clock() -> float | None:
    try:
        with open("/proc/cpuinfo") as file:
            return next(float(line.split(":", 1)[1]) for line in file if line.startswith("cpu MHz"))
    except (OSError, StopIteration):
        return None


def _peak() -> int | None:
    """Most memory this process has had; all backends together."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
