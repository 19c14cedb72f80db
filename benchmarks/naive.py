"""Peers of this package: a plain export of the network's step, and ways to run it without the package's runtime."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from e3d_deploy import contract
from e3d_deploy.model import E3DLSTM, Recall, State, from_entry, to_entry
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.runtime.backends.protocol import initial_arrays

Arrays = dict[str, NDArray[Any]]
Step = Callable[[NDArray[np.float32], Any], tuple[NDArray[np.float32], Any]]
"""Function that takes a frame and a state, and returns the prediction and the next state."""


class MaskedRecall(Recall):
    """Recall over a ring whose empty slots are masked."""

    def forward(self, recall_gate: Tensor, history: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        ring, empty = history  # [B, K, D·h·w, N], bool [B, K]
        keys = ring.flatten(1, 2)
        scores = to_entry(recall_gate, self.semantics) @ keys.transpose(1, 2)
        masked = scores.masked_fill(empty.repeat_interleave(ring.shape[2], dim=1)[:, None], -torch.inf)
        return from_entry(masked.softmax(-1) @ keys, recall_gate, self.semantics)


class NaiveStep(nn.Module):
    """Step for torch.onnx.export without any optimisation: the unchanged model, and a ring for its history."""

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
    """Write the step with torch.onnx.export, without any optimisation."""
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


def naive_onnxruntime(file: Path, threads: int) -> Step:
    """Open a naive export in ONNX Runtime; return its step."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def step(frame: NDArray[np.float32], state: Arrays) -> tuple[NDArray[np.float32], Arrays]:
        return split(dict(zip(names, session.run(names, {contract.FRAME: frame, **state}), strict=True)))

    return step


def naive_openvino(file: Path, device: str = "CPU", **settings: Any) -> Step:
    """Compile a naive export in OpenVINO with its settings; return its step."""
    compiled = openvino.Core().compile_model(file, device, settings)

    def step(frame: NDArray[np.float32], state: Arrays) -> tuple[NDArray[np.float32], Arrays]:
        found = compiled({contract.FRAME: frame, **state})
        return split({port.any_name: value for port, value in found.items()})

    return step


def openvino_has_bf16() -> bool:
    """Return True if OpenVINO computes in bfloat16 on this processor."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def autocast_torch(model: E3DLSTM) -> Step:
    """Return PyTorch's eager step with autocast to bfloat16; its states are the model's `State`."""

    @torch.inference_mode()
    def step(frame: NDArray[np.float32], state: State) -> tuple[NDArray[np.float32], State]:
        with torch.autocast("cpu", torch.bfloat16):
            prediction, following = model.step(torch.from_numpy(frame), state)
        return prediction.float().numpy(), following

    return step


def compiled_torch(model: E3DLSTM, *, autocast: bool) -> Step:
    """Return the naive step compiled by torch.compile, in float32 or with autocast to bfloat16."""
    module = torch.compile(NaiveStep(model).eval())
    names = [tensor.name for tensor in contract.states(model.config)]

    @torch.inference_mode()
    def step(frame: NDArray[np.float32], state: Arrays) -> tuple[NDArray[np.float32], Arrays]:
        tensors = [torch.from_numpy(state[name]) for name in names]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            prediction, *states = module(torch.from_numpy(frame), *tensors)
        arrays = (one.float() if one.is_floating_point() else one for one in states)
        return prediction.float().numpy(), {name: one.numpy() for name, one in zip(names, arrays, strict=True)}

    return step


def split(outputs: Arrays) -> tuple[NDArray[np.float32], Arrays]:
    """Split the outputs of a step into the prediction and the next states, named like the inputs."""
    prediction = outputs.pop(contract.PREDICTION)
    return prediction, {name.removeprefix(contract.NEXT): value for name, value in outputs.items()}
