"""Time of each node of a step, as reported by the library that runs it."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.measure.tasks import make_task
from e3d_deploy.runtime.backends.protocol import Backend, Drive, NodeTime
from e3d_deploy.runtime.backends.registry import check_runs_bundle
from e3d_deploy.runtime.backends.specs import BACKENDS, profiled


@dataclass(frozen=True)
class Trace:
    """Times of steps, as reported by the library that ran them."""

    nodes: list[NodeTime]
    """Mean time and number of calls per step of each node, by name and type."""
    step_ms: float
    """Mean time of a step from call to return, including the overhead of profiling (ms)."""


def trace(bundle: Bundle, backend: str, *, threads: int | None, steps: int) -> Trace:
    """Run the profiler of a library for `steps` steps, after the steps that fill the history.

    Raises:
        BackendUnavailable: The library of the backend is not installed, or does not report times of nodes.
        ConfigError: The backend is unknown.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend: got {backend!r}, expected {profiled()}")
    check_runs_bundle(bundle, backend)
    spec = BACKENDS[backend]
    if spec.profiler is None:
        raise BackendUnavailable(f"{backend}: {spec.unprofiled}; profile {profiled()}")
    try:
        found, step_ms = spec.profiler()(bundle, _drive(bundle, steps), threads=threads, steps=steps)
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"{backend}: {error.name} is not installed; {spec.remedy}") from error
    return Trace(_summed(found, steps), step_ms)


def _drive(bundle: Bundle, steps: int) -> Drive:
    """Return the function that runs `steps` steps of a bundle for a profiler."""

    def drive(
        backend: Backend,
        *,
        recording: AbstractContextManager[object] | None = None,
        after: Callable[[], object] = lambda: None,
    ) -> float:
        task = make_task("step", bundle, backend)
        for _ in range(task.fill):
            task.call()
        seconds = 0.0
        with recording or nullcontext():
            for _ in range(steps):
                started = time.perf_counter()
                task.call()
                seconds += time.perf_counter() - started
                after()
        return 1000 * seconds / steps

    return drive


def _summed(found: Iterable[NodeTime], steps: int) -> list[NodeTime]:
    """Sum the times of each node; return means per step, longest first."""
    sums: dict[tuple[str, str], list[NodeTime]] = defaultdict(list)
    for node in found:
        sums[node.name, node.kind].append(node)
    timed = [
        NodeTime(name, kind, sum(one.ms for one in every) / steps, sum(one.calls for one in every) / steps)
        for (name, kind), every in sums.items()
    ]
    return sorted(timed, key=lambda one: -one.ms)
