"""Profiles of a step: times from libraries, costs from the graph, and limits of the machine."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from e3d_deploy.export.graph.statistics import NodeCost, node_costs, statistics
from e3d_deploy.measure import profile as profiling
from e3d_deploy.measure import roofline
from e3d_deploy.measure.profile import match, profile
from e3d_deploy.measure.profilers import Trace
from e3d_deploy.measure.roofline import Roofline
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.protocol import NodeTime
from tests.tools import e3d

LIMITS = Roofline(gflops=50.0, gigabytes_per_second=10.0)


@pytest.fixture
def bundle(exported: Path) -> Bundle:
    return Bundle.open(exported / "tiny.e3d")


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement of the machine by fixed limits."""
    monkeypatch.setattr(profiling, "measure", lambda _: LIMITS)


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize(("backend", "kind"), [("onnxruntime", "Conv"), ("openvino", "Convolution")])
def test_nodes_are_those_of_the_graph(bundle: Bundle, backend: str, kind: str) -> None:
    pytest.importorskip(backend)
    result = profile(bundle, backend, threads=1, steps=3)
    json.dumps(result.to_json(), allow_nan=False)
    assert sum(node.share for node in result.nodes) == pytest.approx(1)
    assert sum(node.ms for node in result.nodes) == pytest.approx(result.nodes_ms)
    assert [node.ms for node in result.nodes] == sorted((node.ms for node in result.nodes), reverse=True)
    (convolution,) = [row for row in result.types if row.kind == kind]
    assert convolution.calls >= 10
    assert (convolution.gflops or 0) > 0
    assert (convolution.roofline_share or 0) > 0
    graph = {cost.name for cost in node_costs(bundle.onnx("step", backend), bundle.entry("step", backend))}
    convolutions = [node.name for node in result.nodes if node.kind == kind]
    assert len(graph & set(convolutions)) > len(convolutions) / 2
    whole = result.roofline
    assert whole is not None
    assert whole.least_ms == pytest.approx(LIMITS.least_ms(whole.flop, whole.least_bytes))
    assert whole.share == pytest.approx(whole.least_ms / result.step_ms)
    assert result.roofline_missing is None
    assert " ".join(result.to_json()["roofline"]) == "matmul_gflops copy_gb_per_s flop least_bytes least_ms share"


def test_pytorch_reports_operators_and_no_roofline(exported: Path) -> None:
    result = json.loads(e3d("profile", exported / "tiny.e3d", "--backend", "torch", "--steps", 2, "--json").stdout)
    assert any(row["kind"].startswith("aten::") and "conv" in row["kind"] for row in result["types"])
    assert result["roofline"] is None
    assert " ".join(result) == (
        "schema what backend bundle steps step_ms nodes_ms nodes types roofline roofline_missing environment"
    )
    assert " ".join(result["nodes"][0]) == "name kind ms calls share gflops roofline_share"
    assert " ".join(result["types"][0]) == "kind ms calls share gflops roofline_share"
    assert "PyTorch runs its own operators" in result["roofline_missing"]


@pytest.mark.usefixtures("limits")
def test_shares_of_the_roofline_are_minimum_time_over_time(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = [
        NodeCost("a", "Conv", ("x",), flop=50_000_000, bytes_moved=1000),  # 1 ms at 50 GFLOP/s
        NodeCost("b", "Add", ("y",), flop=0, bytes_moved=10_000_000),  # 1 ms at 10 GB/s
    ]
    timed = [NodeTime("x_nchwc", "Conv", 2.0, 1.0), NodeTime("b", "Add", 4.0, 2.0), NodeTime("c", "Reorder", 4.0, 1.0)]
    monkeypatch.setattr(profiling, "trace", lambda *_, **__: Trace(timed, 12.0))
    monkeypatch.setattr(profiling, "_costs", lambda *_: (costs, None))
    result = profile(bundle, "onnxruntime")
    assert [(row.name, row.share, row.roofline_share) for row in result.nodes] == [
        ("a", pytest.approx(0.2), pytest.approx(0.5)),
        ("b", pytest.approx(0.4), pytest.approx(0.25)),
        ("c", pytest.approx(0.4), None),
    ]
    assert [row.gflops for row in result.nodes] == [pytest.approx(25), None, None]
    assert (result.nodes_ms, result.step_ms) == (10, 12)


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("t0/conv", "Conv", True),
        ("conv2d_5_nchwc", "FusedConv", True),
        ("t0/conv/WithoutBiases", "Convolution", True),
        ("t0/conv/MatmulTransposeFusion/", "FusedMatMul", False),  # has the name of a convolution but a different type
        ("t0/conv", "Reorder", False),
        ("ReorderInput_token_6", "ReorderInput", False),
        ("", "Conv", False),
    ],
)
def test_a_node_is_known_by_its_name_or_output_and_its_type(name: str, kind: str, found: bool) -> None:
    cost = NodeCost("t0/conv", "Conv", ("conv2d_5",), 1, 1)
    ((_, matched),) = match([NodeTime(name, kind, 1.0, 1.0)], [cost])
    assert (matched is cost) == found


def test_costs_of_nodes_sum_up_to_those_of_the_graph(bundle: Bundle) -> None:
    graph, entry = bundle.onnx("step"), bundle.entry("step")
    whole, nodes = statistics(graph, entry), node_costs(graph, entry)
    assert sum(cost.flop for cost in nodes) == whole.flop
    assert sum(cost.bytes_moved for cost in nodes) == whole.bytes_moved


def test_without_onnx_the_column_is_empty_and_says_why(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "e3d_deploy.export.graph.statistics", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = e3d("profile", exported / "tiny.e3d", "--steps", 2, "--top", 3)
    assert "is not installed; pip install 'e3d_deploy[train]'" in result.stderr
    assert "more" in result.stdout


def test_the_tables_show_the_longest_and_the_rest(exported: Path, limits: None) -> None:
    shown = e3d("profile", exported / "tiny.e3d", "--steps", 2, "--threads", 1, "--top", 4).stdout
    types, nodes = shown.split("\n\n")[:2]
    assert len(types.splitlines()) == len(nodes.splitlines()) == 1 + 4 + 1
    assert "peak of this machine: 50.0 GFLOP/s (matrix product) and 10.0 GB/s (copy)" in shown
    told = e3d("profile", exported / "tiny.e3d", "--steps", 1, "--no-roofline")
    assert "the column `of roofline` is empty: not requested" in told.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--backend", "tensorrt"], 4, "which this version does not use; `trtexec --dumpProfile`"),
        (["--backend", "tensorrt-rtx"], 4, "IProfiler"),
        (["--backend", "tflite"], 2, "expected onnxruntime, openvino or torch"),
        (["--steps", "0"], 2, "got 0, expected a whole number from 1 to 10,000"),
        (["--top", "0"], 2, "is not in the range"),
    ],
)
def test_backends_without_profiler_are_refused(exported: Path, options: list[str], code: int, message: str) -> None:
    assert message in e3d("profile", exported / "tiny.e3d", *options, code=code).stderr


def test_the_limits_of_this_machine_are_measured() -> None:
    found = roofline.measure(1)
    assert found.gflops > 0
    assert found.gigabytes_per_second > 0


def test_an_error_names_a_machine_that_cannot_be_measured(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    monkeypatch.setattr("e3d_deploy.measure.child.CODE", "raise SystemExit(1)")
    line: Any = e3d("profile", exported / "tiny.e3d", "--steps", 1, code=4).stderr
    assert "profile with --no-roofline" in line
