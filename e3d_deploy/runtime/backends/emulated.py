"""Emulation of graphs in bf16, fp16 and tf32 on a CPU without these types, used to verify such graphs.

Every convolution and matrix product takes factors in the low type, computes in float32, and rounds the result to the
low type once (with tf32, only the factors are rounded). Hardware with float32 accumulators does the same. Tested by
`test_emulation_is_what_the_types_say`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from e3d_deploy import contract
from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.config import ModelConfig
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.operators import MOVES, PRODUCTS, on
from e3d_deploy.runtime.backends.onnx_weights import place_of
from e3d_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from e3d_deploy.runtime.backends.protocol import Frame, State, initial_arrays
from e3d_deploy.runtime.backends.rollout import rollout

ROUNDED = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
ROUNDED_BY = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
TF32_BITS = 13
"""Number of low mantissa bits, out of 23 in float32, that tensor cores drop in TF32."""


def emulated(model: ModelProto, policy: str, *, hinted: bool = False) -> ModelProto:
    """Return a graph that emulates the precision of `model` with ONNX Runtime on any CPU.

    QuantizeLinear and DequantizeLinear pairs (int8, fp8) are kept, because `session` makes ONNX Runtime compute them in
    float32.

    Args:
        hinted: True if the graph is in float32 and a hint tells the library to compute in the type of `policy`. Then
            every value is rounded to that type. This is an estimate: OpenVINO, for example, keeps norms in float32.
    """
    if hinted:
        return _rounded(model, ROUNDED_BY[policy])
    result = ModelProto()
    result.CopyFrom(model)
    nodes: list[NodeProto] = []
    low = {one.name: one.data_type for one in model.graph.initializer if one.data_type in ROUNDED}
    for node in model.graph.node:
        if node.op_type == "Cast" and helper.get_node_attr_value(node, "to") in ROUNDED:
            low[node.output[0]] = helper.get_node_attr_value(node, "to")
        elif node.op_type in MOVES and node.input[0] in low:
            low[node.output[0]] = low[node.input[0]]
        elif node.op_type in PRODUCTS and node.input[0] in low:
            nodes += _rounded_product(node, low[node.input[0]])
            continue
        elif node.op_type in PRODUCTS and policy == "tf32":
            nodes += _tf32_product(node)
            continue
        nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    if policy == "tf32":
        result.graph.initializer.append(numpy_helper.from_array(np.array(2**TF32_BITS + 1, np.float32), "tf32/factor"))
    return result


def _rounded(model: ModelProto, kind: int) -> ModelProto:
    """Return a float32 graph in which every computed value is rounded to a type.

    The weights and graph inputs that convolutions and matrix products read are rounded too.
    """
    result = ModelProto()
    result.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {one.name for one in inferred.value_info if one.type.tensor_type.elem_type == TensorProto.FLOAT}
    weights = {one.name for one in model.graph.initializer if one.data_type == TensorProto.FLOAT and one.dims}
    del result.graph.node[:]
    states = {one.name for one in model.graph.input if one.type.tensor_type.elem_type == TensorProto.FLOAT}
    given = weights | states
    for value in sorted(given):
        result.graph.node.extend(_round(value, f"{value}/rounded", kind))
    for node in model.graph.node:
        copy = result.graph.node.add()
        copy.CopyFrom(node)
        if node.op_type in PRODUCTS or node.op_type in MOVES:
            copy.input[:2] = [f"{name}/rounded" if name in given else name for name in node.input[:2]]
        if node.op_type not in MOVES and node.output[0] in floats:
            copy.output[0] = f"{node.output[0]}/exact"
            result.graph.node.extend(_round(copy.output[0], node.output[0], kind))
    return result


def _round(value: str, output: str, kind: int) -> list[NodeProto]:
    return [
        _node("Cast", [value], f"{output}/low", to=kind),
        _node("Cast", [f"{output}/low"], output, to=TensorProto.FLOAT),
    ]


def _rounded_product(node: NodeProto, kind: int) -> list[NodeProto]:
    wide = [f"{value}/wide/{node.output[0]}" for value in node.input]
    casts = [_node("Cast", [value], one, to=TensorProto.FLOAT) for value, one in zip(node.input, wide, strict=True)]
    output = f"{node.output[0]}/wide"
    return [*casts, on(node, wide, output), _node("Cast", [output], node.output[0], to=kind)]


def _tf32_product(node: NodeProto) -> list[NodeProto]:
    """Return the nodes of a product whose factors are rounded to 10 mantissa bits, as in TF32.

    Veltkamp's splitting rounds a factor x: with `large` = (2¹³ + 1)·x and `above` = large − x, the result is
    large − above.
    """
    nodes, factors = [], []
    for value in node.input[:2]:
        name = f"{value}/tf32/{node.output[0]}"
        nodes += [
            _node("Mul", [value, "tf32/factor"], f"{name}/large"),
            _node("Sub", [f"{name}/large", value], f"{name}/above"),
            _node("Sub", [f"{name}/large", f"{name}/above"], name),
        ]
        factors.append(name)
    return [*nodes, on(node, [*factors, *node.input[2:]], node.output[0])]


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"emulated:{output}", **attributes)


def session(
    model: ModelProto, *, threads: int | None = None, integers: bool = False, level: Any = None
) -> onnxruntime.InferenceSession:
    """Return a session for a graph in memory, on the CPU.

    Args:
        threads: threads within an operator; None lets ONNX Runtime choose.
        integers: allow integer arithmetic for quantised products; otherwise they are computed in float32.
        level: maximum optimisation of the graph, a member of ONNX Runtime's `GraphOptimizationLevel`; None for its
            default.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if level is not None:
        options.graph_optimization_level = level
    if threads is not None:
        options.intra_op_num_threads = threads
    if not integers:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Steps:
    """Steps of an ONNX Runtime session without a bundle; implements the methods of a backend that a rollout needs."""

    def __init__(self, session: onnxruntime.InferenceSession, config: ModelConfig, batch: int) -> None:
        self.session, self.config, self.batch = session, config, batch
        self.outputs = [output.name for output in session.get_outputs()]

    def initial_state(self, batch: int | None = None) -> State:
        return initial_arrays(self.config, batch or self.batch)

    def step(self, frame: Frame, state: State) -> tuple[NDArray[np.float32], State]:
        return self.split(self.run(frame, state))

    def run(self, frame: Frame, state: State) -> dict[str, NDArray[Any]]:
        """Run one step and return every output of the session by name."""
        results = self.session.run(self.outputs, {contract.FRAME: frame, **state})
        return dict(zip(self.outputs, results, strict=True))

    def split(self, outputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], State]:
        """Return the prediction and the next state from the outputs of `run`."""
        names = [tensor.name for tensor in contract.states(self.config)]
        return outputs[contract.PREDICTION], {name: outputs[contract.NEXT + name] for name in names}

    def predictions(self, clip: NDArray[np.float32], context_length: int) -> Iterator[NDArray[np.float32]]:
        """Yield the predictions, [B, C, H, W], of the T − 1 steps of a rollout on a clip, [T, C, H, W].

        The first `context_length` steps take frames of the clip, and later steps take the previous prediction. All B
        streams follow the same clip.
        """
        context = np.repeat(clip[None, :context_length], self.batch, axis=0)
        for prediction, _ in rollout(self, context, len(clip) - 1):
            yield prediction


def with_weights(bundle: Bundle, file: str) -> ModelProto:
    """Return a graph of a bundle with its weights stored inside the graph.

    Args:
        file: name of the ONNX file in the bundle.

    Raises:
        ValueError: a weight is in a file that is not one of the bundle's, or past the end of a file.
    """
    model, weights = onnx.load_from_string(bundle.held[file].tobytes()), bundle.weights
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        tensor.raw_data = place_of(entries, weights).within(weights).tobytes()
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return model


class EmulatedBackend(OnnxRuntimeBackend):
    """Backend that runs emulated graphs, to verify a precision that the hardware lacks; slower than float32."""

    name = "emulated"

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        super().__init__(bundle, threads=threads, load=_load)


def _load(bundle: Bundle, graph: str, threads: int | None) -> onnxruntime.InferenceSession:
    entry = bundle.entry(graph, EmulatedBackend.name)
    return session(emulated(with_weights(bundle, entry.file), entry.precision), threads=threads)
