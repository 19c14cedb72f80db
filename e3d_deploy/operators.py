"""Groups of ONNX operators by which graph rewrites select nodes, and a function that copies a node."""

from collections.abc import Sequence

from onnx import NodeProto

MOVES = {"Reshape", "Transpose", "Gather", "Slice", "Concat", "Split", "Squeeze", "Unsqueeze", "Expand", "Identity"}
"""Operators that move or copy values without arithmetic."""
PRODUCTS = ("Conv", "MatMul")


def on(node: NodeProto, inputs: Sequence[str], output: str) -> NodeProto:
    """Return a copy of a node that reads `inputs`, writes `output` and is named `output`."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name, copy.input[:], copy.output[:] = output, inputs, [output]
    return copy
