"""ONNX to TensorRT engines: one builder for TensorRT 10, 11 and TensorRT-RTX."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from e3d_deploy.errors import BackendUnavailable, EngineError
from e3d_deploy.files import write_file
from e3d_deploy.runtime.bundle import MODEL, Bundle, write_manifest

log = logging.getLogger(__name__)

Target = Literal["tensorrt", "tensorrt-rtx"]
Progress = Callable[[str, float], None]
"""Called with the phase and the seconds since the start; from threads of the builder."""

# The front ends are thin packages over the bindings; either will do.
MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
REMEDY = {
    "tensorrt": "pip install 'e3d_deploy[gpu]', on a machine with an NVIDIA GPU and its driver",
    "tensorrt-rtx": "pip install 'e3d_deploy[rtx]'",
}


def library(target: Target) -> Any:
    """The module of a target.

    Raises:
        BackendUnavailable: it is not installed, or does not load here.
    """
    reasons = []
    for name in MODULES[target]:
        try:
            return import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            reasons.append(str(error).splitlines()[0])
    raise BackendUnavailable(f"{target}: does not load here ({reasons[0]}); {REMEDY[target]}")


def build(
    bundle: Bundle,
    target: Target,
    *,
    workspace_bytes: int | None = None,
    optimization_level: int = 3,
    progress: Progress = lambda _phase, _seconds: None,
) -> dict[str, dict[str, Any]]:
    """Build an engine of each graph of a bundle into its folder `engines/`.

    Each plan gets a sidecar (`.json`), and its hash goes into the manifest: a plan is native code and
    is loaded from nowhere else. Nothing is written before all are built.

    Args:
        workspace_bytes: scratch memory that kernels may use; None for all there is.
        optimization_level: 0, quick to build, to 5, quick to run.

    Returns:
        The sidecar of each graph.

    Raises:
        BackendUnavailable: the library is not installed.
        EngineError: a graph that it cannot read or build, with the node and its words.
    """
    trt = library(target)
    plans, sidecars = {}, {}
    for graph, entry in bundle.manifest["graphs"].items():
        started = time.monotonic()
        plans[graph] = build_plan(
            trt,
            bundle.graph(graph),
            workspace_bytes=workspace_bytes,
            optimization_level=optimization_level,
            progress=lambda phase, seconds, graph=graph: progress(f"{graph}: {phase}", seconds),  # type: ignore[misc]
        )
        sidecars[graph] = {
            "graph": graph,
            "graph_sha256": bundle.manifest["files"][entry["file"]],
            "weights_sha256": bundle.manifest["files"][MODEL],
            "target": target,
            "builder": trt.__version__,
            "compute_capability": "portable" if target == "tensorrt-rtx" else "of the building machine",
            "precision": {"requested": entry["precision"], "proved": None},
            "optimization_level": optimization_level,
            "build_seconds": round(time.monotonic() - started, 2),
            "bytes": len(plans[graph]),
            "sha256": hashlib.sha256(plans[graph]).hexdigest(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    _add_to_bundle(bundle, target, plans, sidecars)
    return sidecars


def _add_to_bundle(
    bundle: Bundle, target: Target, plans: dict[str, bytes], sidecars: dict[str, dict[str, Any]]
) -> None:
    """Write plans and sidecars, then the manifest: without its word for it a plan is no part of the bundle.

    Older engines of the target leave the manifest first, so that at no moment it speaks of files that are gone.
    """
    folder = bundle.path / "engines"
    folder.mkdir(exist_ok=True)
    files = {name: digest for name, digest in bundle.manifest["files"].items() if f".{target}." not in name}
    engines = {name: sheet for name, sheet in bundle.manifest["engines"].items() if not name.endswith(f".{target}")}
    write_manifest(bundle.path, {**bundle.manifest, "files": files, "engines": engines})
    for graph, sidecar in sidecars.items():
        name = f"{graph}.{target}"
        sheet = (json.dumps(sidecar, indent=2) + "\n").encode()
        for file, content in ((f"{name}.plan", plans[graph]), (f"{name}.json", sheet)):
            write_file(folder / file, content)
            files[f"engines/{file}"] = hashlib.sha256(content).hexdigest()
        engines[name] = sidecar
    write_manifest(bundle.path, {**bundle.manifest, "files": files, "engines": engines})


def build_plan(
    trt: Any,
    graph: Path,
    *,
    workspace_bytes: int | None,
    optimization_level: int,
    progress: Progress,
) -> bytes:
    """The engine of one graph, serialised.

    Raises:
        EngineError: the graph cannot be read or built; KeyboardInterrupt ends the build.
    """
    logger = _logger(trt)
    builder = trt.Builder(logger)
    # TensorRT 10 must be told that the types are in the graph; 11 and RTX know nothing else.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        reasons = [parser.get_error(index) for index in range(parser.num_errors)]
        words = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in reasons)
        raise EngineError(f"{graph}: cannot be read by TensorRT {trt.__version__} ({words or logger.last})")
    config = builder.create_builder_config()
    if workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.builder_optimization_level = optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    config.max_aux_streams = 0
    config.clear_flag(trt.BuilderFlag.TF32)  # the graph says float32
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    plan = _in_thread(lambda: builder.build_serialized_network(network, config), monitor)
    if plan is None:
        raise EngineError(f"{graph}: TensorRT {trt.__version__} could not build it ({logger.last})")
    return bytes(plan)


def _in_thread(work: Callable[[], Any], monitor: Any) -> Any:
    """Run `work` where Ctrl-C does not reach it, and cancel it by its monitor when Ctrl-C comes.

    The builder asks its monitor between steps alone, and a step may take half a minute: what has not ended
    two seconds later goes on in its thread, and its result is thrown away.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while not future.done():
            wait([future], timeout=0.1)
    except KeyboardInterrupt:
        monitor.cancelled = True
        wait([future], timeout=2)
        raise
    return future.result()


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """TensorRT's messages into Python's logging; the last error is kept for ours."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = "it gave no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last = message
                log.info(message)
            else:
                log.debug(message)

    return Logger()


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled, self.started = False, time.monotonic()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            progress(phase, time.monotonic() - self.started)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(phase, time.monotonic() - self.started)
            return not self.cancelled

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()
