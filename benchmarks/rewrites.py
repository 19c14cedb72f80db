"""Time of a step in each variant of the graph, in ONNX Runtime and OpenVINO.

    python -m benchmarks.rewrites [--size full|demo] [--semantics paper|google] [--threads 1]

All variants of `variants.VARIANTS` are timed in turn in one process, with a full ring, and compared with `plain`. If
the processor has bfloat16, OpenVINO also runs with its bfloat16 hint: once with the settings of our backend, and once
with attention fused into one kernel, which our backend switches off. If TensorRT-RTX is installed, the build time and
the size of its plans are measured for `plain` and `tensorrt`. If the memory of the network stays zero, `plain` is also
timed with the convolution of that memory (`unfolded`). Writes
benchmarks/results/rewrites_SIZE_SEMANTICS_PROCESSOR.json.

Predictions, written after trials on an AMD EPYC with AVX-512 and bfloat16 (Zen 4) and before the first run there:
`openvino-direct` is 1.1 times as fast as `plain` in OpenVINO in float32, because the plugin fuses attention into one
kernel; it is equally fast in bfloat16, where this kernel is slower than three kernels and is switched off. Winograd's
convolutions make `openvino` 1.5 times as fast in float32, and `onnxruntime` 1.5 times as fast in ONNX Runtime.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from onnx import GraphProto

from benchmarks.common import FULL, SEMANTICS, compare, processor_kind, save, size_option
from e3d_deploy import checkpoint, contract
from e3d_deploy.config import EngineConfig, ModelConfig, Semantics
from e3d_deploy.demo.exhibits import MODEL
from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.export.engines.plan import build_plan
from e3d_deploy.export.graph.compose import step_graph
from e3d_deploy.export.graph.to_onnx import export_core
from e3d_deploy.export.graph.variants import PLAIN, VARIANTS, expand
from e3d_deploy.model import E3DLSTM
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.runtime.backends.protocol import initial_arrays
from e3d_deploy.tensorrt_library import MODULES, library

Run = Callable[[dict[str, Any]], Any]
"""Function that runs a graph on its inputs and returns the prediction."""


def on_onnxruntime(path: Path, threads: int) -> Run:
    """Open a graph in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run([contract.PREDICTION], feed)[0]


def on_openvino(path: Path, threads: int, settings: Mapping[str, str]) -> Run:
    """Open a graph in OpenVINO, set for low latency and with further settings."""
    from e3d_deploy.runtime.backends.openvino import CORE

    given = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", **settings}
    request = CORE.compile_model(str(path), "CPU", given).create_infer_request()
    return lambda feed: request.infer(feed, share_outputs=True)[contract.PREDICTION].copy()


def engines(threads: int) -> dict[str, Callable[[Path], Run]]:
    """Return functions that open a graph, by library and precision."""
    found: dict[str, Callable[[Path], Run]] = {"onnxruntime": lambda path: on_onnxruntime(path, threads)}
    if not find_spec("openvino"):
        return found
    from e3d_deploy.runtime.backends.openvino import bfloat16_settings

    kinds = {"openvino": {"INFERENCE_PRECISION_HINT": "f32"}}
    try:
        kinds["openvino bf16"] = bfloat16_settings()
    except BackendUnavailable as error:
        click.echo(str(error), err=True)
    else:
        kinds["openvino bf16, one kernel"] = {"INFERENCE_PRECISION_HINT": "bf16"}
    for name, settings in kinds.items():
        found[name] = lambda path, settings=settings: on_openvino(path, threads, settings)  # type: ignore[misc]
    return found


def plans(paths: Mapping[str, Path], rounds: int = 3) -> dict[str, Any]:
    """Build TensorRT-RTX plans of the variants `plain` and `tensorrt` in turn; return build times (s) and sizes."""
    trt = library("tensorrt-rtx")
    found: dict[str, Any] = {name: {"seconds": [], "plan_bytes": 0} for name in (PLAIN, "tensorrt")}
    for _ in range(rounds):
        for name, one in found.items():
            started = time.perf_counter()
            plan = build_plan(trt, paths[name], EngineConfig())
            one["seconds"].append(round(time.perf_counter() - started, 2))
            one["plan_bytes"] = len(plan)
    return found


def cores(model: E3DLSTM, semantics: str) -> dict[str, GraphProto]:
    """Return the core of the step in each variant, by name."""
    exported = export_core(model, 1)
    found = {name: expand(exported, variant) for name, variant in VARIANTS.items()}
    if semantics != "paper":
        found["unfolded"] = expand(export_core(model, 1, fold=False), VARIANTS[PLAIN])
    return found


def network(size: str, semantics: Semantics) -> E3DLSTM:
    """Return the network: with trained weights for the paper's semantics, with random weights for others."""
    source = FULL if size == "full" else MODEL
    if semantics == "paper":
        return checkpoint.load(source).eval()
    config = ModelConfig() if size == "full" else checkpoint.load(MODEL).config
    torch.manual_seed(0)
    return E3DLSTM(replace(config, semantics=semantics)).eval()


@click.command()
@size_option("full")
@SEMANTICS
@click.option("--threads", default=1, show_default=True, help="Number of threads.")
@click.option("--rounds", default=7, show_default=True, help="Number of rounds; each side is timed once per round.")
def main(size: str, semantics: Semantics, threads: int, rounds: int) -> None:
    """Time a step in each variant of the graph."""
    model = network(size, semantics)
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = initial_arrays(model.config, 1)
    for name, array in feed.items():
        if name != "written" and not (name == "memory" and semantics == "google"):
            feed[name] = rng.standard_normal(array.shape).astype(np.float32)
    feed["written"][:] = model.config.history_length  # a full ring
    feed[contract.FRAME] = rng.random(contract.frame(model.config).shape, np.float32)
    graphs, paths, timed, differences = {}, {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, core in cores(model, semantics).items():
            graph = step_graph(core, model.config, 1)
            paths[name] = Path(folder) / f"{name}.onnx"
            onnx.save(graph, paths[name])
            numbers = sum(int(np.prod(one.dims)) for one in graph.graph.initializer)
            graphs[name] = {"nodes": len(graph.graph.node), "numbers": numbers}
        expected = on_onnxruntime(paths[PLAIN], threads)(feed)
        for engine, opened in engines(threads).items():
            runs = {name: opened(path) for name, path in paths.items()}
            differences[engine] = {name: float(np.abs(run(feed) - expected).max()) for name, run in runs.items()}
            sides = {name: lambda run=run: run(feed) for name, run in runs.items()}
            timed[engine] = compare(sides, rounds=rounds, calls=5, clock=time.process_time)  # type: ignore[arg-type]
        built = {"plans": plans(paths)} if any(map(find_spec, MODULES["tensorrt-rtx"])) else {}
    weights = "trained" if semantics == "paper" else "random"
    about = {
        "what": "one step, full ring",
        "size": size,
        "semantics": semantics,
        "weights": weights,
        "threads": threads,
    }
    result = {**about, "graphs": graphs, "sides": timed}
    name = f"rewrites_{size}_{semantics}_{processor_kind()}"
    save(name, {**result, "max_abs_difference": differences, **built}, threads=threads)


if __name__ == "__main__":
    main()
