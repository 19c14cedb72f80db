"""Check of the precision of an engine, from the output of inspectors and from typed graphs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from e3d_deploy.bundle.sidecar import PrecisionCheck
from e3d_deploy.errors import EngineError
from e3d_deploy.export.engines.precision_check import check_precision, confirmed_precision, in_engine, in_graph
from tests.fake_tensorrt import FakeTensorRT


def tensor(name: str, datatype: str) -> dict[str, Any]:
    """Return a tensor as TensorRT 10 lists it, with format and type in one text."""
    return {"Name": name, "Location": "Device", "Dimensions": [1, 64, 16, 16], "Format/Datatype": datatype}


def as_11(layer: dict[str, Any]) -> dict[str, Any]:
    """Return a layer as TensorRT 11 lists it, with format and type in separate fields."""

    def split(one: dict[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in one.items() if key != "Format/Datatype"}
        return {**rest, "Format": "Row major linear format", "Datatype": one["Format/Datatype"]}

    return {**layer, "Inputs": list(map(split, layer["Inputs"])), "Outputs": list(map(split, layer["Outputs"]))}


HALF = "Channel major FP16 format where channel % 8 == 0"
LAYERS = [
    {
        "Name": "Reformatting CopyNode for Input Tensor 0 to t0/node_conv2d_3",
        "LayerType": "Reformat",
        "Inputs": [tensor("frame", "Row major linear FP32 format")],
        "Outputs": [tensor("frame'", HALF)],
    },
    {
        "Name": "t0/node_conv2d_3",
        "LayerType": "CaskConvolution",
        "Inputs": [tensor("frame'", HALF)],
        "Outputs": [tensor("t0/gates", HALF)],
        "ParameterType": "Convolution",
        "Weights": {"Type": "Half", "Count": 36864},
        "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc",
        "Metadata": "[ONNX Layer: t0/node_conv2d_3]",
    },
    {
        "Name": "__myl_CastMulAdd_myl0_1",
        "LayerType": "kgen",
        "Inputs": [tensor("t0/gates", "Half")],
        "Outputs": [tensor("t0/norm", "Float")],
        "Metadata": "[ONNX Layer: t0/node_conv2d_3]\u001e[ONNX Layer: t0/node_mul]",
    },
    {
        "Name": "t0/node_matmul_myl0_7",
        "LayerType": "gemm",
        "Inputs": [tensor("t0/filled", "Bool"), tensor("t0/queries", "Half"), tensor("t0/keys", "Half")],
        "Outputs": [tensor("t0/scores", "Float")],
    },
    {
        "Name": "t0/node_last",
        "LayerType": "CaskConvolution",
        "Inputs": [tensor("t0/hidden", "Row major linear FP32")],
        "Outputs": [tensor("prediction", "Row major linear FP32")],
    },
]
TENSORRT_10 = {"Layers": LAYERS, "Bindings": ["frame", "prediction"]}
TENSORRT_11 = {
    "Layers": [as_11(layer) for layer in LAYERS],
    "I/O Tensors": [
        {
            "Name": "frame",
            "IOMode": "Input",
            "DataType": "Float",
            "Dimensions": [1, 1, 64, 64],
            "Location": "Device",
            "IsShapeInferenceIO": False,
            "ProfileInfo": [{"Format": "Row major linear FP32 format (kLINEAR)"}],
        }
    ],
}
WITHOUT_TYPES = {"Layers": ["t0/node_conv2d_3", "t0/node_matmul"], "Bindings": ["frame"]}


@pytest.mark.parametrize("information", [TENSORRT_10, TENSORRT_11], ids=["10", "11"])
def test_products_are_counted_in_the_output_of_an_inspector(information: dict[str, Any]) -> None:
    assert in_engine(information) == {"fp16": 2, "fp32": 1}


def test_an_output_without_types_gives_no_counts() -> None:
    assert in_engine(WITHOUT_TYPES) is None
    assert in_engine({"Layers": [{"Name": "c", "LayerType": "Convolution", "Inputs": [tensor("x", "N/A")]}]}) is None


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("BFloat16", "bf16"),
        ("Row major linear BF16 format", "bf16"),
        ("Float", "fp32"),
        ("FP8 E4M3", "fp8"),
        ("Float8", "fp8"),
        ("Half", "fp16"),
    ],
)
def test_the_words_of_the_inspector_are_known(text: str, precision: str) -> None:
    layer = {"Name": "c", "LayerType": "Convolution", "Inputs": [tensor("x", text)]}
    assert in_engine({"Layers": [layer]}) == {precision: 1}


@pytest.mark.parametrize(
    ("requested", "layers", "kept"),
    [
        ("fp32", {"fp32": 9}, True),
        ("fp32", {"fp32": 8, "fp16": 1}, False),
        ("fp32", {"fp32": 8, "tf32": 9}, False),
        ("fp32", {"fp32": 9, "tf32": 8}, False),
        ("fp16", {"fp16": 6, "fp32": 3}, True),
        ("fp16", {"fp16": 4, "fp32": 5}, False),
        ("fp16", {"bf16": 9}, False),
        ("int8", {"int8": 5, "fp16": 2, "fp32": 2}, True),
        ("fp16", {"fp16": 8, "int8": 1}, False),
        ("fp16", {}, False),
        ("fp16", {"fp16": 4, "unknown": 5}, False),
    ],
)
def test_a_precision_that_was_not_reached_is_an_error(requested: str, layers: dict[str, int], kept: bool) -> None:
    if kept:
        assert confirmed_precision(requested, layers) == requested
    else:
        with pytest.raises(EngineError, match=f"precision: {requested} was requested, but the graph shows"):
            confirmed_precision(requested, layers)


def test_tf32_is_a_permission() -> None:
    assert confirmed_precision("tf32", {"fp32": 9}) == "tf32 allowed"
    layer = {**LAYERS[4], "TacticName": "sm80_xmma_fprop_implicit_gemm_indexed_tf32f32_tf32f32_f32"}
    assert in_engine({"Layers": [layer]}) == {"tf32": 1}
    assert confirmed_precision("tf32", {"tf32": 8, "fp32": 9}, "inspector") == "tf32"
    with pytest.raises(EngineError, match="tf32 was requested"):
        confirmed_precision("tf32", {"fp32": 8, "fp16": 1})


def test_an_unknown_precision_is_an_error() -> None:
    with pytest.raises(EngineError, match="got 'fp12', expected one of fp32, tf32, fp16"):
        confirmed_precision("fp12", {"fp12": 1})


def test_an_engine_that_loads_is_inspected_with_its_shapes(exported: Path) -> None:
    trt = FakeTensorRT()
    trt.loads, trt.information = True, TENSORRT_10
    found = check_precision(trt, b"plan", (exported / "tiny.e3d" / "step.onnx").read_bytes(), "fp16")
    assert found == PrecisionCheck(requested="fp16", proved="fp16", by="inspector", layers={"fp16": 2, "fp32": 1})
    assert trt.calls["inspected with"].shapes == {"frame": (4, 1, 16, 24)}  # the usual batch of the profile
    with pytest.raises(EngineError, match="fp32 was requested, but the inspector shows"):
        check_precision(trt, b"plan", (exported / "tiny.e3d" / "step.onnx").read_bytes(), "fp32")


@pytest.mark.parametrize("information", [None, WITHOUT_TYPES])
def test_without_types_from_the_inspector_the_graph_decides(information: dict[str, Any] | None, exported: Path) -> None:
    trt = FakeTensorRT()
    trt.loads, trt.information = information is not None, information or {}
    found = check_precision(trt, b"plan", (exported / "tiny.e3d" / "step.onnx").read_bytes(), "fp32")
    assert found.by == "graph"
    assert set(found.layers) == {"fp32"}


@pytest.mark.parametrize(
    ("low", "precision"), [(TensorProto.FLOAT16, "fp16"), (TensorProto.BFLOAT16, "bf16"), (TensorProto.FLOAT, "fp32")]
)
def test_a_graph_counts_by_the_types_of_both_factors(low: int, precision: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["x_low"], to=low),
        helper.make_node("Cast", ["w"], ["w_low"], to=low),
        helper.make_node("Conv", ["x_low", "w_low"], ["y"]),
        helper.make_node("Cast", ["y"], ["y_32"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["y_32", "y_32"], ["z"]),
    ]
    assert in_graph(saved(nodes, tmp_path).read_bytes()) == (
        {"fp32": 2} if precision == "fp32" else {precision: 1, "fp32": 1}
    )


def test_a_quantised_graph_counts_what_was_dequantised(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_8"]),
        helper.make_node("DequantizeLinear", ["x_8", "scale", "zero"], ["x_"]),
        helper.make_node("DequantizeLinear", ["w_8", "scale", "zero"], ["w_"]),
        helper.make_node("Conv", ["x_", "w_"], ["y"]),
        helper.make_node("Conv", ["x_", "w"], ["z"]),  # a product with one int8 factor is not an int8 product
    ]
    assert in_graph(saved(nodes, tmp_path).read_bytes()) == {"int8": 1, "fp32": 1}


def saved(nodes: list[onnx.NodeProto], folder: Path) -> Path:
    weight = np.ones((1, 1, 3, 3), np.float32)
    constants = {"w": weight, "w_8": weight.astype(np.int8), "scale": np.float32(0.1), "zero": np.int8(0)}
    graph = helper.make_graph(
        nodes,
        "step",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = folder / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), path)
    return path
