"""Types into the graph: convolutions and matrix products in a low type, all else in float32.

The rewrite works on the exported step, before anything is composed from it, so that step, rollout and clip
share it. What goes in and out stays float32, and so do states, norms, softmax, the bias of a convolution and
the convolution that the prediction comes from. Why each is so, with numbers: docs/precision.md.
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
"""The low type of each policy that has one; tf32 is a flag to the engine's builder, and its graph that of fp32."""
NUMPY: dict[str, Any] = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "int8": np.int8,
    "fp8": ml_dtypes.float8_e4m3fn,
}
LARGEST = {"int8": 127.0, "fp8": 448.0}
"""Largest magnitude of a quantised value, for each policy that needs ranges."""
LARGEST_WEIGHT = {"int8": 64.0, "fp8": 448.0}
"""Seven bits of eight, as the reduced range of ONNX Runtime's quantiser: processors without VNNI add two products in
16 bits, which then never overflow."""
RECALL_LAYER = ".recall"
"""Ending of the names of the layers whose products are scores and values."""
OPSETS = {"bf16": 22}
"""Convolutions take bfloat16 from this opset on; for the others compose.OPSET."""


def products(core: GraphProto) -> dict[str, list[NodeProto]]:
    """Return the convolutions and recall products that a policy may put into its low type, by layer name.

    A convolution that is written as two, with the same weights, is one entry. Left out are what depends on weights
    alone, and what an output comes from without any further arithmetic, which is the convolution to the frame.
    """
    fixed, makers = fixed_values(core), makers_of(core)
    last = {origin for output in core.output for origin in _origins(output.name, makers)}
    found: dict[str, list[NodeProto]] = {}
    for node in core.node:
        if node.op_type in PRODUCTS and node.output[0] not in fixed | last:
            found.setdefault(label_of(node, makers), []).append(node)
    return found


def label_of(node: NodeProto, makers: Mapping[str, NodeProto]) -> str:
    """The name of a product in `products`, also where it stands in a composed graph."""
    layer = node.name.split("/")[-2]  # as `to_onnx.export_core` names them
    if not layer.endswith(RECALL_LAYER):  # a convolution, perhaps written as products
        return layer
    first = makers.get(node.input[0])
    return f"{layer}.values" if first is not None and first.op_type == "Softmax" else f"{layer}.scores"


