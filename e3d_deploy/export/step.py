"""The trained model as one step on plain tensors, rewritten for inference engines.

model.py knows nothing of export: what an engine wants otherwise is put in the place of its modules here,
each with a test that both compute the same.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.model import E3DLSTM, Convolution, State, to_entry


class FlatConvolution(nn.Module):
    """A (2, k, k) convolution over a window of two frames as 2D convolutions, same weights.

    With zeros behind the window, slot 0 sees both frames and slot 1 itself alone: one 2D convolution
    over the channels of both, one over slot 1. Engines have fast kernels for 2D, and a quarter of the
    products, those with the zeros, is gone. See benchmarks/step.py for what it gains.
    """

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias  # [M, N, 2, k, k], [M]
        self.padding = convolution.padding[1:]

    def forward(self, window: Tensor) -> Tensor:
        both = F.conv2d(window.flatten(1, 2), self.weight.flatten(1, 2), self.bias, padding=self.padding)
        last = F.conv2d(window[:, :, 1], self.weight[:, :, 0], self.bias, padding=self.padding)
        return torch.stack([both, last], dim=2)


class PlainRecall(nn.Module):
    """`Recall` as matrix products, on entries already joined and with a bias that hides empty slots.

    No shape in it depends on the number of entries, so one exported step serves histories of any length.
    TensorRT-RTX has no fused attention for float32.
    """

    def forward(self, recall_gate: Tensor, history: tuple[Tensor, Tensor]) -> Tensor:
        keys, key_bias = history  # [B, S·D·h·w, N], [B, 1, S·D·h·w]
        scores = to_entry(recall_gate) @ keys.transpose(1, 2) + key_bias  # [B, D·h·w, S·D·h·w]
        return (scores.softmax(dim=-1) @ keys).transpose(1, 2).reshape(recall_gate.shape)


class PlainNorm(nn.Module):
    """The norm as sums over the window and grid first, then over channels.

    ONNX Runtime's InstanceNormalization and LayerNormalization add up 200,000 numbers in one go and lose a
    digit to it: on a full-size layer 2e-5 from the exact result, where this is at 2.5e-6 and PyTorch at 1e-6.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps  # [N], [N]

    def forward(self, x: Tensor) -> Tensor:
        centred = x - self._mean(x)
        # √(variance + ε) with ε taken out: the exporter's optimiser takes x + 1e-12 for x, and at the first step,
        # where the variance is 0, that is a division by 0. Held by test_first_step_of_zero_states.
        deviation = self.eps**0.5 * torch.sqrt(self._mean(centred * centred) / self.eps + 1.0)
        scale: Tensor = self.weight.view(-1, 1, 1, 1) / deviation
        return centred * scale + self.bias.view(-1, 1, 1, 1)

    @staticmethod
    def _mean(x: Tensor) -> Tensor:
        return x.mean((2, 3, 4), keepdim=True).mean(1, keepdim=True)


class Step(nn.Module):
    """One step of the network on named tensors.

    Takes `frame`, `key_bias` and the tensors of `inputs`, gives `prediction` and those of `outputs`.
    The history of a layer comes in as `keys.l` [B, S·D·h·w, N] and what is to be added to it goes out
    as `entry.l` [B, D·h·w, N]; how they are kept is the composer's matter.
    """

    def __init__(self, model: E3DLSTM) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for cell in self.model.cells:
            cell.recall = PlainRecall()
            for name, module in list(cell.named_children()):
                if isinstance(module, Convolution) and model.config.window_length == 2:
                    setattr(cell, name, FlatConvolution(module))
                elif isinstance(module, nn.GroupNorm):
                    setattr(cell, name, PlainNorm(module))
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
        state = State(tensors[L : 2 * L], tensors[:L], history, *tensors[3 * L :])  # type: ignore[arg-type]
        prediction, following = self.model.advance(frame, state)
        entries = (to_entry(cell) for cell in following.cell)
        return prediction, *following.cell, *following.hidden, *entries, following.memory, following.window


def example(config: ModelConfig, batch: int) -> tuple[Tensor, ...]:
    """Tensors of the shapes that `Step` takes, with a full history."""
    state = {tensor.name: torch.zeros(tensor.shape) for tensor in contract.states(config, batch)}
    layers = range(len(config.hidden))
    return (
        torch.zeros(contract.frame(config, batch).shape),
        torch.zeros(batch, 1, config.history_length * config.positions),
        *(state[f"cell.{layer}"] for layer in layers),
        *(state[f"hidden.{layer}"] for layer in layers),
        *(state[f"history.{layer}"].flatten(1, 2) for layer in layers),
        state["memory"],
        state["window"],
    )
