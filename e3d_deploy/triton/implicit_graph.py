"""Changes to the step graph that Triton's implicit state requires."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from e3d_deploy.contract import NEXT

if TYPE_CHECKING:
    from onnx import GraphProto, ValueInfoProto

FLAT = "/flat"
"""Suffix of the values [B] inside the graph that replace its inputs and outputs [B, 1]."""
AXIS = "triton/axis"
"""Name of the constant with the number of the added axis."""


def with_columns(model: bytes, states: Collection[str]) -> bytes:
    """Return a graph in which states of shape [B] have the shape [B, 1]; everything else is unchanged.

    Triton cannot store an initial value for a state that has only the batch axis.

    Args:
        model: graph, without its weights.
        states: names of the states [B].
    """
    import numpy as np
    import onnx

    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    inputs, outputs = set(states), {NEXT + name for name in states}
    for node in graph.node:
        node.input[:] = [name + FLAT if name in inputs | outputs else name for name in node.input]
        node.output[:] = [name + FLAT if name in outputs else name for name in node.output]
    squeezes = [
        onnx.helper.make_node("Squeeze", [name, AXIS], [name + FLAT], name=f"Squeeze:{name}") for name in sorted(inputs)
    ]
    unsqueezes = [
        onnx.helper.make_node("Unsqueeze", [name + FLAT, AXIS], [name], name=f"Unsqueeze:{name}")
        for name in sorted(outputs)
    ]
    nodes = [*squeezes, *graph.node, *unsqueezes]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), AXIS))
    _add_axis(graph, inputs | outputs)
    return bytes(proto.SerializeToString())


def _add_axis(graph: "GraphProto", names: Collection[str]) -> None:
    """Append an axis of length 1 to the declared shapes of inputs and outputs."""
    values: list[ValueInfoProto] = [*graph.input, *graph.output]
    for value in values:
        if value.name in names:
            value.type.tensor_type.shape.dim.add().dim_value = 1
