"""Gain from each rewrite of the exported step, and the largest difference it makes to the prediction.

    python -m benchmarks.rewrites [--size full|demo] [--semantics paper|google] [--threads 1]

All rewrites against all but one, in turn in one process, a step with a full ring; random weights. On OpenVINO too
where it is installed, and where TensorRT-RTX is, what its plan of each takes to build and holds. Writes
benchmarks/results/rewrites_SIZE_SEMANTICS.json.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch

from benchmarks.common import compare, save
from e3d_deploy import checkpoint, contract
from e3d_deploy.config import EngineConfig, ModelConfig
from e3d_deploy.demo.tour import MODEL
from e3d_deploy.export.engines.plan import build_plan
from e3d_deploy.export.graph.compose import step_graph
from e3d_deploy.export.graph.to_onnx import export_core
from e3d_deploy.model import E3DLSTM
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.runtime.backends.protocol import initial_arrays
from e3d_deploy.step import REWRITES
from e3d_deploy.tensorrt_library import MODULES, library

Run = Callable[[dict[str, Any]], Any]


def on_onnxruntime(path: Path, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run([contract.PREDICTION], feed)[0]


def on_openvino(path: Path, threads: int) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda feed: request.infer(feed)[contract.PREDICTION].copy()


def plans(paths: dict[str, Path], rounds: int = 3) -> dict[str, Any]:
    """Seconds, in turn, and bytes of the TensorRT-RTX plans."""
    trt = library("tensorrt-rtx")

    found: dict[str, Any] = {name: {"seconds": [], "plan_bytes": 0} for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            started = time.perf_counter()
            plan = build_plan(trt, path, EngineConfig())
            found[name]["seconds"].append(round(time.perf_counter() - started, 2))
            found[name]["plan_bytes"] = len(plan)
    return found


@click.command()
@click.option("--size", type=click.Choice(["full", "demo"]), default="full", show_default=True)
@click.option("--semantics", type=click.Choice(["paper", "google"]), default="paper", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(size: str, semantics: str, threads: int, rounds: int) -> None:
    config = ModelConfig() if size == "full" else checkpoint.load(MODEL).config
    torch.manual_seed(0)
    model = E3DLSTM(replace(config, semantics=semantics)).eval()  # type: ignore[arg-type]
    variants = {"all": tuple(REWRITES)}
    variants |= {f"without {name}": tuple(set(REWRITES) - {name}) for name in REWRITES}
    if semantics == "paper":
        variants.pop("without frozen-memory")
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = initial_arrays(model.config, 1)
    for name, array in feed.items():
        if name != "written" and not (name == "memory" and semantics == "google"):
            feed[name] = rng.standard_normal(array.shape).astype(np.float32)
    feed["written"][:] = model.config.history_length  # a full ring
    feed[contract.FRAME] = rng.random(contract.frame(model.config).shape, np.float32)
    engines = {"onnxruntime": on_onnxruntime} | ({"openvino": on_openvino} if find_spec("openvino") else {})
    graphs, paths, timed, differences = {}, {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rewrites in variants.items():
            graph = step_graph(export_core(model, 1, rewrites), model.config, 1)
            paths[name] = Path(folder) / f"{name}.onnx"
            onnx.save(graph, paths[name])
            numbers = sum(int(np.prod(one.dims)) for one in graph.graph.initializer)
            graphs[name] = {"nodes": len(graph.graph.node), "numbers": numbers}
        expected = on_onnxruntime(paths["all"], threads)(feed)
        for engine, opened in engines.items():
            runs = {name: opened(path, threads) for name, path in paths.items()}
            differences[engine] = {name: float(np.abs(run(feed) - expected).max()) for name, run in runs.items()}
            sides = {name: lambda run=run: run(feed) for name, run in runs.items()}
            timed[engine] = compare(sides, rounds=rounds, calls=5)  # type: ignore[arg-type]
        built = {"plans": plans(paths)} if any(map(find_spec, MODULES["tensorrt-rtx"])) else {}
    result = {"what": "one step, full ring", "size": size, "semantics": semantics, "graphs": graphs, "sides": timed}
    save(f"rewrites_{size}_{semantics}", {**result, "max_abs_difference": differences, **built}, threads=threads)


if __name__ == "__main__":
    main()
