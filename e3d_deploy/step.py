"""The trained model as one step on plain tensors, and rewrites of its modules for PyTorch's own backends.

model.py knows nothing of them: what runs faster is put in the place of its modules here, each with a test that both
compute the same. export/graph/variants.py has the graphs for other engines.
"""

import copy
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e3d_deploy import contract
from e3d_deploy.config import ModelConfig, Semantics
from e3d_deploy.model import E3DLSTM, Convolution, OpenSTLConvolution, State, from_entry, to_entry


class FlatConvolution(nn.Module):
    """A (2, k, k) convolution over a window as 2D convolutions, one per frame of the window, same weights.

    With zeros behind the window, each slot sees two frames and the last slot itself alone: one 2D convolution
    over the channels of both, and for the last slot one over its own. Engines have fast kernels for 2D, and the
    products with zeros are gone. Nor is there a pad on one side alone, which cuDNN has no kernel for
    (microsoft/onnxruntime#26274). docs/graphs.md has the gain.
    """

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias  # [M, N, 2, k, k], [M]
        self.padding = convolution.padding[1:]

    def forward(self, window: Tensor) -> Tensor:
        D = window.shape[2]
        both = self.weight.flatten(1, 2)
        slots = [
            F.conv2d(window[:, :, slot : slot + 2].flatten(1, 2), both, self.bias, padding=self.padding)
            for slot in range(D - 1)
        ]
        last = F.conv2d(window[:, :, D - 1], self.weight[:, :, 0], self.bias, padding=self.padding)
        return torch.stack([*slots, last], dim=2)


class FlatOpenSTLConvolution(nn.Module):
    """OpenSTL's (2, k, k) convolution as one 2D convolution over the channels of both frames, same weights.

    Its one result is brought to the size of the grid in 2D and then stands in both slots.
    """

    def __init__(self, convolution: OpenSTLConvolution) -> None:
        super().__init__()
        self.weight = convolution.weight  # [M, N, 2, k, k]
        self.stride, self.padding = convolution.stride[1:], convolution.padding[1:]

    def forward(self, window: Tensor) -> Tensor:
        once = F.conv2d(window.flatten(1, 2), self.weight.flatten(1, 2), stride=self.stride, padding=self.padding)
        if self.stride != (1, 1):
            once = F.interpolate(once, size=window.shape[3:])
        return once[:, :, None].expand(-1, -1, 2, -1, -1)


class PlainRecall(nn.Module):
    """`Recall` as matrix products, on entries already joined and with a bias that hides empty slots.

    No shape in it depends on the number of entries, so one exported step serves histories of any length.
    TensorRT-RTX has no fused attention for float32.
    """

    def __init__(self, semantics: Semantics) -> None:
        super().__init__()
        self.semantics = semantics

    def forward(self, recall_gate: Tensor, history: tuple[Tensor, Tensor]) -> Tensor:
        keys, key_bias = history  # [B, S·D·h·w, N], [B, 1, S·D·h·w]
        queries = to_entry(recall_gate, self.semantics)  # [B, D·h·w, N]
        scores = queries @ keys.transpose(1, 2) + key_bias  # [B, D·h·w, S·D·h·w]
        return from_entry(scores.softmax(dim=-1) @ keys, recall_gate, self.semantics)


