"""Check of the precision in which an engine computes its products, which are convolutions and matrix products.

TensorRT's engine inspector lists the precisions if a GPU can load the engine. Otherwise they are taken from the types
in the ONNX graph.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from e3d_deploy.bundle.sidecar import PrecisionCheck
from e3d_deploy.errors import EngineError
from e3d_deploy.policies import MIN_SHARE
from e3d_deploy.tensorrt_library import make_logger

WIDTH = {"fp32": 32, "tf32": 19, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8, "int4": 4, "fp4": 4}
"""Width of each precision that a graph may request or an engine may have (bits)."""
NAMES = {
    "bf16": ("bfloat16", "bf16"),
    "fp16": ("float16", "half", "fp16"),
    "fp8": ("float8", "fp8"),
    "fp4": ("float4", "fp4"),
    "fp32": ("float", "fp32"),
    "int8": ("int8",),
    "int4": ("int4",),
}
"""Words for each precision in the inspector's output, alone or in texts such as "Row major linear FP16 format"; the
first precision with a match counts."""
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
"""Operators that are counted as products in an ONNX graph."""


def check_precision(trt: Any, plan: bytes, graph: bytes, requested: str) -> PrecisionCheck:
    """Check that a plan computes in the precision that was requested.

    Returns:
        The requested precision, the precision found, and the counts on which it is based. TF32 is only a permission,
        which a graph does not show; if no product is seen to use TF32, the precision found is "tf32 allowed".

    Raises:
        EngineError: the plan does not compute in the requested precision.
    """
    layers, by = inspected(trt, plan), "inspector"
    if not layers:
        layers, by = in_graph(graph), "graph"
    return PrecisionCheck(
        requested=requested, proved=confirmed_precision(requested, layers, by), by=by, layers=dict(layers)
    )


def confirmed_precision(requested: str, layers: Mapping[str, int], by: str = "graph") -> str:
    """Return the requested precision if the counts confirm it, or "tf32 allowed" if TF32 is not seen in use.

    Args:
        layers: number of products by precision.
        by: origin of the counts, `inspector` or `graph`, for the error.

    Raises:
        EngineError: `requested` is unknown, too few products have it, or a product has a narrower precision.
    """
    if requested not in WIDTH:
        raise EngineError(f"precision: got {requested!r}, expected one of {', '.join(WIDTH)}; export the model again")
    found = ", ".join(f"{count} in {name}" for name, count in sorted(layers.items())) or "none"
    total, having = sum(layers.values()), layers.get(requested, 0)
    if requested == "tf32":
        having += layers.get("fp32", 0)
    narrower = [name for name in layers if WIDTH.get(name, 32) < WIDTH[requested]]
    if not total or having < MIN_SHARE * total or narrower:
        raise EngineError(
            f"precision: {requested} was requested, but the {by} shows these convolutions and matrix products: "
            f"{found}; export the model again at the precision that you want"
        )
    return "tf32 allowed" if requested == "tf32" and not layers.get("tf32") else requested


def inspected(trt: Any, plan: bytes) -> Counter[str] | None:
    """Count the products of an engine by precision; return None if no GPU can load it, or if it lists no types.

    The plan must come from a build of this process, because a plan is native code, and loading it runs that code.
    """
    logger = make_logger(trt)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    context = engine.create_execution_context()
    if context is not None:
        # The inspector lists no types for layers with dynamic shapes, so the inputs get shapes first.
        inspector.execution_context = _shaped(trt, engine, context)
    return in_engine(json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON)))


def _shaped(trt: Any, engine: Any, context: Any) -> Any:
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT and -1 in engine.get_tensor_shape(name):
            context.set_input_shape(name, tuple(engine.get_tensor_profile_shape(name, 0)[1]))
    return context


def in_engine(information: Mapping[str, Any]) -> Counter[str] | None:
    """Count products by precision in the inspector's JSON of TensorRT 10 or 11; return None if it lists no types.

    A product counts in the precision of its first input whose precision is known; its output may be wider.
    """
    counts: Counter[str] = Counter()
    for layer in information.get("Layers", ()):
        if not isinstance(layer, dict):  # only a name: the plan was built without details
            continue
        if not _multiplies(str(layer.get("LayerType", "")).lower(), str(layer.get("Name", "")).lower()):
            continue
        if precision := next(filter(None, map(_precision, layer.get("Inputs", ()))), None):
            is_tf32 = precision == "fp32" and "tf32" in str(layer.get("TacticName", "")).lower()
            counts["tf32" if is_tf32 else precision] += 1
    return counts or None


def _multiplies(kind: str, name: str) -> bool:
    return kind == "conv" or any(word in kind for word in ("convolution", "gemm", "matrixmultiply")) or "mha" in name


def _precision(tensor: Mapping[str, Any]) -> str | None:
    """Return the precision of an input, from `Format/Datatype` in TensorRT 10 or `Datatype` in TensorRT 11."""
    text = str(tensor.get("Format/Datatype") or tensor.get("Datatype") or tensor.get("DataType") or "").lower()
    return next((name for name, words in NAMES.items() if any(word in text for word in words)), None)


def in_graph(content: bytes) -> Counter[str]:
    """Count products by precision in an ONNX graph, whose types a strongly typed network keeps."""
    import onnx
    from onnx import TensorProto

    names = {
        TensorProto.FLOAT: "fp32",
        TensorProto.FLOAT16: "fp16",
        TensorProto.BFLOAT16: "bf16",
        TensorProto.INT8: "int8",
        TensorProto.FLOAT8E4M3FN: "fp8",
        TensorProto.FLOAT8E5M2: "fp8",
        TensorProto.INT4: "int4",
        TensorProto.FLOAT4E2M1: "fp4",
    }
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), check_type=False)
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    dequantised = {name for name, node in makers.items() if node.op_type == "DequantizeLinear"}

    def precision(inputs: Sequence[str]) -> str:
        """Return the wider precision of two factors; a dequantised factor has the type that it was quantised to."""
        factors = [makers[name].input[0] if name in dequantised else name for name in inputs[:2]]
        return max((names.get(types.get(name, 0), "unknown") for name in factors), key=lambda one: WIDTH.get(one, 64))

    return Counter(precision(node.input) for node in graph.node if node.op_type in OPERATORS)
