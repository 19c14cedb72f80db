"""Cost of a graph, computed from its shapes: nodes, weights, FLOP, bytes moved. Needs onnx, not PyTorch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto

from e3d_deploy.bundle.manifest import GraphEntry
from e3d_deploy.errors import BundleError

HOW = (
    "FLOP: 2 for each multiply-add of Conv, MatMul and Gemm. Bytes: each node reads its inputs and writes its outputs, "
    "without fusion; views are free, and values that depend on weights only are computed once and not counted"
)
VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape"}
PARTS = {"Slice", "Gather", "Split"}
"""Operators that read only the part of their input that they return."""
BYTES = {
    TensorProto.FLOAT: 4,
    TensorProto.DOUBLE: 8,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.INT8: 1,
    TensorProto.UINT8: 1,
    TensorProto.FLOAT8E4M3FN: 1,
    TensorProto.BOOL: 1,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
}


@dataclass(frozen=True)
class Statistics:
    """Cost of one call of a graph; a graph for any batch size is counted with a batch size of 1."""

    operators: dict[str, int]
    """Number of nodes by type, most frequent first."""
    weights: int
    """Number of elements in the initializers, including a few constants."""
    weight_bytes: int
    flop: int
    input_bytes: int
    """Bytes read from the inputs of the graph."""
    output_bytes: int
    """Bytes written to the outputs of the graph."""
    read_weight_bytes: int
    """Bytes read from weights and from values that depend on weights only, counted at each use."""
    intermediate_bytes: int
    """Bytes written and read between nodes."""
    unknown: tuple[str, ...]
    """Names of the nodes whose FLOP and bytes are not counted, because shape inference cannot find their shapes."""

    @property
    def bytes_moved(self) -> int:
        """Total read and written in one call, counted as described in `HOW` (bytes)."""
        return self.input_bytes + self.output_bytes + self.read_weight_bytes + self.intermediate_bytes


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node in one call, counted as in `Statistics`."""

    name: str
    kind: str
    outputs: tuple[str, ...]
    """Names of the outputs; some libraries name a node after its output."""
    flop: int
    bytes_moved: int


def node_costs(graph: bytes, entry: GraphEntry) -> list[NodeCost]:
    """Return the cost of each node of a graph, except nodes that depend on weights only or have unknown shapes.

    Raises:
        BundleError: the graph is invalid, as in `statistics`.
    """
    model = _load(graph, entry)
    shapes, sizes = _shapes(model)
    found = []
    for node in _moving(model)[0]:
        try:
            moved = sum(size for _, size in (*_reads(node, sizes), *_writes(node, sizes)))
            found.append(NodeCost(node.name, node.op_type, tuple(node.output), _flop(node, shapes), moved))
        except KeyError:
            continue
    return found


def statistics(graph: bytes, entry: GraphEntry) -> Statistics:
    """Return the cost of a graph.

    Args:
        graph: content of the ONNX file.
        entry: description of the graph in the manifest.

    Raises:
        BundleError: the content is not an ONNX file, its inputs or outputs differ from the manifest, or its shapes
            are inconsistent.
    """
    model = _load(graph, entry)
    shapes, sizes = _shapes(model)
    moving, fixed = _moving(model)
    kinds = dict.fromkeys(fixed, "weights")
    kinds |= {value.name: "inputs" for value in model.graph.input}
    given = {value.name for value in model.graph.output}
    for node in moving:
        if node.op_type in VIEWS:
            kinds[node.output[0]] = kinds.get(node.input[0], "between")
    for node in reversed(moving):
        if node.op_type in VIEWS and node.output[0] in given:
            given.add(node.input[0])
    counts: Counter[str] = Counter()
    unknown = []
    for node in moving:
        try:
            counts["flop"] += _flop(node, shapes)
            for name, size in _reads(node, sizes):
                counts[kinds.get(name, "between")] += size
            for name, size in _writes(node, sizes):
                counts["outputs" if name in given else "between"] += size
        except KeyError:
            unknown.append(node.name or node.op_type)
    return Statistics(
        operators=dict(Counter(node.op_type for node in model.graph.node).most_common()),
        weights=sum(prod(initializer.dims) for initializer in model.graph.initializer),
        weight_bytes=sum(sizes.get(initializer.name, 0) for initializer in model.graph.initializer),
        flop=counts["flop"],
        input_bytes=counts["inputs"],
        output_bytes=counts["outputs"],
        read_weight_bytes=counts["weights"],
        intermediate_bytes=counts["between"],
        unknown=tuple(unknown),
    )


def _load(graph: bytes, entry: GraphEntry) -> ModelProto:
    """Return a graph without its weights and with every shape that can be inferred."""
    try:
        model = onnx.load_from_string(graph)
    except DecodeError as error:
        raise BundleError(f"{entry.file}: not an ONNX file; export the model again") from error
    for what, values, listed in (
        ("inputs", model.graph.input, entry.inputs),
        ("outputs", model.graph.output, entry.outputs),
    ):
        found, expected = {value.name for value in values}, {tensor.name for tensor in listed}
        if found != expected:
            odd = ", ".join(sorted(found ^ expected)[:3])
            raise BundleError(f"{entry.file}: its {what} differ from the manifest ({odd}); export the model again")
    for value in model.graph.input:
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:  # any batch size
                side.dim_value = 1
    del model.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise BundleError(f"{entry.file}: its shapes are inconsistent ({error}); export the model again") from error


def _moving(model: ModelProto) -> tuple[list[NodeProto], set[str]]:
    """Return the nodes that depend on inputs of the graph, and the names of the values that depend on weights only."""
    fixed = {initializer.name for initializer in model.graph.initializer}
    moving = []
    for node in model.graph.node:
        if all(name in fixed for name in node.input if name):
            fixed.update(node.output)
        else:
            moving.append(node)
    return moving, fixed


def _shapes(model: ModelProto) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Return the known shapes of values by name, and their sizes by name (bytes)."""
    graph = model.graph
    types = {initializer.name: (tuple(initializer.dims), initializer.data_type) for initializer in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if all(side.HasField("dim_value") for side in tensor.shape.dim) and tensor.HasField("shape"):
            types.setdefault(value.name, (tuple(side.dim_value for side in tensor.shape.dim), tensor.elem_type))
    shapes = {name: shape for name, (shape, _) in types.items()}
    return shapes, {name: prod(shape) * BYTES[kind] for name, (shape, kind) in types.items() if kind in BYTES}


def _flop(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    match node.op_type:
        case "Conv":  # weights [M, N / groups, *kernel]
            return 2 * prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
        case "MatMul":
            return 2 * prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        case "Gemm":
            transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            return 2 * prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]
    return 0


def _reads(node: NodeProto, sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the names of the values that a node reads, each with the size read (bytes)."""
    if node.op_type in VIEWS:
        return []
    if node.op_type in PARTS:
        return [(node.input[0], sum(size for _, size in _writes(node, sizes)))]
    return [(name, sizes[name]) for name in node.input if name]


def _writes(node: NodeProto, sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the names of the values that a node writes, each with its size (bytes)."""
    return [] if node.op_type in VIEWS else [(name, sizes[name]) for name in node.output if name]
