"""The trained model as one step on plain tensors, and rewrites of its modules for PyTorch's own backends.

model.py stays close to the paper. The rewrites replace its modules with faster ones, and tests check that every
replacement computes the same result. export/graph/variants.py writes the graphs for libraries that run ONNX.
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
    """Convolution (2, k, k) over a window, computed as D 2D convolutions with the same weights.

    Output d depends on frames d and d + 1 of the window and is a 2D convolution over the channels of both. Only zeros
    follow the window, so the last output is a 2D convolution over the channels of the last frame. Engines have fast
    kernels for 2D convolutions, and nothing is multiplied by the zeros. The padding is the same on both sides, because
    cuDNN has no kernel for padding on one side (microsoft/onnxruntime#26274). docs/graphs.md reports the gain.
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
    """OpenSTL's (2, k, k) convolution over a window, computed as one 2D convolution with the same weights.

    The 2D convolution runs over the channels of both frames. Its result is resized to the grid by nearest neighbour
    and repeated for both frames of the window.
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
    """`Recall` as matrix products, on joined entries and with a bias on the scores that hides empty slots.

    No shape in the module depends on the number of entries, so one exported step serves histories of any length.
    Matrix products also run on TensorRT-RTX, which has no fused attention for float32.
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
    """Norm computed from means over window and grid first, then over channels.

    ONNX Runtime's InstanceNormalization and LayerNormalization sum 200,000 numbers in one pass and lose a digit. On a
    full-size layer they are off by 2e-5 from the exact result, this module by 2.5e-6, and PyTorch's norm by 1e-6.
    """

    def __init__(self, norm: nn.GroupNorm | nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps  # [N], or [N, D, h, w] of a LayerNorm
        self.affine_shape = (-1, 1, 1, 1) if self.weight.ndim == 1 else self.weight.shape

    def forward(self, x: Tensor) -> Tensor:
        centred = x - self._mean(x)
        # √(variance + ε) with √ε factored out. The exporter's optimizer replaces x + 1e-12 with x, and the first step,
        # where the variance is 0, would then divide by 0. test_first_step_of_zero_states checks this.
        deviation = self.eps**0.5 * torch.sqrt(self._mean(centred * centred) / self.eps + 1.0)
        scale: Tensor = self.weight.view(self.affine_shape) / deviation
        return centred * scale + self.bias.view(self.affine_shape)

    @staticmethod
    def _mean(x: Tensor) -> Tensor:
        return x.mean((2, 3, 4), keepdim=True).mean(1, keepdim=True)


class Constant(nn.Module):
    """Module that returns the same tensor for any input."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, _: Tensor) -> Tensor:
        return self.value


Rewrite = Callable[[Any, ModelConfig], None]
"""Function that replaces modules of a cell with modules that compute the same result."""


@torch.no_grad()
def fold_frozen_memory(cell: Any, config: ModelConfig) -> None:
    """Replace the convolution and norm of a memory that stays zero with the constant gates that they compute.

    With `paper` semantics the memory changes, so the cell is not rewritten.
    """
    if config.semantics == "paper":
        return
    convolution, norm = cell.memory_conv, cell.memory_norm
    zeros = convolution.weight.new_zeros(1, convolution.in_channels, config.window_length, *config.grid_size)
    gates = norm(convolution(zeros))  # [1, 4N, D, h, w]
    # Only OpenSTL's LayerNorm has weights per position; with other norms all positions have the same gates.
    if not isinstance(norm, nn.LayerNorm):
        gates = gates[:, :, :1, :1, :1].clone()
    cell.memory_conv, cell.memory_norm = Constant(gates), nn.Identity()


def flatten_convolutions(cell: Any, _: ModelConfig) -> None:
    """Replace convolutions over a window with 2D convolutions."""
    for name, module in list(cell.named_children()):
        if isinstance(module, OpenSTLConvolution):
            setattr(cell, name, FlatOpenSTLConvolution(module))
        elif isinstance(module, Convolution):
            setattr(cell, name, FlatConvolution(module))


def split_norms(cell: Any, _: ModelConfig) -> None:
    """Replace norms with norms that compute their means in two stages."""
    for name, module in list(cell.named_children()):
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            setattr(cell, name, PlainNorm(module))


REWRITES: dict[str, Rewrite] = {
    "frozen-memory": fold_frozen_memory,
    "conv2d": flatten_convolutions,
    "norms": split_norms,
}
"""Rewrites by name, in the order in which they are applied."""


class Step(nn.Module):
    """One step of the network on named tensors.

    The inputs are `frame`, `key_bias` and the tensors named in `inputs`; the outputs are `prediction` and the tensors
    named in `outputs`. `keys.l` [B, S·D·h·w, N] is the history of layer l, with S entries. `entry.l` [B, D·h·w, N] is
    the entry that this step adds to it; the graph or the backend around the step stores it.

    Args:
        rewrites: names of the `REWRITES` to apply to each cell.
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
    """Return zeros in the shapes that `Step` takes, with a full history."""
    zeros = partial(torch.zeros, dtype=torch.float32)  # the program may have changed PyTorch's default type
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
