"""Replacement of one operation of the step with standard ONNX nodes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper

DOMAIN = "e3d_deploy"
WINDOW_CONVOLUTION, NORM, RECALL = "WindowConvolution", "Norm", "Recall"
"""Domain and names of the operations, as PyTorch exports them."""


class Expansion:
    """Builder of the standard nodes that replace one operation in a graph.

    New values are named after the output of the operation, and new nodes after its layer of the network.
    """

    def __init__(self, graph: GraphProto, node: NodeProto, weights: Mapping[str, tuple[int, ...]]) -> None:
        self.graph, self.inputs, self.output = graph, list(node.input), node.output[0]
        self.layer = node.name.rpartition("/")[0]
        self.attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        self.weight = weights[node.input[1]] if node.op_type != RECALL else ()
        self.constants = {one.name for one in graph.initializer}

    def add(self, kind: str, inputs: Sequence[str], label: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its output; without `label`, it is the node with the final result."""
        output = f"{self.output}/{label}" if label else self.output
        name = f"{self.layer}/node_{kind}_{output.replace('/', '_')}"
        self.graph.node.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def once(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node, unless an earlier operation has added a node with this output; return the name of the output."""
        if all(output not in node.output for node in self.graph.node):
            name = f"{self.layer}/node_{kind}_{output}"
            self.graph.node.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def constant(self, value: NDArray[Any] | np.generic, name: str) -> str:
        if name not in self.constants:
            self.constants.add(name)
            array = np.ascontiguousarray(value, np.float32) if value.dtype == np.float64 else np.asarray(value)
            self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64), f"integers/{'_'.join(map(str, values))}")

    def integer(self, value: int) -> str:
        return self.constant(np.int64(value), f"integer/{value}")

    def number(self, value: float) -> str:
        return self.constant(np.float32(value), f"number/{value!r}")
