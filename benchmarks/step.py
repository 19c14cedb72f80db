"""The exported step against a naive export of the same step, both on ONNX Runtime, and PyTorch eager.

    python -m benchmarks.step [--size full|demo] [--semantics paper|google] [--threads 1]

Prediction before it was measured: 1.4 to 1.8 times the naive export, as its Conv3d nodes stay plain where
the Conv2d nodes of ours get blocked kernels, and a quarter of the products is gone.
"""

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.common import in_turn, save
from e3d_deploy import checkpoint, contract
from e3d_deploy.config import ModelConfig, Semantics
from e3d_deploy.demo.tour import MODEL
from e3d_deploy.export.bundle import export
from e3d_deploy.export.torch_backend import TorchBackend
from e3d_deploy.model import E3DLSTM, Recall, State, from_entry, to_entry
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backend import initial_arrays
from e3d_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend


class MaskedRecall(Recall):
    """Recall over a ring, its empty slots masked."""

    def forward(self, recall_gate: Tensor, history: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        ring, empty = history  # [B, K, D·h·w, N], bool [B, K]
        keys = ring.flatten(1, 2)
        scores = to_entry(recall_gate, self.semantics) @ keys.transpose(1, 2)
        masked = scores.masked_fill(empty.repeat_interleave(ring.shape[2], dim=1)[:, None], -torch.inf)
        return from_entry(masked.softmax(-1) @ keys, recall_gate, self.semantics)


class NaiveStep(nn.Module):
    """The step as one would write it for torch.onnx.export: the model as it is, and a ring around it."""

    def __init__(self, model: E3DLSTM) -> None:
        super().__init__()
        self.model = model
        for cell in model.cells:
            cell.recall = MaskedRecall(model.config.semantics)

    def forward(self, frame: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        config = self.model.config
        names = [tensor.name for tensor in contract.states(config)]
        state = dict(zip(names, states, strict=True))
        layers = range(len(config.hidden))
        slots = torch.arange(config.history_length)
        empty = slots >= state["written"][:, None]
        history = tuple((state[f"history.{layer}"], empty) for layer in layers)
        prediction, following = self.model.advance(
            frame,
            State(
                tuple(state[f"hidden.{layer}"] for layer in layers),
                tuple(state[f"cell.{layer}"] for layer in layers),
                history,  # type: ignore[arg-type]
                state["memory"],
                state["window"],
            ),
        )
        here = (slots == state["written"][:, None] % config.history_length)[:, :, None, None]
        more = state["written"] + 1
        out = {
            "memory": following.memory,
            "window": following.window,
            "written": torch.where(more >= 2 * config.history_length, more - config.history_length, more),
        }
        for layer in layers:
            out[f"hidden.{layer}"], out[f"cell.{layer}"] = following.hidden[layer], following.cell[layer]
            entry = to_entry(following.cell[layer], config.semantics)[:, None]
            out[f"history.{layer}"] = torch.where(here, entry, state[f"history.{layer}"])
        return prediction, *(out[name] for name in names)


def naive_export(model: E3DLSTM, path: Path) -> None:
    """torch.onnx.export of the step, with nothing done to it."""
    arrays = initial_arrays(model.config, 1)
    names = [tensor.name for tensor in contract.states(model.config)]
    frame = torch.zeros(contract.frame(model.config).shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            NaiveStep(model).eval(),
            (frame, *(torch.from_numpy(arrays[name]) for name in names)),
            str(path),
            input_names=[contract.FRAME, *names],
            output_names=[contract.PREDICTION, *(contract.NEXT + name for name in names)],
            opset_version=20,
            dynamo=True,
            verbose=False,
        )


@click.command()
@click.option("--size", type=click.Choice(["full", "demo"]), default="full", show_default=True)
@click.option("--semantics", type=click.Choice(["paper", "google"]), default="paper", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=7, show_default=True)
def main(size: str, semantics: Semantics, threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = MODEL
        if size == "full" or semantics != "paper":
            config = ModelConfig() if size == "full" else checkpoint.load(MODEL).config
            source = folder / "full.safetensors"
            checkpoint.save(E3DLSTM(replace(config, semantics=semantics)), source)
        bundle = Bundle.open(export(source, folder / "ours.e3d"))
        ours, eager = OnnxRuntimeBackend(bundle, threads=threads), TorchBackend.of_bundle(bundle, threads=threads)
        naive_export(checkpoint.load(source), folder / "naive.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        naive = onnxruntime.InferenceSession(folder / "naive.onnx", options, providers=["CPUExecutionProvider"])

        # A full ring, as after the first seconds of a video.
        frames = bundle.reference()["frames"][:, None]
        state = ours.initial_state()
        eager_state = eager.initial_state()
        for count in range(bundle.config.history_length + 1):
            frame = frames[count % len(frames)]
            _, state = ours.step(frame, state)
            _, eager_state = eager.step(frame, eager_state)
        frame = frames[0]
        feed = {contract.FRAME: frame, **state}
        answers = [
            naive.run([contract.PREDICTION], feed)[0],
            ours.step(frame, state)[0],
            eager.step(frame, eager_state)[0],
        ]
        result = in_turn(
            {
                "naive": lambda: naive.run(None, feed),
                "ours": lambda: ours.step(frame, state),
                "torch_eager": lambda: eager.step(frame, eager_state),
            },
            rounds=rounds,
            calls=10,
        )
        differences = {
            "naive": float(np.abs(answers[0] - answers[2]).max()),
            "ours": float(np.abs(answers[1] - answers[2]).max()),
        }
    what = {"what": "one step, ring full, onnxruntime CPU", "size": size, "semantics": semantics, "sides": result}
    memory = "" if semantics == "paper" else f"_{semantics}"
    save(f"step_{size}{memory}_{threads}", {**what, "max_abs_difference_from_torch": differences}, threads=threads)


if __name__ == "__main__":
    main()
