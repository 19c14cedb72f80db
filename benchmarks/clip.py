"""Compare the clip graph that this package composes with torch.onnx.export of the unrolled network (naive).

    python -m benchmarks.clip [--size full|demo] [--threads 1] [--keep FOLDER] [--builds 1]

Both graphs forecast 10 frames from 10, with a history that grows. Measures the time to make each graph, its number of
nodes, and its time in ONNX Runtime. With --builds, TensorRT-RTX builds the graphs in place of ONNX Runtime, and the
build times and the sizes of the plans are measured. Our graph also returns the states after the clip, so a graph
without them is built too. The naive export takes many minutes; --keep stores the graphs in a folder and reuses them.

Writes benchmarks/results/clip_SIZE_THREADS.json, or clip_builds_SIZE.json with --builds.
"""

import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from torch import Tensor, nn

from benchmarks.common import compare, save, size_option
from e3d_deploy import checkpoint
from e3d_deploy.config import EngineConfig, ModelConfig
from e3d_deploy.demo.exhibits import MODEL
from e3d_deploy.export.engines.plan import build_plan
from e3d_deploy.export.graph.compose import clip_graph
from e3d_deploy.export.graph.to_onnx import export_core
from e3d_deploy.export.graph.variants import VARIANTS, Variant, expand
from e3d_deploy.model import E3DLSTM
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.tensorrt_library import library

CONTEXT = HORIZON = 10


class Unrolled(nn.Module):
    """Network whose only output is the forecast, for a naive export."""

    def __init__(self, model: E3DLSTM) -> None:
        super().__init__()
        self.model = model

    def forward(self, context: Tensor) -> Tensor:
        forecast: Tensor = self.model(context, HORIZON)[:, -HORIZON:]
        return forecast


def naive_export(model: E3DLSTM, context: Tensor, path: Path) -> None:
    """Write the unrolled network with torch.onnx.export."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Unrolled(model).eval(), (context,), str(path), opset_version=20, dynamo=True, verbose=False)


def our_export(model: E3DLSTM, path: Path, variant: Variant, *, states: bool) -> None:
    """Write our clip graph, with or without the states after the clip as outputs."""
    core = expand(export_core(model, 1), variant)
    graph = clip_graph(core, model.config, 1, context_length=CONTEXT, horizon=HORIZON)
    if not states:
        del graph.graph.output[1:]
    onnx.save(graph, path)


def make(name: str, model: E3DLSTM, context: Tensor, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the graph of a side, with the time to make it (s) and its number of nodes; reuse the graph in `folder`."""
    path, about = folder / name / "clip.onnx", folder / name / "made.json"
    if not about.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        if name == "naive":
            naive_export(model, context, path)
        else:
            variant = VARIANTS["tensorrt" if "for gpu" in name else "plain" if "for all" in name else "onnxruntime"]
            our_export(model, path, variant, states="forecast alone" not in name)
        seconds = round(time.perf_counter() - started, 1)
        nodes = len(onnx.load(path, load_external_data=False).graph.node)
        about.write_text(json.dumps({"seconds": seconds, "nodes": nodes}))
    return path, json.loads(about.read_text())


def run(paths: dict[str, Path], context: Tensor, threads: int, rounds: int) -> dict[str, Any]:
    """Time the graphs in ONNX Runtime in turn; return the times and the largest difference between their forecasts."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sides, answers = {}, {}
    for name, path in paths.items():
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: context.numpy()}
        sides[name] = lambda session=session, feed=feed: session.run(None, feed)[0]
        answers[name] = sides[name]()
    timed = compare(sides, rounds=rounds, calls=3)
    return {"sides": timed, "max_abs_difference": float(np.abs(answers["naive"] - answers["ours"]).max())}


def build(paths: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Build TensorRT-RTX plans of the graphs in turn; return the build times (s), plan sizes and numbers of builds."""
    trt = library("tensorrt-rtx")

    builds: dict[str, Any] = {name: {"seconds": [], "plan_bytes": 0} for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            started = time.perf_counter()
            plan = build_plan(trt, path, EngineConfig())
            builds[name]["seconds"].append(round(time.perf_counter() - started, 1))
            builds[name]["plan_bytes"] = len(plan)
            click.echo(f"{name}: {builds[name]}", err=True)
    counts = {name: len(one["seconds"]) for name, one in builds.items()}
    return {"builder": trt.__version__, "rounds": counts, "builds": builds}


@click.command()
@size_option("demo")
@click.option("--threads", default=1, show_default=True, help="Number of threads.")
@click.option("--rounds", default=5, show_default=True, help="Number of rounds; each side is timed once per round.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder in which the graphs are kept and reused.")
@click.option("--builds", default=0, help="Number of TensorRT-RTX builds of each graph; 0 times ONNX Runtime instead.")
def main(size: str, threads: int, rounds: int, keep: Path | None, builds: int) -> None:
    """Compare the composed clip graph with a naive export."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = (checkpoint.load(MODEL) if size == "demo" else E3DLSTM(ModelConfig())).eval()
    context = torch.rand(1, CONTEXT, model.config.channels, *model.config.image_size)
    ours = ["ours, for gpu, forecast alone", "ours, for gpu", "ours, for all"] if builds else ["ours"]
    names = ["naive", *ours]
    with tempfile.TemporaryDirectory() as temporary:
        sides = {name: make(name, model, context, keep or Path(temporary)) for name in names}
        paths = {name: path for name, (path, _) in sides.items()}
        result = {"what": "clip graph 10→10", "size": size, "made": {name: about for name, (_, about) in sides.items()}}
        if builds:
            save(f"clip_builds_{size}", result | build(paths, builds))
        else:
            save(f"clip_{size}_{threads}", result | run(paths, context, threads, rounds), threads=threads)


if __name__ == "__main__":
    main()
