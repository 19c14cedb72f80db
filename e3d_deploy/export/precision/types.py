"""Rewrite of a core so that its products (convolutions and matrix products) are computed in a low type.

The core is rewritten before graphs are composed from it, so step, rollout and clip have the same types. Inputs and
outputs stay float32, and so do states, norms, softmax, the biases of convolutions and the convolution that computes
the prediction. docs/precision.md gives the reasons and the measurements.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from e3d_deploy.errors import ConfigError
from e3d_deploy.export.graph.compose import IR_VERSION, OPSET
from e3d_deploy.operators import MOVES, PRODUCTS, on

LOW = {
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
}
"""Low type of each policy that has one. tf32 has the graph of fp32 and is a setting of TensorRT's builder."""
NUMPY: dict[str, Any] = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "int8": np.int8,
    "fp8": ml_dtypes.float8_e4m3fn,
}
LARGEST = {"int8": 127.0, "fp8": 448.0}
"""Largest magnitude of a quantised value, for each policy that needs ranges."""
LARGEST_WEIGHT = {"int8": 64.0, "fp8": 448.0}
"""Largest magnitude of a quantised weight. int8 weights use 7 of 8 bits, as with the option `reduce_range` of ONNX
Runtime's quantiser: processors without VNNI add two products in 16 bits, and these sums then cannot overflow."""
RECALL_LAYER = ".recall"
"""Ending of the names of recall layers, which compute scores and values by matrix products."""
OPSETS = {"bf16": 22}
"""Opset of the policies that need a later one than `compose.OPSET`; convolutions accept bfloat16 from opset 22 on."""


def products(core: GraphProto) -> dict[str, list[NodeProto]]:
    """Return the convolutions and matrix products that a policy may compute in its low type, by layer name.

    All nodes that compute one layer, such as two 2D convolutions with the same weights, are one entry. Products that
    depend only on weights are omitted. The convolution that computes the prediction is omitted too; it is the only
    product whose result reaches an output without further arithmetic.
    """
    fixed, makers = fixed_values(core), makers_of(core)
    last = {origin for output in core.output for origin in _origins(output.name, makers)}
    found: dict[str, list[NodeProto]] = {}
    for node in core.node:
        if node.op_type in PRODUCTS and node.output[0] not in fixed | last:
            found.setdefault(label_of(node, makers), []).append(node)
    return found


def label_of(node: NodeProto, makers: Mapping[str, NodeProto]) -> str:
    """Return the name that `products` uses for a product of a core or of a composed graph."""
    layer = node.name.split("/")[-2]  # `to_onnx.export_core` puts the layer before the name of a node
    if not layer.endswith(RECALL_LAYER):  # a convolution, which may be written as matrix products
        return layer
    first = makers.get(node.input[0])
    return f"{layer}.values" if first is not None and first.op_type == "Softmax" else f"{layer}.scores"


def typed(
    core: GraphProto, policy: str, *, exclude: Collection[str] = (), ranges: Mapping[str, float] | None = None
) -> GraphProto:
    """Return a core whose products are computed in the low type of a policy, if the policy has one.

    Values keep their names, so two graphs can be compared value by value.

    Args:
        exclude: names of `products` that stay in float32.
        ranges: ranges from `quantize.calibrate`, required for int8 and fp8.

    Raises:
        ConfigError: `exclude` contains a name that is not in `products`.
    """
    if policy not in LOW:
        return core
    named = products(core)
    if unknown := sorted(set(exclude) - set(named)):
        raise ConfigError(f"exclude: got {', '.join(unknown)}, expected some of {', '.join(named)}")
    low = {node.name for label, nodes in named.items() if label not in exclude for node in nodes}
    rewrite = _Rewrite(core, policy, {} if ranges is None else ranges)
    for node in core.node:
        if node.name in low:
            rewrite.product(node)
        else:
            rewrite.nodes.append(node)
    return rewrite.graph()


