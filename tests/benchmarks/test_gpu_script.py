"""Command line of the GPU benchmark, as far as it runs without a GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import bundles, machine
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.bench import TINY
from benchmarks.gpu.rows import COMPILED, PLAIN

ROOT = Path(__file__).parents[2]
CPU = ("--device", "cpu", "--quick", "--batches", "1")
TF32 = 5e-3
"""Tolerance of predictions in TF32. Processors with AMX-FP16 may compute in it; a processor that computes in float32
instead had a difference of 1.1e-6."""
LOW, ATTENTION = 0.1, 0.02
"""Tolerances of predictions in bf16 and of the relative error of attention; measured 0.020 and 0.0020."""
BLOCKED = """
import sys
for name in ("click", "rich", "lightning", "onnx", "onnxscript", "onnxruntime", "safetensors", "cuda", "tensorrt_rtx"):
    sys.modules[name] = None
"""


def started(*options: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", *CPU, *options],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*options: str, code: int = 0, **environment: str) -> str:
    process = started(*options, **environment)
    out, err = process.communicate()
    assert process.returncode == code, err
    return out


def read(file: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(file.read_text())
    return results


def commands() -> str:
    """Return the command lines of all processes."""
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has ended meanwhile
            lines.append(process.read_text(errors="replace"))
    return "\n".join(lines)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one tiny bundle."""
    folder = tmp_path_factory.mktemp("bundles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "KINDS", ("fp32",))
        bundles.export_all(folder, TINY)
    return folder


@pytest.mark.slow
def test_rows_and_bundles_are_compared_and_timed(tmp_path: Path, exported: Path) -> None:
    rows = "eager,ring fp32,ring tf32 in-place,ring bf16 in-place,onnxruntime"
    file = tmp_path / "gpu.json"
    options = ("--sections", "roofline,plain,bundles", "--rows", rows, "--bundles", str(exported), "--out", str(file))
    shown = run(*options, "--seconds", "900")
    results = read(file)
    assert results["failed"] == {}
    plain = results["sections"]["plain at batch 1"]
    assert set(plain) == {"eager fp32", "eager tf32", "ring fp32", "ring tf32 in-place", "ring bf16 in-place"}
    assert plain["eager fp32"]["passed"]
    assert plain["ring fp32"]["passed"]
    assert plain["ring tf32 in-place"]["predictions"] < TF32
    assert plain["ring bf16 in-place"]["steps"] == plain["ring fp32"]["steps"] > TINY.history_length
    assert all(row["device_ms"] > 0 and row["speedup"] > 0 and row["predictions"] < LOW for row in plain.values())
    share = plain["ring fp32"]["share_of_peak"]
    assert share["paper"] >= share["executed"] >= 0
    on_cpu = results["sections"]["bundles"]["onnxruntime fp32"]
    assert on_cpu["passed"]
    assert 0 < on_cpu["end_to_end_ms"] <= on_cpu["end_to_end_p99_ms"]
    assert "finds no GPU" in results["skipped"]["bundles: onnxruntime-cuda fp32"] or "is built for the CPU only" in str(
        results["skipped"]
    )
    assert "ring fp32" in shown
    assert "bundles: onnxruntime-cuda fp32: skipped" in shown


@pytest.mark.slow
def test_every_section_runs_to_its_end(tmp_path: Path, exported: Path) -> None:
    file = tmp_path / "gpu.json"
    shown = run("--seconds", "1800", "--bundles", str(exported), "--out", str(file))
    results = read(file)
    assert results["failed"] == {}
    sections = results["sections"]
    assert set(sections["plain at batch 1"]) == {row.name for row in PLAIN}
    assert set(sections["compiled at batch 1"]) == {row.name for row in COMPILED}
    kernels = sections["profile at batch 1"]["eager tf32"]["kernels"]
    assert all(one["calls"] > 0 and one["us"] > 0 and 0 < one["share"] <= 1 for one in kernels)
    attention = sections["micro at batch 1"]["attention bf16"]["variants"]
    assert attention["math, mask"]["us"] > 0
    assert attention["math"]["relative_error"] < ATTENTION
    assert "not_run" in attention["cudnn"]
    assert "µs per step" in shown


@pytest.mark.slow
def test_it_runs_with_only_pytorch_and_numpy(tmp_path: Path, exported: Path) -> None:
    """Rows whose package is missing are skipped, and the result is written to $OUT."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    rows = "ring fp32,torch-cuda-graph fp32,onnxruntime"
    options = ("--sections", "plain,backends,bundles", "--rows", rows, "--bundles", str(exported), "--seconds", "900")
    run(*options, OUT=str(tmp_path), PYTHONPATH=path)
    results = read(tmp_path / "gpu.json")
    assert results["sections"]["plain at batch 1"]["ring fp32"]["passed"]
    assert results["failed"] == {}
    assert "safetensors" in results["skipped"]["backends: torch-cuda-graph fp32 at batch 1"]
    assert "bundles: onnxruntime-cuda fp32" in results["skipped"]


def test_a_terminated_run_leaves_a_complete_file_and_no_process(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    process = started("--sections", "plain", "--seconds", "900", "--out", str(file))
    while not (file.exists() and "running" in read(file)):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert read(file)["interrupted"] == "SIGTERM"
    assert "results:" in out
    assert str(file) not in commands()
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_gpu_is_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "no_gpu", lambda: "the driver is too old")
    assert main(["--out", str(tmp_path / "gpu.json")]) == 4
    assert "the driver is too old" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_section_without_bundles_is_skipped_and_starts_no_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*CPU, "--sections", "bundles", "--out", str(tmp_path / "gpu.json")]
    assert main(options) == 0
    assert main([*options, "--bundles", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "bundles: all: skipped, no --bundles FOLDER was given; export bundles with" in shown.out
    assert "contains no .e3d" in shown.out
    assert "==" not in shown.err


def test_rows_without_time_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CPU, "--seconds", "0.001", "--out", str(tmp_path / "gpu.json")]) == 0
    assert "roofline: fp32: skipped, no time was left for it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--rows", "ring fp32,rung", "got 'rung', expected fp32, tf32"),
        ("--sections", "speed", "got 'speed', expected roofline, plain at batch 1"),
        ("--costs", "/no/such.json", "not a result file of benchmarks.gpu"),
        ("--batches", "0", "invalid batches value"),
        ("--seconds", "nan", "invalid seconds value"),
        ("--seconds", "0", "invalid seconds value"),
        ("--out", "/", "is a folder, or one of its parents is a file"),
        ("--out", "/proc/version/gpu.json", "is a folder, or one of its parents is a file"),
    ],
)
def test_wrong_options_are_refused(
    option: str, value: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as refused:
        main([*CPU, "--out", str(tmp_path / "gpu.json"), option, value])
    assert refused.value.code == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_printed_and_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    assert main(["--plan", "--seconds", "60", "--out", str(file)]) == 0
    shown = capsys.readouterr().out
    kept, left_out = shown.split("left out")
    assert "plain at batch 1: eager tf32" in kept
    assert "compiled at batch 32: torch.compile tf32" in left_out
    assert not file.exists()
