"""Variants of the exported step, each in the standard operators that one library runs fastest.

A variant selects the operators for each operation of the domain `e3d_deploy`. All variants compute the same result;
tests compare it with PyTorch. docs/graphs.md reports the gains.
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
    """Operators of each operation of the step."""

    convolutions: Literal["2d", "3d", "winograd-grouped", "winograd-products"]
    """Operators of the convolutions over the window.

    `2d` writes one 2D convolution for each frame of the window. It multiplies nothing by the zeros after the window,
    and its padding is the same on both sides. ONNX Runtime has blocked kernels only for 2D convolutions, and on CUDA
    no kernels for padding on one side. `3d` writes one 3D convolution.

    The Winograd forms compute 5×5 kernels by minimal filtering, F(4×4, 5×5), with 6.25 times fewer products.
    `winograd-grouped` writes one convolution with a group for each of the 64 points, which suits ONNX Runtime; its
    fallback is `2d`. `winograd-products` writes matrix products, which suit OpenVINO; its fallback is `3d`. The
    fallback is used for each of these: grids that 4×4 tiles do not cover, grids with a side above `MAX_SIDE`, kernel
    sizes other than 5×5, and OpenSTL's convolutions."""
    norms: Literal["split", "whole"]
    """Operators of the norms. `split` takes means over window and grid first, then over channels, which keeps a digit
    that ONNX Runtime's own norms lose (see `step.PlainNorm`). `whole` uses the norms of ONNX."""
    recall: Literal["products", "products-4d"]
    """Operators of the recall. `products` writes matrix products and a softmax; `products-4d` adds an axis for heads,
    so that OpenVINO's CPU plugin fuses them into one kernel."""

    @property
    def without_winograd(self) -> "Variant":
        """Variant in which the fallbacks replace all Winograd convolutions."""
        forms: dict[str, Literal["2d", "3d"]] = {"winograd-grouped": "2d", "winograd-products": "3d"}
        return self if self.convolutions not in forms else replace(self, convolutions=forms[self.convolutions])


VARIANTS = {
    "plain": Variant(convolutions="2d", norms="split", recall="products"),
    "onnxruntime": Variant(convolutions="winograd-grouped", norms="split", recall="products"),
    "openvino": Variant(convolutions="winograd-products", norms="split", recall="products-4d"),
    "openvino-direct": Variant(convolutions="3d", norms="split", recall="products-4d"),
    "tensorrt": Variant(convolutions="3d", norms="whole", recall="products"),
}
"""Variants by name. The shared graphs of a bundle, which every backend can run, have the variant `plain`."""
PLAIN = "plain"


def expand(core: GraphProto, variant: Variant) -> GraphProto:
    """Return a core in which the operators of a variant replace the operations of the domain `e3d_deploy`.

    Args:
        core: graph from `to_onnx.export_core`.
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
    """Return True if a core in standard operators has Winograd convolutions."""
    return any(WINOGRAD in name for node in core.node for name in node.output)


def _side(dimension: Any) -> int | str:
    side: int | str = dimension.dim_param or dimension.dim_value
    return side
