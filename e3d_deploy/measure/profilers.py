"""How long each node of a step takes, as the library that runs it tells."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.inventory import REMEDY
from e3d_deploy.measure.tasks import make_task
from e3d_deploy.policies import check_runs
from e3d_deploy.runtime.backends.protocol import Backend


@dataclass(frozen=True)
class Timed:
    """What the library ran under one name."""

    name: str
    kind: str
    ms: float
    """A step, mean."""
    calls: float
    """A step."""


@dataclass(frozen=True)
class Trace:
    """A few steps as their library saw them."""

    nodes: list[Timed]
    step_ms: float
    """From call to return, with the time that profiling itself takes, mean."""


def trace(bundle: Bundle, backend: str, *, threads: int | None, steps: int) -> Trace:
    """Run so many steps, after those that fill the history, with the library's profiler.

    Raises:
        BackendUnavailable: the backend's library is not installed, or tells nothing about nodes here.
        ConfigError: no backend has this name.
    """
    check_runs(bundle.precision, backend)
    try:
        match backend:
            case "onnxruntime":
                return _onnxruntime(bundle, threads, steps)
            case "openvino":
                return _openvino(bundle, threads, steps)
            case "torch":
                return _torch(bundle, threads, steps)
            case "tensorrt" | "tensorrt-rtx":
                raise BackendUnavailable(
                    f"{backend}: time per layer comes from its IProfiler, which needs an NVIDIA GPU and is not "
                    "attached in this version; profile onnxruntime, openvino or torch, or run `trtexec --dumpProfile`"
                )
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"{backend}: {error.name} is not installed; {REMEDY[backend]}") from error
    raise ConfigError(f"backend: got {backend!r}, expected onnxruntime, openvino or torch")


Found = Iterable[tuple[str, str, float]]
"""Name, type and milliseconds of each node that ran."""


def _run(
    bundle: Bundle,
    backend: Backend,
    steps: int,
    *,
    recording: AbstractContextManager[object] | None = None,
    after: Callable[[], object] = lambda: None,
) -> float:
    """Time so many steps with a full history, inside `recording`, with a look at the library after each; ms a step."""
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


def _summed(found: Found, steps: int) -> list[Timed]:
    sums: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, kind, ms in found:
        sums[name, kind].append(ms)
    timed = [Timed(name, kind, sum(every) / steps, len(every) / steps) for (name, kind), every in sums.items()]
    return sorted(timed, key=lambda one: -one.ms)


def _onnxruntime(bundle: Bundle, threads: int | None, steps: int) -> Trace:
    from e3d_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend, load_session

    with TemporaryDirectory() as folder:
        load = partial(load_session, profile=Path(folder) / "step")
        with closing(OnnxRuntimeBackend(bundle, threads=threads, load=load)) as backend:
            step_ms = _run(bundle, backend, steps)
            file = Path(backend.sessions["step"].end_profiling())
        return Trace(_summed(_last_runs(json.loads(file.read_text()), steps), steps), step_ms)


def _last_runs(events: Iterable[dict[str, object]], steps: int) -> Found:
    """Nodes of the last runs of a session, from its Chrome trace."""
    events = list(events)
    begin = sorted(float(str(event["ts"])) for event in events if event.get("name") == "model_run")[-steps]
    for event in events:
        if event.get("cat") == "Node" and float(str(event["ts"])) >= begin:
            name, arguments = str(event["name"]), event["args"]
            if name.endswith("_kernel_time") and isinstance(arguments, dict):
                yield name.removesuffix("_kernel_time"), str(arguments["op_name"]), float(str(event["dur"])) / 1000


def _openvino(bundle: Bundle, threads: int | None, steps: int) -> Trace:
    from e3d_deploy.runtime.backends.openvino import OpenVINOBackend

    found: list[tuple[str, str, float]] = []
    with closing(OpenVINOBackend(bundle, threads=threads, profile=True)) as backend:

        def after() -> None:
            for node in backend.requests["step", bundle.batch].get_profiling_info():
                if node.real_time:
                    found.append((node.node_name, node.node_type, 1000 * node.real_time.total_seconds()))

        step_ms = _run(bundle, backend, steps, after=after)
    return Trace(_summed(found, steps), step_ms)


def _torch(bundle: Bundle, threads: int | None, steps: int) -> Trace:
    from torch.profiler import ProfilerActivity, profile

    from e3d_deploy.runtime.backends.torch_eager import TorchBackend

    profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
    with closing(TorchBackend.of_bundle(bundle, threads=threads)) as backend:
        step_ms = _run(bundle, backend, steps, recording=profiler)
    nodes = [
        Timed(_with_shapes(op.key, op.input_shapes), op.key, op.self_cpu_time_total / 1000 / steps, op.count / steps)
        for op in profiler.key_averages(group_by_input_shape=True)
    ]
    return Trace(sorted(nodes, key=lambda one: -one.ms), step_ms)


def _with_shapes(key: str, shapes: Iterable[list[int]]) -> str:
    """`aten::cat 1×40×8×8, …`: an operator has no name of its own."""
    known = ["×".join(map(str, shape)) for shape in shapes if shape]
    return f"{key} {', '.join(known)}" if known else key