class PlainNorm(nn.Module):
    """The norm as sums over the window and grid first, then over channels.

    ONNX Runtime's InstanceNormalization and LayerNormalization add up 200,000 numbers in one go and lose a
    digit to it: on a full-size layer 2e-5 from the exact result, where this is at 2.5e-6 and PyTorch at 1e-6.
    """

    def __init__(self, norm: nn.GroupNorm | nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps  # [N], or [N, D, h, w] of a LayerNorm
        self.affine_shape = (-1, 1, 1, 1) if self.weight.ndim == 1 else self.weight.shape

    def forward(self, x: Tensor) -> Tensor:
        centred = x - self._mean(x)
        # √(variance + ε) with ε taken out: the exporter's optimiser takes x + 1e-12 for x, and at the first step,
        # where the variance is 0, that is a division by 0. Held by test_first_step_of_zero_states.
        deviation = self.eps**0.5 * torch.sqrt(self._mean(centred * centred) / self.eps + 1.0)
        scale: Tensor = self.weight.view(self.affine_shape) / deviation
        return centred * scale + self.bias.view(self.affine_shape)

    @staticmethod
    def _mean(x: Tensor) -> Tensor:
        return x.mean((2, 3, 4), keepdim=True).mean(1, keepdim=True)


class Constant(nn.Module):
    """Gives the same, whatever comes in."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, _: Tensor) -> Tensor:
        return self.value


Rewrite = Callable[[Any, ModelConfig], None]
"""Puts modules that compute the same in the place of a cell's own."""


@torch.no_grad()
def fold_frozen_memory(cell: Any, config: ModelConfig) -> None:
    """Put the gates of a memory that stays zero, which never change, in the place of its convolution and norm."""
    if config.semantics == "paper":
        return
    convolution, norm = cell.memory_conv, cell.memory_norm
    zeros = convolution.weight.new_zeros(1, convolution.in_channels, config.window_length, *config.grid_size)
    gates = norm(convolution(zeros))  # [1, 4N, D, h, w]
    if not isinstance(norm, nn.LayerNorm):  # OpenSTL's alone tells positions apart; one stands for all
        gates = gates[:, :, :1, :1, :1].clone()
    cell.memory_conv, cell.memory_norm = Constant(gates), nn.Identity()


def flatten_convolutions(cell: Any, _: ModelConfig) -> None:
    """Put 2D convolutions in the place of those over a window."""
    for name, module in list(cell.named_children()):
        if isinstance(module, OpenSTLConvolution):
            setattr(cell, name, FlatOpenSTLConvolution(module))
        elif isinstance(module, Convolution):
            setattr(cell, name, FlatConvolution(module))


def split_norms(cell: Any, _: ModelConfig) -> None:
    """Put norms that sum in two stages in the place of those that sum in one."""
    for name, module in list(cell.named_children()):
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            setattr(cell, name, PlainNorm(module))


REWRITES: dict[str, Rewrite] = {
    "frozen-memory": fold_frozen_memory,
    "conv2d": flatten_convolutions,
    "norms": split_norms,
}
"""In the order in which they are made."""


class Step(nn.Module):
    """One step of the network on named tensors.

    Takes `frame`, `key_bias` and the tensors of `inputs`, gives `prediction` and those of `outputs`.
    The history of a layer comes in as `keys.l` [B, S·D·h·w, N] and what is to be added to it goes out
    as `entry.l` [B, D·h·w, N]; how they are kept is the composer's matter.

    Args:
        rewrites: names in `REWRITES`.
    """

    def __init__(self, model: E3DLSTM, rewrites: Collection[str] = tuple(REWRITES)) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for cell in self.model.cells:
            cell.recall = PlainRecall(model.config.semantics)
            for name, rewrite in REWRITES.items():
                if name in rewrites:
                    rewrite(cell, model.config)
        layers = range(len(model.config.hidden))
        per_layer = [f"{kind}.{layer}" for kind in ("cell", "hidden") for layer in layers]
        self.inputs = [*per_layer, *(f"keys.{layer}" for layer in layers), "memory", "window"]
        self.outputs = [
            *(contract.NEXT + name for name in per_layer),
            *(f"entry.{layer}" for layer in layers),
            contract.NEXT + "memory",
            contract.NEXT + "window",
        ]

    def forward(self, frame: Tensor, key_bias: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        L = len(self.model.config.hidden)
        history = tuple((keys, key_bias) for keys in tensors[2 * L : 3 * L])
        state = State(tensors[L : 2 * L], tensors[:L], history, *tensors[3 * L :])
        prediction, following = self.model.advance(frame, state)
        entries = (to_entry(cell, self.model.config.semantics) for cell in following.cell)
        return prediction, *following.cell, *following.hidden, *entries, following.memory, following.window


def example(config: ModelConfig, batch: int) -> tuple[Tensor, ...]:
    """Tensors of the shapes that `Step` takes, with a full history."""
    zeros = partial(torch.zeros, dtype=torch.float32)  # whichever default the program has set
    state = {tensor.name: zeros(tensor.shape) for tensor in contract.states(config, batch)}
    layers = range(len(config.hidden))
    return (
        zeros(contract.frame(config, batch).shape),
        zeros((batch, 1, config.history_length * config.positions)),
        *(state[f"cell.{layer}"] for layer in layers),
        *(state[f"hidden.{layer}"] for layer in layers),
        *(state[f"history.{layer}"].flatten(1, 2) for layer in layers),
        state["memory"],
        state["window"],
    )
