"""Operators of ONNX that rewrites of a graph look for, and copies of a node."""

from collections.abc import Sequence

from onnx import NodeProto

MOVES = {"Reshape", "Transpose", "Gather", "Slice", "Concat", "Split", "Squeeze", "Unsqueeze", "Expand", "Identity"}
"""Operators that compute nothing."""
PRODUCTS = ("Conv", "MatMul")


def on(node: NodeProto, inputs: Sequence[str], output: str) -> NodeProto:
    """Copy a node onto other values."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name, copy.input[:], copy.output[:] = output, inputs, [output]
    return copy
