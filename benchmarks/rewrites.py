"""What each rewrite of the exported step gains, and that it computes the same.

    python -m benchmarks.rewrites [--size full|demo] [--semantics paper|google] [--threads 1]

All rewrites against all but one, in turn in one process, a step with a full ring. On OpenVINO too where it is
installed. Writes benchmarks/results/rewrites_SIZE_SEMANTICS.json.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import torch

from benchmarks.common import in_turn, save
from e3d_deploy import checkpoint, contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.demo.tour import MODEL
from e3d_deploy.export.compose import step_graph
from e3d_deploy.export.step import REWRITES
from e3d_deploy.export.to_onnx import export_core
from e3d_deploy.model import E3DLSTM
from e3d_deploy.runtime.backend import initial_arrays

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
    sides: dict[str, Callable[[], Any]] = {}
    graphs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rewrites in variants.items():
            graph = step_graph(export_core(model, 1, rewrites), model.config, 1)
            path = Path(folder) / f"{name}.onnx"
            onnx.save(graph, path)
            numbers = sum(int(np.prod(one.dims)) for one in graph.graph.initializer)
            graphs[name] = {"nodes": len(graph.graph.node), "numbers": numbers}
            for engine, opened in engines.items():
                run = opened(path, threads)
                sides[f"{engine}, {name}"] = lambda run=run: run(feed)  # type: ignore[misc]
        expected = sides["onnxruntime, all"]()
        differences = {name: float(np.abs(side() - expected).max()) for name, side in sides.items()}
        timed = in_turn(sides, rounds=rounds, calls=5)
    result = {"what": "one step, full ring", "size": size, "semantics": semantics, "graphs": graphs, "sides": timed}
    save(f"rewrites_{size}_{semantics}", {**result, "max_abs_difference": differences}, threads=threads)


if __name__ == "__main__":
    main()
