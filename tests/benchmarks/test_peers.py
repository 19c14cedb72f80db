"""Comparison of our steps with their peers, and its tables, from invented results."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import peer_tables
from benchmarks.common import demo_hidden, processor_kind
from benchmarks.naive import Arrays
from benchmarks.naive_int8 import CONTEXT, Samples, training_clips
from benchmarks.peers import Exports, sides
from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BackendUnavailable


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("sse4_2 avx2 avx512f avx512_bf16 amx_tile amx_bf16 amx_int8", "amx"),
        ("sse4_2 avx2 avx512f avx512_vnni avx512_bf16", "avx512-bf16"),
        ("sse4_2 avx2 avx512f avx512_vnni", "avx512"),
        ("sse4_2 avx2", "avx2"),
    ],
)
def test_a_processor_is_named_by_its_fastest_instructions(flags: str, kind: str) -> None:
    assert processor_kind(flags.split()) == kind


def test_a_processor_without_these_is_named_by_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert processor_kind(["sse4_2"]) == "x86-64"  # the kind follows the last underscore of a result's name


def row(side: str, precision: str, speedup: float, *, dssim: float = 0.0, dpsnr: float = 0.0) -> dict[str, Any]:
    return {
        "side": side,
        "precision": precision,
        "median_ms": 100 / speedup,
        "speedup_over_eager": speedup,
        "max_abs_difference": 1e-6,
        "dssim": dssim,
        "dpsnr": dpsnr,
    }


EAGER = row("PyTorch eager", "fp32", 1.0)
ROWS = [
    EAGER,
    row("naive in OpenVINO", "fp32", 1.6),
    row("naive in OpenVINO, hint", "bf16", 4.0),
    row("naive in ONNX Runtime, its quantiser", "int8", 3.0),
    row("naive in OpenVINO, NNCF", "int8", 6.0, dpsnr=0.9),
    row("ours in onnxruntime", "fp32", 1.8),
    row("ours in openvino", "fp32", 2.0),
    row("ours in openvino", "bf16", 5.0),
    row("ours in openvino", "int8", 6.6),
]


def result(rows: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    environment = {"cpu": "Some CPU", "date": "2026-11-29T10:00:00+00:00", "load_1_minute": 1.0}
    return {"size": "full", "semantics": "paper", "threads": 1, "rows": rows, "environment": environment} | fields


def test_our_best_is_compared_with_the_best_peer_of_its_precision() -> None:
    found = peer_tables.best(ROWS)
    assert {name: (one["ours"], one["peer"], one["over_peer"]) for name, one in found.items()} == {
        "fp32": ("ours in openvino", "naive in OpenVINO", 1.25),
        "bf16": ("ours in openvino", "naive in OpenVINO, hint", 1.25),
        "int8": ("ours in openvino", "naive in OpenVINO, NNCF", 1.1),
    }
    assert found["int8"]["over_our_bf16"] == 1.32


def test_a_peer_beyond_our_budget_is_also_left_out() -> None:
    assert peer_tables.best(ROWS)["int8"]["over_peer_in_budget"] == 2.2
    assert not peer_tables.fits(row("any", "int8", 1.0, dssim=0.02))
    assert peer_tables.fits(row("any", "fp32", 1.0, dssim=0.02))


def test_no_ratio_is_claimed_if_one_side_is_missing() -> None:
    found = peer_tables.best([EAGER, row("naive in OpenVINO, hint", "bf16", 4.0), row("ours in openvino", "int8", 3.0)])
    assert list(found) == ["int8"]
    assert (found["int8"]["peer"], found["int8"]["over_peer"], found["int8"]["over_our_bf16"]) == (None, None, None)


def test_results_are_sorted_by_kind_of_processor_with_the_plainest_run_first() -> None:
    runs = {
        "peers_full_1_amx": result(ROWS),
        "peers_demo_1_avx2": result(ROWS, size="demo"),
        "peers_full_2_avx2": result(ROWS, threads=2),
        "peers_full_google_1_avx2": result(ROWS, semantics="google", weights="random"),
        "peers_full_1_avx2": result(ROWS, weights="trained"),
        "peers_full_1_riscv64": result(ROWS),
    }
    found = peer_tables.kinds(runs)
    assert list(found) == ["avx2", "amx", "riscv64"]
    assert [peer_tables.title(run) for run in found["avx2"]] == [
        "full size",
        "full size, 2 threads, random weights",
        "full size, `google`, random weights",
        "2×40 model",
    ]
    assert peer_tables.title(result(ROWS, size="demo", demo_hidden=demo_hidden())) == "demo model"
    assert peer_tables.machine("amx", runs["peers_full_1_amx"]) == "AVX-512 and AMX (Some CPU, 2026-11-29)"


def test_the_table_has_every_side_of_every_run() -> None:
    extra = row("ours in torch-compiled", "fp32", 0.5)
    lines = peer_tables.table({"one": result(ROWS), "other": result([EAGER, extra])})
    assert lines[0] == "| way to run a step | one | other |"
    assert lines[2] == "| PyTorch eager, fp32 | 100 ms | 100 ms |"
    assert "| e3d_deploy with openvino, bf16 | 5.00× (1e-06) | – |" in lines
    assert "| e3d_deploy with torch-compiled, fp32 | – | 0.50× (1e-06) |" in lines
    assert len(lines) == 2 + len(ROWS) + 1


def test_the_summary_has_the_best_speed_ups_of_each_processor() -> None:
    lines = peer_tables.summary({"AMX": result(ROWS), "AVX2": result([EAGER, *ROWS[1:2], ROWS[5]])})
    assert lines[2:] == [
        "| PyTorch eager in fp32: time | 100 ms | 100 ms |",
        "| fp32: speed-up over PyTorch eager in fp32 | 2.00× (openvino) | 1.80× (onnxruntime) |",
        "| fp32: speed-up over the fastest alternative | 1.25× (naive export in OpenVINO) "
        "| 1.12× (naive export in OpenVINO) |",
        "| bf16: speed-up over PyTorch eager in fp32 | 5.00× (openvino) | – |",
        "| bf16: speed-up over the fastest alternative | 1.25× (naive export in OpenVINO, precision hint) | – |",
        "| int8: speed-up over PyTorch eager in fp32 | 6.60× (openvino) | – |",
        "| int8: speed-up over the fastest alternative | 1.10× (naive export in OpenVINO, NNCF) | – |",
        "| int8: speed-up over the fastest alternative within our budget | 2.20× | – |",
    ]


def test_the_summary_says_if_no_alternative_is_within_the_budget() -> None:
    lossy = row("naive in OpenVINO, NNCF", "int8", 6.0, dpsnr=0.9)
    lines = peer_tables.summary({"AMX": result([EAGER, lossy, row("ours in openvino", "int8", 6.6)])})
    assert lines[-1].endswith("within our budget | no alternative is within it |")


def test_each_speed_up_has_a_row_that_names_both_sides() -> None:
    assert peer_tables.speedups({"full size": result(ROWS)})[-3:] == [
        "| full size | int8 | openvino | naive export in OpenVINO, NNCF | 1.10× |",
        "| full size | int8 | openvino | fastest alternative within our budget | 2.20× |",
        "| full size | int8 | openvino | e3d_deploy with openvino, bf16 | 1.32× |",
    ]
    alone = peer_tables.speedups({"demo": result([EAGER, row("ours in openvino", "int8", 3.0)])})
    assert alone[2:] == ["| demo | int8 | openvino | no alternative was timed | – |"]


def test_conditions_are_shown_below_a_table() -> None:
    assert peer_tables.conditions(
        {"one": result(ROWS, clock="processor"), "other": result(ROWS, weights="trained")}
    ) == [
        "| *weights* | random | trained |",
        "| *load of the machine* | 1.0 | 1.0 |",
        "| *clock* | processor time | elapsed time |",
    ]


def test_the_loss_of_quality_is_shown_for_low_types_only() -> None:
    assert peer_tables.quality(result([EAGER])) == []
    lines = peer_tables.quality(result(ROWS))
    assert lines[4] == "| naive export in OpenVINO, NNCF, int8 | 1e-06 | 0.0000 | 0.9000 | no |"


def test_a_side_that_cannot_be_opened_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise BackendUnavailable("nncf is not installed")

    def opened() -> Any:
        return (lambda frame, state: (frame, state)), dict

    def three(*_: Any) -> Iterator[tuple[str, str, Any]]:
        yield "PyTorch eager", "fp32", opened
        yield "naive in OpenVINO, NNCF", "int8", refuse
        yield "torch.compile", "fp32", opened

    monkeypatch.setattr("benchmarks.peers.candidates", three)
    skipped: dict[str, str] = {}
    found = list(sides(None, 1, ("int8",), (), skipped))  # type: ignore[arg-type]
    assert [side.name for side in found] == ["PyTorch eager"]  # the reference is always measured
    assert skipped == {"naive in OpenVINO, NNCF, int8": "nncf is not installed"}


CONFIG = ModelConfig(image_size=(64, 64), patch_size=8, hidden=(2,), kernel_size=3, history_length=3)


def test_calibration_sees_the_states_of_rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """True frames are fed first, then predictions, each with the state of the step before."""

    def step(frame: np.ndarray[Any, Any], state: Arrays) -> tuple[np.ndarray[Any, Any], Arrays]:
        return np.full_like(frame, 0.5), {**state, "written": state["written"] + 1}

    monkeypatch.setattr("benchmarks.naive_int8.naive_onnxruntime", lambda *_: step)
    clips = training_clips(CONFIG, count=2)
    samples = Samples(tmp_path / "naive.onnx", CONFIG, clips, 1)
    for found in (list(samples), list(samples)):  # NNCF iterates more than once, each time from the start
        assert len(found) == len(samples) == 2 * (len(clips[0]) - 1)
        first = found[: len(clips[0]) - 1]
        # The initial zero state counts as 1.
        assert [int(one["written"][0]) for one in first] == list(range(1, len(clips[0])))
        assert np.array_equal(first[CONTEXT - 1][contract.FRAME][0], clips[0][CONTEXT - 1])
        assert (first[CONTEXT][contract.FRAME] == 0.5).all()


def test_a_failed_export_leaves_no_files_for_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(_: object, path: Path) -> None:
        (path.parent / "naive.onnx.data").write_bytes(b"weights")
        if tries.pop():
            raise RuntimeError
        path.write_bytes(b"graph")

    tries = [False, True]
    monkeypatch.setattr("benchmarks.peers.naive_export", export)
    monkeypatch.setattr("benchmarks.peers.checkpoint.load", lambda _: None)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    exports = Exports(tmp_path / "model.safetensors", tmp_path / "exports", 1)
    with pytest.raises(RuntimeError):
        _ = exports.naive
    assert list(exports.folder.iterdir()) == []
    assert exports.naive == exports.naive == exports.folder / "naive.onnx"
    assert sorted(file.name for file in exports.folder.iterdir()) == ["naive.onnx", "naive.onnx.data"]


def test_exports_of_another_model_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(_: object, path: Path) -> None:
        path.write_bytes((tmp_path / "model.safetensors").read_bytes())

    monkeypatch.setattr("benchmarks.peers.naive_export", export)
    monkeypatch.setattr("benchmarks.peers.checkpoint.load", lambda _: None)
    for weights in (b"former", b"present"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        assert Exports(tmp_path / "model.safetensors", tmp_path / "exports", 1).naive.read_bytes() == weights
