"""The composed clip graph against torch.onnx.export of the unrolled network.

    python -m benchmarks.clip [--size full|demo] [--threads 1] [--keep FOLDER] [--builds 1]

Both 10→10, with the history as it grows. Says how long each took to make, its nodes, and how fast it is in ONNX
Runtime; with --builds, how long TensorRT-RTX takes to build each and how large its plan is, in place of the times; ours
gives the states after the clip too, so one without them stands beside. The naive export takes many minutes: --keep
leaves the graphs in a folder and takes them from there.
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

from benchmarks.common import compare, save
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
    """The forecast alone, as one would export it."""

    def __init__(self, model: E3DLSTM) -> None:
        super().__init__()
        self.model = model

    def forward(self, context: Tensor) -> Tensor:
        forecast: Tensor = self.model(context, HORIZON)[:, -HORIZON:]
        return forecast


def naive_export(model: E3DLSTM, context: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Unrolled(model).eval(), (context,), str(path), opset_version=20, dynamo=True, verbose=False)


def our_export(model: E3DLSTM, path: Path, variant: Variant, *, states: bool) -> None:
    core = expand(export_core(model, 1), variant)
    graph = clip_graph(core, model.config, 1, context_length=CONTEXT, horizon=HORIZON)
    if not states:
        del graph.graph.output[1:]
    onnx.save(graph, path)


def make(name: str, model: E3DLSTM, context: Tensor, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The graph of a side, and what making it took; taken from the folder if it is there."""
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
    """Times in ONNX Runtime, the sides in turn, and how far they are apart."""
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
    """Seconds and bytes of the TensorRT-RTX plans, the sides in turn; `rounds` is how often each was built."""
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
@click.option("--size", type=click.Choice(["full", "demo"]), default="demo", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the graphs, taken from there if they are.")
@click.option("--builds", default=0, help="How often to build each with TensorRT-RTX.")
def main(size: str, threads: int, rounds: int, keep: Path | None, builds: int) -> None:
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
