"""Modules that PyTorch exports as one node each, for operations that every library runs fastest in a different form.

The nodes belong to the domain `e3d_deploy`, which no library supports; `variants.expand` replaces them with standard
nodes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from e3d_deploy.config import Semantics
from e3d_deploy.export.graph.expansion import DOMAIN, NORM, RECALL, WINDOW_CONVOLUTION
from e3d_deploy.model import Convolution, OpenSTLConvolution, from_entry, to_entry
from e3d_deploy.step import PlainRecall


class _WindowConvolution(nn.Module):
    """Convolution over the window: a `model.Convolution` or a `model.OpenSTLConvolution`."""

    def __init__(self, convolution: Convolution | OpenSTLConvolution) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias  # [M, N, 2, k, k], [M]
        self.repeated = isinstance(convolution, OpenSTLConvolution)
        self.stride, self.padding = convolution.stride[1], convolution.padding[1]

    def forward(self, window: Tensor) -> Tensor:
        B, _, D, h, w = window.shape
        inputs = [window, self.weight] if self.bias is None else [window, self.weight, self.bias]
        attributes = {
            "window": D,
            "grid": [h, w],
            "stride": self.stride,
            "padding": self.padding,
            "repeated": int(self.repeated),
        }
        return _node(WINDOW_CONVOLUTION, inputs, attributes, (B, len(self.weight), D, h, w))


class _Norm(nn.Module):
    """Norm over channels, window and grid, with weights per channel [N] or, for LayerNorm, per element [N, D, h, w]."""

    def __init__(self, norm: nn.GroupNorm | nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        attributes = {"epsilon": self.eps, "shape": [int(side) for side in x.shape[1:]]}
        return _node(NORM, [x, self.weight, self.bias], attributes, x.shape)


class _Recall(nn.Module):
    """Recall on joined entries with a bias on the scores, as in `step.PlainRecall`."""

    def __init__(self, semantics: Semantics) -> None:
        super().__init__()
        self.semantics = semantics

    def forward(self, recall_gate: Tensor, history: tuple[Tensor, Tensor]) -> Tensor:
        queries = to_entry(recall_gate, self.semantics)  # [B, D·h·w, N]
        recalled = _node(RECALL, [queries, *history], {}, queries.shape)
        return from_entry(recalled, recall_gate, self.semantics)


def name_operations(cell: Any) -> None:
    """Replace the convolutions, norms and recall of a cell with modules that PyTorch exports as one node."""
    for name, module in list(cell.named_children()):
        if isinstance(module, Convolution | OpenSTLConvolution):
            setattr(cell, name, _WindowConvolution(module))
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            setattr(cell, name, _Norm(module))
        elif isinstance(module, PlainRecall):
            setattr(cell, name, _Recall(module.semantics))


def _node(kind: str, inputs: list[Tensor], attributes: dict[str, Any], shape: Any) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{kind}", inputs, attributes, dtype=inputs[0].dtype, shape=shape, version=1
    )