class _Rewrite:
    """Core under rewriting, with the nodes and constants of the new graph."""

    def __init__(self, core: GraphProto, policy: str, ranges: Mapping[str, float]) -> None:
        self.core, self.policy, self.ranges = core, policy, ranges
        self.fixed, self.makers = fixed_values(core), makers_of(core)
        self.weights = {one.name: one for one in core.initializer}
        self.nodes: list[NodeProto] = []
        self.added: dict[str, TensorProto] = {}
        self.made: set[str] = set()

    def product(self, node: NodeProto) -> None:
        """Add a product in the low type, and the nodes that convert its factors and its result."""
        name, bias = node.output[0], node.input[2] if len(node.input) > 2 else None
        factors = [self.low(value, node) for value in node.input[:2]]
        result = f"{name}/unbiased" if bias else name
        if self.policy not in LARGEST:
            low = self.copy(node, factors, f"{name}/{self.policy}")
            self.add("Cast", [low], result, to=TensorProto.FLOAT)
        elif node.op_type == "Conv":
            # ONNX Runtime computes a convolution in integers only if QuantizeLinear and DequantizeLinear follow it.
            low = self.copy(node, factors, f"{name}/{self.policy}")
            parameters = self.parameters(name)
            quantised = self.add("QuantizeLinear", [low, *parameters], f"{low}/quantised")
            self.add("DequantizeLinear", [quantised, *parameters], result)
        else:
            self.copy(node, factors, result)
        if bias:
            # The bias is added in float32: at the first step, where states are zero, norms see only biases.
            rank = spatial_rank(node)
            axes = self.constant(f"axes/{rank}", np.arange(1, rank + 1))
            self.add("Add", [result, self.add("Unsqueeze", [bias, axes], f"{bias}/{rank}")], name)

    def low(self, value: str, node: NodeProto) -> str:
        """Return the name of a factor in the low type or, for int8 and fp8, of the factor dequantised again."""
        if value in self.fixed:
            return self.quantised_weight(value) if self.policy in LARGEST else self.cast_weight(value)
        if self.policy not in LARGEST:
            return self.add("Cast", [value], f"{value}/{self.policy}", to=LOW[self.policy])
        parameters, maker = self.parameters(value), self.makers.get(value)
        if self.policy == "int8" and maker is not None and maker.op_type == "Concat":
            # OpenVINO 2026.4 gives wrong results if the output of a Concat is quantised to int8, so its inputs are
            # quantised. In fp8 the output is quantised, because Concat does not accept float8.
            ends = f"{self.policy}/of/{value}"
            parts = [self.add("QuantizeLinear", [part, *parameters], f"{part}/{ends}") for part in maker.input]
            low = self.copy(maker, parts, f"{value}/{self.policy}")
        else:
            low = self.add("QuantizeLinear", [value, *parameters], f"{value}/{self.policy}")
        # Each product has its own DequantizeLinear; libraries do not always fuse one that several products share.
        return self.add("DequantizeLinear", [low, *parameters], f"{value}/{self.policy}/{node.name}")

    def cast_weight(self, value: str) -> str:
        """Return the name of a weight in float16 or bfloat16.

        Nodes that only move elements of the weight, such as Slice and Reshape, are copied to read the cast weight, so
        that the bundle stores it once.
        """
        name = f"{value}/{self.policy}"
        if value in self.weights:
            array = numpy_helper.to_array(self.weights[value])
            with np.errstate(over="ignore"):  # weights beyond the range become infinite, as the drift shows
                return self.constant(name, array.astype(NUMPY[self.policy]), LOW[self.policy])
        maker = self.makers[value]
        if maker.op_type not in MOVES or len(maker.output) > 1:
            return self.add("Cast", [value], name, to=LOW[self.policy])
        many = maker.op_type == "Concat"
        inputs = [self.cast_weight(one) if many or n == 0 else one for n, one in enumerate(maker.input)]
        return self.copy(maker, inputs, name)

    def quantised_weight(self, value: str) -> str:
        """Return the name of a weight that is dequantised from int8 or fp8.

        int8 has one scale per output channel, fp8 a single scale. Nodes that only move elements of the weight are
        evaluated first, so that its first axis is the output channels.
        """
        name, kind, largest = f"{value}/{self.policy}", NUMPY[self.policy], LARGEST_WEIGHT[self.policy]
        array = evaluate(self.core, value)
        per_channel = self.policy == "int8"
        scale = np.abs(array).max(axis=tuple(range(1, array.ndim)) if per_channel else None) / np.float32(largest)
        scale = np.where(scale == 0, np.float32(1), scale)
        rescaled = array / scale.reshape(-1, *[1] * (array.ndim - 1))
        low = (np.rint(rescaled) if per_channel else rescaled).clip(-largest, largest).astype(kind)
        parameters = [
            self.constant(f"{name}/scale", scale),
            self.constant(f"{name}/zero", np.zeros(scale.shape, kind), LOW[self.policy]),
        ]
        weights = self.constant(name, low, LOW[self.policy])
        axis = {"axis": 0} if per_channel else {}
        return self.add("DequantizeLinear", [weights, *parameters], f"{name}/float", **axis)

    def parameters(self, value: str) -> list[str]:
        """Return the names of the scale and zero point of a value; the zero point is 0, as TensorRT requires."""
        scale = np.float32((self.ranges[value] or 1.0) / LARGEST[self.policy])
        return [
            self.constant(f"{value}/{self.policy}/scale", np.asarray(scale)),
            self.constant(f"zero/{self.policy}", np.zeros((), NUMPY[self.policy]), LOW[self.policy]),
        ]

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node unless its output exists already; return the name of the output."""
        if output not in self.made:
            self.made.add(output)
            self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def copy(self, node: NodeProto, inputs: Sequence[str], output: str) -> str:
        """Add a copy of a node with different inputs, unless `output` exists already; return `output`."""
        if output not in self.made:
            self.made.add(output)
            self.nodes.append(on(node, inputs, output))
        return output

    def constant(self, name: str, value: NDArray[Any], kind: int | None = None) -> str:
        if name not in self.added:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype) if kind is None else kind
            self.added[name] = helper.make_tensor(name, kind, value.shape, value.tobytes(), raw=True)
        return name

    def graph(self) -> GraphProto:
        """Return the rewritten core without unused nodes and weights."""
        needed = {value.name for value in self.core.output}
        nodes = []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                nodes.append(node)
                needed.update(node.input)
        graph = GraphProto()
        graph.CopyFrom(self.core)
        del graph.node[:], graph.initializer[:]
        graph.node.extend(reversed(nodes))
        graph.initializer.extend(one for one in (*self.core.initializer, *self.added.values()) if one.name in needed)
        return graph


def stamp(model: ModelProto, policy: str) -> ModelProto:
    """Set the opset of a model that the types of its policy need; return the model."""
    model.opset_import[0].version = OPSETS.get(policy, OPSET)
    return model


def spatial_rank(convolution: NodeProto) -> int:
    """Return the number of axes that a convolution runs over: 2 or 3."""
    return len(helper.get_node_attr_value(convolution, "kernel_shape"))


def fixed_values(core: GraphProto) -> set[str]:
    """Return the names of the values that depend on weights only."""
    fixed = {one.name for one in core.initializer}
    for node in core.node:
        if all(name in fixed for name in node.input if name):
            fixed.update(node.output)
    return fixed


def makers_of(core: GraphProto) -> dict[str, NodeProto]:
    """Return the node that computes each value, by the name of the value."""
    return {output: node for node in core.node for output in node.output}


def _origins(value: str, makers: Mapping[str, NodeProto]) -> list[str]:
    """Return the values whose elements a value contains, traced back through nodes without arithmetic."""
    maker = makers.get(value)
    if maker is None or maker.op_type not in MOVES:
        return [value]
    moved = maker.input if maker.op_type == "Concat" else maker.input[:1]
    return [origin for one in moved for origin in _origins(one, makers)]


def evaluate(core: GraphProto, value: str) -> NDArray[Any]:
    """Compute a value that depends on weights only."""
    initializers = {one.name: one for one in core.initializer}
    if value in initializers:
        return numpy_helper.to_array(initializers[value])
    nodes = list(_nodes_of(value, makers_of(core)))
    read = {name for node in nodes for name in node.input}
    known = [one for name, one in initializers.items() if name in read]
    graph = helper.make_graph(nodes, "weights", [], [onnx.ValueInfoProto(name=value)], known)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    (result,) = ReferenceEvaluator(model).run([value], {})
    return np.asarray(result)


def _nodes_of(value: str, makers: Mapping[str, NodeProto]) -> Iterator[NodeProto]:
    """Yield the nodes that compute a value from weights, each after the nodes that it depends on.

    A node that is reached on two paths would be yielded twice; the values of weights have one path to each node.
    """
    if value in makers:
        for one in makers[value].input:
            yield from _nodes_of(one, makers)
        yield makers[value]
