"""The backend that `e3d verify` checks without `--backend`."""

import json
from pathlib import Path
from typing import Any

import pytest

from e3d_deploy import runtime
from e3d_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from tests.tools import e3d, perturb


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make `auto` find these backends and measure the last one as the fastest."""
    times = {name: float(-number) for number, name in enumerate(names)}
    monkeypatch.setattr("e3d_deploy.runtime.choose.candidates", lambda: list(names))
    monkeypatch.setattr(
        "e3d_deploy.runtime.choose._times", lambda _, backends: {name: times[name] for name in backends}
    )


@pytest.fixture(autouse=True)
def empty_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Isolate the test from choices that other tests cached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_without_a_name_it_verifies_the_backend_that_load_selects(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra `openvino`)")
    install(monkeypatch, "onnxruntime", "openvino")
    result = e3d("verify", bundle_path, "--threads", 1, "--json")
    report = json.loads(result.stdout)
    with runtime.load(bundle_path, threads=1) as predictor:
        assert report["backend"] == predictor.backend.name == "openvino"
    assert len(report["predictions"]) == report["steps"] == 6
    assert " ".join(report) == (
        "backend yardstick precision context_length steps budget state_budget dssim_budget dpsnr_budget predictions "
        "states final_states clip clip_states rollout rollout_states dssim dpsnr unproved worst worst_step passed "
        "computed choice"
    )
    assert report["choice"]["backend"] == "openvino"
    assert [one["backend"] for one in report["choice"]["tried"]] == ["openvino", "onnxruntime"]
    assert "auto selects openvino: agrees with the reference, and is the fastest that does" in result.stderr


def test_a_cached_choice_is_used_without_comparing_again(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "onnxruntime")
    e3d("verify", bundle_path, "--threads", 1)
    compared: list[Any] = []
    monkeypatch.setattr("e3d_deploy.runtime.choose.agrees", lambda *arguments: compared.append(arguments))
    assert "PASS onnxruntime" in e3d("verify", bundle_path, "--threads", 1).stderr
    assert compared == []


def test_a_named_backend_is_verified_without_a_choice(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "torch")
    result = e3d("verify", bundle_path, "--backend", "onnxruntime", "--json")
    assert json.loads(result.stdout)["choice"] is None
    assert "auto selects" not in result.stderr


def test_pytorch_is_compared_with_its_recorded_outputs(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "torch")
    assert json.loads(e3d("verify", bundle_path, "--json").stdout)["yardstick"] == "reference.npz"
    assert json.loads(e3d("verify", bundle_path, "--steps", 8, "--json").stdout)["yardstick"] == "torch"


def test_if_auto_selects_no_backend_the_first_that_opens_fails(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perturb(monkeypatch, OnnxRuntimeBackend)
    install(monkeypatch, "onnxruntime")
    result = e3d("verify", bundle_path, "--json", code=3)
    assert "auto selects no backend; verifying onnxruntime, the first that opens" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("FAIL onnxruntime")
    assert json.loads(result.stdout)["passed"] is False