def typed(
    core: GraphProto, policy: str, *, exclude: Collection[str] = (), ranges: Mapping[str, float] | None = None
) -> GraphProto:
    """A core whose convolutions and matrix products are in the low type of a policy.

    Values keep their names, so that two graphs can be compared value by value.

    Args:
        exclude: names of `products` that stay in float32.
        ranges: for int8 and fp8, from `quantize.calibrate`.

    Raises:
        ConfigError: a name that no product has.
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
    """A core that is being rewritten."""

    def __init__(self, core: GraphProto, policy: str, ranges: Mapping[str, float]) -> None:
        self.core, self.policy, self.ranges = core, policy, ranges
        self.fixed, self.makers = fixed_values(core), makers_of(core)
        self.weights = {one.name: one for one in core.initializer}
        self.nodes: list[NodeProto] = []
        self.added: dict[str, TensorProto] = {}
        self.made: set[str] = set()

    def product(self, node: NodeProto) -> None:
        """Add a product in the low type, and what brings its inputs there and its output back."""
        name, bias = node.output[0], node.input[2] if len(node.input) > 2 else None
        factors = [self.low(value, node) for value in node.input[:2]]
        result = f"{name}/unbiased" if bias else name
        if self.policy not in LARGEST:
            low = self.copy(node, factors, f"{name}/{self.policy}")
            self.add("Cast", [low], result, to=TensorProto.FLOAT)
        elif node.op_type == "Conv":
            # With a pair behind it as well, ONNX Runtime computes a convolution in integers, and not without.
            low = self.copy(node, factors, f"{name}/{self.policy}")
            parameters = self.parameters(name)
            quantised = self.add("QuantizeLinear", [low, *parameters], f"{low}/quantised")
            self.add("DequantizeLinear", [quantised, *parameters], result)
        else:
            self.copy(node, factors, result)
        if bias:
            # In float32: at the first step, where states are zero, a norm sees the bias alone.
            sides = sides_of(node)
            axes = self.constant(f"axes/{sides}", np.arange(1, sides + 1))
            self.add("Add", [result, self.add("Unsqueeze", [bias, axes], f"{bias}/{sides}")], name)

    def low(self, value: str, node: NodeProto) -> str:
        """A factor in the low type, or what stands for it there."""
        if value in self.fixed:
            return self.quantised_weight(value) if self.policy in LARGEST else self.cast_weight(value)
        if self.policy not in LARGEST:
            return self.add("Cast", [value], f"{value}/{self.policy}", to=LOW[self.policy])
        parameters, maker = self.parameters(value), self.makers.get(value)
        if self.policy == "int8" and maker is not None and maker.op_type == "Concat":
            # Behind one, a pair of int8 gives wrong results in OpenVINO 2026.4; float8 cannot be joined.
            ends = f"{self.policy}/of/{value}"
            parts = [self.add("QuantizeLinear", [part, *parameters], f"{part}/{ends}") for part in maker.input]
            low = self.copy(maker, parts, f"{value}/{self.policy}")
        else:
            low = self.add("QuantizeLinear", [value, *parameters], f"{value}/{self.policy}")
        # One for each product: a pair that several share is not always seen as belonging to them.
        return self.add("DequantizeLinear", [low, *parameters], f"{value}/{self.policy}/{node.name}")

    def cast_weight(self, value: str) -> str:
        """A weight in float16 or bfloat16. What only moves it, as a cut or a reshape, is kept: it is on disk once."""
        name = f"{value}/{self.policy}"
        if value in self.weights:
            array = numpy_helper.to_array(self.weights[value])
            with np.errstate(over="ignore"):  # infinite then, which the drift shows
                return self.constant(name, array.astype(NUMPY[self.policy]), LOW[self.policy])
        maker = self.makers[value]
        if maker.op_type not in MOVES or len(maker.output) > 1:
            return self.add("Cast", [value], name, to=LOW[self.policy])
        many = maker.op_type == "Concat"
        inputs = [self.cast_weight(one) if many or n == 0 else one for n, one in enumerate(maker.input)]
        return self.copy(maker, inputs, name)

    def quantised_weight(self, value: str) -> str:
        """In int8 each output channel by its own scale, in fp8 all by one; moved before, as scales are by channel."""
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
        """Scale and zero point of a value; symmetric, as TensorRT wants it."""
        scale = np.float32((self.ranges[value] or 1.0) / LARGEST[self.policy])
        return [
            self.constant(f"{value}/{self.policy}/scale", np.asarray(scale)),
            self.constant(f"zero/{self.policy}", np.zeros((), NUMPY[self.policy]), LOW[self.policy]),
        ]

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node, unless what it makes is there; the name of its output."""
        if output not in self.made:
            self.made.add(output)
            self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def copy(self, node: NodeProto, inputs: Sequence[str], output: str) -> str:
        """Add a node like another on other values, unless it is there; the name of its output."""
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
        """The core with what was added, without what nothing reads any more."""
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
    """The model, with the opset that the types of its policy need."""
    model.opset_import[0].version = OPSETS.get(policy, OPSET)
    return model


def sides_of(convolution: NodeProto) -> int:
    """2 for a 2D convolution, 3 for a 3D one."""
    return len(helper.get_node_attr_value(convolution, "kernel_shape"))


def fixed_values(core: GraphProto) -> set[str]:
    """Names of the values that depend on weights alone."""
    fixed = {one.name for one in core.initializer}
    for node in core.node:
        if all(name in fixed for name in node.input if name):
            fixed.update(node.output)
    return fixed


def makers_of(core: GraphProto) -> dict[str, NodeProto]:
    """The node that each value comes from."""
    return {output: node for node in core.node for output in node.output}


def _origins(value: str, makers: Mapping[str, NodeProto]) -> list[str]:
    """The values that this one holds, past nodes that compute nothing."""
    maker = makers.get(value)
    if maker is None or maker.op_type not in MOVES:
        return [value]
    moved = maker.input if maker.op_type == "Concat" else maker.input[:1]
    return [origin for one in moved for origin in _origins(one, makers)]


def evaluate(core: GraphProto, value: str) -> NDArray[Any]:
    """A value that depends on weights alone."""
    initializers = {one.name: one for one in core.initializer}
    if value in initializers:
        return numpy_helper.to_array(initializers[value])
    nodes = list(_behind(value, makers_of(core)))
    read = {name for node in nodes for name in node.input}
    known = [one for name, one in initializers.items() if name in read]
    graph = helper.make_graph(nodes, "weights", [], [onnx.ValueInfoProto(name=value)], known)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    (result,) = ReferenceEvaluator(model).run([value], {})
    return np.asarray(result)


def _behind(value: str, makers: Mapping[str, NodeProto]) -> Iterator[NodeProto]:
    """The nodes that make a value, each after those that it needs; of weights, where no two paths meet."""
    if value in makers:
        for one in makers[value].input:
            yield from _behind(one, makers)
        yield makers[value]
