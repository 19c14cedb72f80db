"""The exported step in the form that an engine runs best.

A variant says how each operation of the domain `e3d_deploy` is written in standard operators: docs/graphs.md has the
gains. All forms compute the same, which tests hold against PyTorch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from onnx import GraphProto, TensorProto, helper

from e3d_deploy.export.graph.convolutions import (
    WINOGRAD,
    convolution_3d,
    convolutions_2d,
    winograd_grouped,
    winograd_products,
)
from e3d_deploy.export.graph.expansion import DOMAIN, NORM, RECALL, WINDOW_CONVOLUTION, Expansion
from e3d_deploy.export.graph.norms import split_norm, whole_norm
from e3d_deploy.export.graph.recall import KEY_BIAS, products, products_4d


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Form of each operation of the step."""

    convolutions: Literal["2d", "3d", "winograd-grouped", "winograd-products"]
    """`2d`: 2D convolutions, one for each frame of the window, with no products by the zeros behind it and pads that
    are the same on both sides; ONNX Runtime has blocked kernels for these alone, and on CUDA no others. `3d`: one 3D
    convolution. The others compute 5×5 kernels by Winograd's minimal filtering, F(4×4, 5×5), with 6.25 times fewer
    products: `winograd-grouped` as one convolution with a group for each of the 64 points, which suits ONNX Runtime,
    else `2d`; `winograd-products` as matrix products, which suits OpenVINO, else `3d`. Grids that 4×4 tiles do not
    cover, other kernels and OpenSTL's convolutions are left to the form after `else`."""
    norms: Literal["split", "whole"]
    """`split`: sums over window and grid first, then over channels, from standard arithmetic. ONNX Runtime's own norms
    add up 200,000 numbers in one go and lose a digit to it: on a full-size layer 2e-5 from the exact result, where
    this is at 2.5e-6 and PyTorch at 1e-6. `whole`: the norms of ONNX."""
    recall: Literal["products", "products-4d"]
    """`products`: matrix products and a softmax. `products-4d`: the same with an axis for heads, which OpenVINO's CPU
    plugin makes one kernel of."""

    @property
    def without_winograd(self) -> "Variant":
        """The variant with the convolutions that it has where Winograd's do not suit."""
        forms: dict[str, Literal["2d", "3d"]] = {"winograd-grouped": "2d", "winograd-products": "3d"}
        return self if self.convolutions not in forms else replace(self, convolutions=forms[self.convolutions])


VARIANTS = {
    "plain": Variant(convolutions="2d", norms="split", recall="products"),
    "onnxruntime": Variant(convolutions="winograd-grouped", norms="split", recall="products"),
    "openvino": Variant(convolutions="winograd-products", norms="split", recall="products-4d"),
    "openvino-direct": Variant(convolutions="3d", norms="split", recall="products-4d"),
    "tensorrt": Variant(convolutions="3d", norms="whole", recall="products"),
}
"""Variants by name. `plain` is that of the graphs that every reader of ONNX takes, the proofs of this project among
them."""
PLAIN = "plain"


def expand(core: GraphProto, variant: Variant) -> GraphProto:
    """Return an exported step in standard operators.

    Args:
        core: from `to_onnx.export_core`.
    """
    forms: Mapping[str, Callable[[Expansion], None]] = {
        WINDOW_CONVOLUTION: {
            "2d": convolutions_2d,
            "3d": convolution_3d,
            "winograd-grouped": winograd_grouped,
            "winograd-products": winograd_products,
        }[variant.convolutions],
        NORM: split_norm if variant.norms == "split" else whole_norm,
        RECALL: products if variant.recall == "products" else products_4d,
    }
    graph = GraphProto()
    graph.CopyFrom(core)
    del graph.node[:]
    weights = {one.name: tuple(one.dims) for one in core.initializer}
    for node in core.node:
        if node.domain == DOMAIN:
            forms[node.op_type](Expansion(graph, node, weights))
        else:
            graph.node.append(node)
    for value in graph.input:
        if value.name == KEY_BIAS and variant.recall == "products-4d":
            B, *_, S = value.type.tensor_type.shape.dim
            value.CopyFrom(helper.make_tensor_value_info(KEY_BIAS, TensorProto.FLOAT, [_side(B), 1, 1, _side(S)]))
    return graph


def uses_winograd(core: GraphProto) -> bool:
    """Return True if a step in standard operators has Winograd's convolutions."""
    return any(WINOGRAD in name for node in core.node for name in node.output)


def _side(dimension: Any) -> int | str:
    side: int | str = dimension.dim_param or dimension.dim_value
    return side
