"""Costs of graphs, counted from shapes and compared with sums written out by hand."""

import json
import subprocess
import sys
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from e3d_deploy.bundle.folder import Bundle, write_manifest
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BundleError
from e3d_deploy.export.bundle import Graph, describe
from e3d_deploy.export.graph.statistics import Statistics, statistics
from e3d_deploy.files import sha256
from e3d_deploy.inspect import inspect, inspect_bundle


def counted(path: Path, nodes: list[Any], inputs: Any, outputs: Any, weights: dict[str, tuple[int, ...]]) -> Statistics:
    """Return the statistics of a graph of `nodes` with float32 tensors of the given shapes."""

    def values(shapes: dict[str, Any]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    initializers = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()]
    graph = helper.make_graph(nodes, "step", values(inputs), values(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, path)
    return statistics(path.read_bytes(), describe(Graph(model=model, name="step", file="step.onnx"), "fp32"))


@pytest.mark.parametrize("streams", [1, "batch"])
def test_a_convolution(tmp_path: Path, streams: int | str) -> None:
    """A [1, 4, 5, 6] tensor is convolved with 8 kernels of 2×3×3 in two groups, then viewed, then added to itself."""
    found = counted(
        tmp_path / "g.onnx",
        [
            helper.make_node("Conv", ["x", "w", "b"], ["y"], group=2, pads=[1, 1, 1, 1]),
            helper.make_node("Flatten", ["y"], ["z"]),
            helper.make_node("Add", ["z", "z"], ["out"]),
        ],
        {"x": [streams, 4, 5, 6]},
        {"out": [streams, 8 * 5 * 6]},
        {"w": (8, 2, 3, 3), "b": (8,)},
    )
    assert found.flop == 2 * (8 * 5 * 6) * (2 * 3 * 3)
    assert (found.weights, found.weight_bytes) == (8 * 18 + 8, 4 * (8 * 18 + 8))
    assert found.input_bytes == 4 * (4 * 5 * 6)
    assert found.output_bytes == 4 * (8 * 5 * 6)
    assert found.read_weight_bytes == found.weight_bytes
    assert found.intermediate_bytes == 4 * 3 * (8 * 5 * 6)  # written once, read by both sides of the sum
    assert found.bytes_moved == 4 * (120 + 4 * 240 + 152)
    assert found.operators == {"Conv": 1, "Flatten": 1, "Add": 1}
    assert found.unknown == ()


@pytest.mark.parametrize("transposed", [0, 1])
def test_matrix_products(tmp_path: Path, transposed: int) -> None:
    """MatMul multiplies [2, 3, 5] by [5, 7]; Gemm multiplies [4, 6] by [6, 8], plain or transposed."""
    found = counted(
        tmp_path / "g.onnx",
        [
            helper.make_node("MatMul", ["a", "b"], ["c"]),
            helper.make_node("Gemm", ["d", "e", "f"], ["g"], transA=transposed, transB=transposed),
        ],
        {"a": [2, 3, 5], "d": [6, 4] if transposed else [4, 6]},
        {"c": [2, 3, 7], "g": [4, 8]},
        {"b": (5, 7), "e": (8, 6) if transposed else (6, 8), "f": (8,)},
    )
    assert found.flop == 2 * (2 * 3 * 7 * 5) + 2 * (4 * 8 * 6)


def test_nodes_that_depend_on_weights_only_are_not_counted(tmp_path: Path) -> None:
    """The product w·w is computed once, when the graph is opened."""
    found = counted(
        tmp_path / "g.onnx",
        [helper.make_node("MatMul", ["w", "w"], ["v"]), helper.make_node("MatMul", ["x", "v"], ["y"])],
        {"x": [1, 4]},
        {"y": [1, 4]},
        {"w": (4, 4)},
    )
    assert found.flop == 2 * (4 * 4)
    assert found.read_weight_bytes == 4 * 16
    assert found.intermediate_bytes == 0


def test_a_gather_reads_only_what_it_returns_and_a_renamed_output_counts_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["i"], value=numpy_helper.from_array(np.int64(3))),
        helper.make_node("Gather", ["x", "i"], ["y"], axis=0),
        helper.make_node("Tanh", ["y"], ["z"]),
        helper.make_node("Identity", ["z"], ["out"]),
    ]
    found = counted(tmp_path / "g.onnx", nodes, {"x": [100, 4]}, {"out": [4]}, {})
    assert found.input_bytes == 16
    assert found.output_bytes == 16
    assert found.intermediate_bytes == 32


def test_nodes_of_unknown_shape_are_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Cast", ["i"], ["y"], name="cast", to=1)]
    found = counted(tmp_path / "g.onnx", nodes, {"x": [3, 4]}, {"y": [2, None]}, {})
    assert "cast" in found.unknown


def flop_by_hand(config: ModelConfig, entries: int, *, slots_times_depth: int = 3) -> int:
    """Return the cost of a step with the given number of history entries, from the paper's equations (FLOP).

    A convolution of depth 2 over a window of two frames multiplies 2·2 pairs of a kernel slice and a frame. In one
    pair the frame is zeros, and our convolutions skip that pair.
    """
    (h, w), k, D = config.grid_size, config.kernel_size, config.window_length
    grid, flop = h * w, 0
    inputs = (config.patch_channels, *config.hidden[:-1])
    for I, N, M in zip(inputs, config.hidden, config.memory_channels, strict=True):  # noqa: E741
        channels = N * 4 * N + I * 7 * N + M * 4 * N + N * N + N * N
        flop += 2 * channels * k * k * slots_times_depth * grid
        flop += 2 * (2 * N) * N * D * grid  # merge, 1×1
        flop += 2 * (2 * (D * grid) * (entries * D * grid) * N)  # scores, and what they read
    return flop + 2 * config.hidden[-1] * config.patch_channels * D * grid  # to_patch, one frame from D


