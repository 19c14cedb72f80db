"""The script for a machine with a GPU, as far as a machine without one can run it."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.__main__ import COMPILED, EAGER, FULL, Bench, TimeUp, correctness, flop, limit, main, stepped
from e3d_deploy.export.torch_backend import TorchBackend
from e3d_deploy.model import E3DLSTM

ROOT = Path(__file__).parent.parent
ABSENT = """
import sys, runpy
for name in ("click", "rich", "lightning", "onnx", "onnxscript", "onnxruntime", "safetensors", "cuda", "tensorrt_rtx"):
    sys.modules[name] = None
sys.argv = ["gpu", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def test_every_line_that_a_cpu_can_run_runs_and_is_right(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--quick", "--batches", "1", "--seconds", "200", "--out", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ring fp32" in done.stdout
    results = json.loads(file.read_text())
    assert results["failed"] == {}
    rows = results["correctness"] | results["compiled, correctness"]
    assert all(rows[name]["passed"] for name in ("eager fp32", "ring fp32", "ring fp32, compiled and captured"))
    assert all(row["predictions"] < 0.1 for name, row in rows.items() if name != "rounding")
    assert set(COMPILED) <= set(results["compiled, speed at batch 1"])
    assert all(row["device_ms"] > 0 and row["speedup"] > 0 for row in results["speed at batch 1"].values())
    reasons = " ".join(results["skipped"].values())
    assert all(name in results["skipped"] for name in ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx"))
    assert "finds no GPU" in reasons
    assert results["engines"]["validity"]["version"].startswith("1.7") or "tensorrt_rtx" in reasons


def test_it_runs_with_pytorch_and_numpy_alone(tmp_path: Path) -> None:
    """And says what it left out; where the results go is $OUT."""
    environment = os.environ | {"OUT": str(tmp_path)}
    options = ["--device", "cpu", "--quick", "--batches", "1", "--sections", "correctness,backends,engines"]
    done = subprocess.run(
        [sys.executable, "-c", ABSENT, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["correctness"]["ring fp32"]["passed"]
    assert (results["failed"], set(results["skipped"])) == ({}, {"backends", "engines"})
    assert "safetensors" in results["skipped"]["backends"]


def test_no_gpu_and_no_time_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(file)])
    assert main() == 4
    assert "no GPU" in capsys.readouterr().err
    assert not file.exists()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--device", "cpu", "--quick", "--seconds", "0"])
    assert main() == 0
    assert "correctness: skipped, no time was left for it" in capsys.readouterr().out


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(argparse.Namespace(device="cpu", quick=True, batches=[1], seconds=100, out=tmp_path / "gpu.json"))


@torch.no_grad()
def test_what_fails_is_recorded_and_the_rest_goes_on(bench: Bench) -> None:
    rows = {"broken": lambda *_: 1 / 0, "eager fp32": EAGER["eager fp32"]}
    found: dict[str, Any] = {}
    correctness(bench, found, rows, batch=1)  # type: ignore[arg-type]
    assert found["eager fp32"]["passed"]
    assert "ZeroDivisionError" in bench.results["failed"]["correctness of broken"]
    with pytest.raises(TimeUp), limit(0.01), bench.guard("slow"):
        time.sleep(5)


@torch.no_grad()
def test_a_backend_is_compared_and_timed(bench: Bench) -> None:
    found = stepped(bench, TorchBackend(bench.model), 1)
    assert found["max_abs_difference"] < 1e-6
    assert 0 < found["end_to_end_ms"] <= found["end_to_end_p99_ms"]


def test_operations_are_those_of_ten_frames_after_ten() -> None:
    """302 GFLOP at full size: 19 steps, the history growing by one with each."""
    with torch.device("meta"):
        model = E3DLSTM(FULL)
    assert round(sum(flop(model, entries) for entries in range(1, 20)) / 1e9) == 302
