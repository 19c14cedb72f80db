"""The composed clip graph against torch.onnx.export of the unrolled network, both on ONNX Runtime.

    python -m benchmarks.clip [--size full|demo] [--threads 1]

Both 10→10, with the history as it grows. Says also how long each took to make, and their nodes.
"""

import tempfile
import time
import warnings
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.common import in_turn, save
from e3d_deploy import checkpoint
from e3d_deploy.config import ModelConfig
from e3d_deploy.demo.tour import MODEL
from e3d_deploy.export.compose import clip_graph
from e3d_deploy.export.to_onnx import export_core
from e3d_deploy.model import E3DLSTM

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


@click.command()
@click.option("--size", type=click.Choice(["full", "demo"]), default="demo", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(size: str, threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = (checkpoint.load(MODEL) if size == "demo" else E3DLSTM(ModelConfig())).eval()
    context = torch.rand(1, CONTEXT, model.config.channels, *model.config.image_size)
    made: dict[str, dict[str, float]] = {}
    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name / "clip.onnx" for name in ("naive", "ours")}
        for name, path in paths.items():
            path.parent.mkdir()
            started = time.perf_counter()
            if name == "naive":
                naive_export(model, context, path)
            else:
                core = export_core(model, 1)
                onnx.save(clip_graph(core, model.config, 1, context_length=CONTEXT, horizon=HORIZON), path)
            made[name] = {"seconds": round(time.perf_counter() - started, 1)}
            made[name]["nodes"] = len(onnx.load(path, load_external_data=False).graph.node)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            sessions[name] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        inputs = {name: session.get_inputs()[0].name for name, session in sessions.items()}
        answers = {name: session.run(None, {inputs[name]: context.numpy()})[0] for name, session in sessions.items()}
        sides = {
            name: lambda name=name, session=session: session.run(None, {inputs[name]: context.numpy()})
            for name, session in sessions.items()
        }
        timed = in_turn(sides, rounds=rounds, calls=3)  # type: ignore[arg-type]
    difference = float(np.abs(answers["naive"] - answers["ours"]).max())
    result = {"what": "clip graph 10→10", "size": size, "made": made, "sides": timed, "max_abs_difference": difference}
    save(f"clip_{size}_{threads}", result, threads=threads)


if __name__ == "__main__":
    main()