def test_a_step_costs_what_the_paper_says(exported: Path) -> None:
    bundle = Bundle.open(exported / "tiny.e3d")
    entry = bundle.entry("step")
    found = statistics(bundle.onnx("step"), entry)
    assert found.flop == flop_by_hand(bundle.config, bundle.config.history_length)
    assert found.unknown == ()
    state = sum(4 * prod(map(int, tensor.shape)) for tensor in entry.inputs)
    assert found.input_bytes >= state  # every input is read, some of them twice


def test_a_rollout_costs_its_steps_and_a_clip_less_while_its_history_grows(exported: Path) -> None:
    bundle = Bundle.open(exported / "tiny.e3d")
    found = {name: statistics(bundle.onnx(name), bundle.entry(name)) for name in bundle.graphs}
    assert found["rollout"].flop == (bundle.horizon - 1) * found["step"].flop
    steps = bundle.context_length + bundle.horizon - 1
    by_hand = sum(flop_by_hand(bundle.config, min(t + 1, bundle.config.history_length)) for t in range(steps))
    # At the first step hidden states and memory are zero, so their convolutions are computed when a graph is opened.
    assert 0 < by_hand - found["clip"].flop < flop_by_hand(bundle.config, 1)
    assert all(one.unknown == () for one in found.values())


def test_the_original_at_full_size_is_302_gflop() -> None:
    """The published number for 10 context frames and a horizon of 10 counts products with zeros."""
    original = sum(flop_by_hand(ModelConfig(), t + 1, slots_times_depth=4) for t in range(19))
    assert original == pytest.approx(302e9, rel=0.005)
    assert sum(flop_by_hand(ModelConfig(), t + 1) for t in range(19)) == pytest.approx(239e9, rel=0.005)


def test_graphs_for_any_number_of_streams_are_counted_for_one(exported: Path, any_batch: Path) -> None:
    one, other = (inspect_bundle(path).cost for path in (exported / "tiny.e3d", any_batch))
    assert one is not None
    assert other is not None
    assert one.graphs["step"].flop == other.graphs["step"].flop
    assert one.graphs["rollout"].flop == other.graphs["rollout"].flop
    assert {graph.unknown_nodes for graph in other.graphs.values()} == {0}


def replaced(bundle: Path, content: bytes) -> Path:
    """Replace the step graph of a bundle and its hash in the manifest; return the bundle."""
    manifest = Bundle.open(bundle).manifest
    (bundle / "step.onnx").write_bytes(content)
    files = {**manifest.files, "step.onnx": sha256(bundle / "step.onnx")}
    write_manifest(bundle, replace(manifest, files=files))
    return bundle


def test_a_graph_that_is_not_ours_is_refused(bundle_path: Path, exported: Path, tmp_path: Path) -> None:
    counted(tmp_path / "foreign.onnx", [helper.make_node("Tanh", ["x"], ["y"])], {"x": [3]}, {"y": [3]}, {})
    foreign = (tmp_path / "foreign.onnx").read_bytes()
    with pytest.raises(
        BundleError, match=r"foreign\.onnx: a graph, not a bundle; give the folder that `e3d export` ma"
    ):
        inspect(tmp_path / "foreign.onnx")
    with pytest.raises(BundleError, match=r"step\.onnx: a graph, not a bundle.*tiny\.e3d"):
        inspect(bundle_path / "step.onnx")
    clip = (exported / "tiny.e3d" / "clip.onnx").read_bytes()
    for content in (foreign, clip, b""):
        with pytest.raises(BundleError, match=r"step\.onnx: its inputs differ from the manifest"):
            inspect(replaced(bundle_path, content))
    with pytest.raises(BundleError, match=r"step\.onnx: not an ONNX file"):
        inspect(replaced(bundle_path, b"text"))
    (bundle_path / "step.onnx").write_bytes(foreign)
    with pytest.raises(BundleError, match=r"step\.onnx: altered or truncated"):
        inspect(bundle_path)


def test_a_graph_with_inconsistent_shapes_is_refused(bundle_path: Path) -> None:
    model = onnx.load(bundle_path / "step.onnx", load_external_data=False)
    convolution = next(node for node in model.graph.node if node.op_type == "MatMul")
    convolution.input[1] = convolution.input[0]
    with pytest.raises(BundleError, match="its shapes are inconsistent"):
        inspect(replaced(bundle_path, model.SerializeToString()))


def test_inspect_works_without_onnx(exported: Path) -> None:
    code = f"""
import json, sys
for name in ("torch", "onnx", "onnxruntime", "safetensors", "google"):
    sys.modules[name] = None
from pathlib import Path
from e3d_deploy.inspect import inspect
print(json.dumps(inspect(Path({str(exported / "tiny.e3d")!r})).to_json()))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["cost_missing"] == "onnx is not installed; pip install 'e3d_deploy[train]'"
    assert found["bundle"]["state_bytes_per_stream"] > 0
    assert found["cost"] is found["nodes"] is None


def test_values_in_fp8_have_a_size(tmp_path: Path) -> None:
    one = numpy_helper.from_array(np.float32(1))
    nodes = [
        helper.make_node("Constant", [], ["scale"], value=one),
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], output_dtype=TensorProto.FLOAT8E4M3FN),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "step",
        *([helper.make_tensor_value_info(name, TensorProto.FLOAT, [100])] for name in "xy"),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, tmp_path / "g.onnx")
    found = statistics(
        (tmp_path / "g.onnx").read_bytes(), describe(Graph(model=model, name="step", file="step.onnx"), "fp32")
    )
    assert found.unknown == ()
    assert found.intermediate_bytes == 2 * 100  # 100 values of one byte, each written and read
