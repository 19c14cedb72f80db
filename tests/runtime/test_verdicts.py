"""Tests that `verify` gives no verdict if the comparison could not have detected a wrong backend."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.commands.verify import judged
from e3d_deploy.errors import BundleError, ClipError, ConfigError
from e3d_deploy.evaluation.streaming import measure_decay
from e3d_deploy.policies import Budget
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.verify import verify
from tests.tools import e3d


@pytest.mark.parametrize("budget", [math.inf, 2.0])
def test_predictions_off_by_more_than_the_range_of_a_picture_fail(bundle_path: Path, budget: float) -> None:
    bundle = Bundle.open(bundle_path)
    report = verify(bundle, open_backend(bundle, "onnxruntime", threads=1))
    lost = {"budget": budget, "state_budget": math.inf, "dssim_budget": 0.01, "dssim": -0.1}
    near = dataclasses.replace(report, **lost, predictions=[0.9] * len(report.predictions))
    assert near.passed
    off = dataclasses.replace(near, predictions=[0.9, 1.2, *near.predictions[2:]])
    assert not off.passed
    assert off.furthest == "step 2"
    assert math.isfinite(budget) or judged(off).endswith("predictions differ by 1.2e+00 (range 1)")


@pytest.mark.parametrize("kind", ["black", "still"])
def test_a_clip_that_cannot_tell_is_refused(bundle_path: Path, tmp_path: Path, kind: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 1)).astype(np.uint8)
    np.save(tmp_path / "clip.npy", np.repeat(picture * (kind == "still"), 8, axis=0))
    line = e3d("verify", bundle_path, "--backend", "onnxruntime", "--clip", tmp_path / "clip.npy", code=2).stderr
    reason = {"black": "no frame with a contrast above 0", "still": "1 distinct frame, at least 2 are needed"}[kind]
    assert f"clip: has {reason}" in line
    assert "to tell right predictions from wrong ones; give another clip" in line
    assert "PASS" not in line


def test_a_bundle_with_a_blank_reference_is_not_passed(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(bundle_path)
    reference = bundle.reference()
    blank = {**reference, "frames": np.zeros_like(reference["frames"])}
    monkeypatch.setattr(Bundle, "reference", lambda _: blank)
    backend = open_backend(bundle, "onnxruntime", threads=1)
    with pytest.raises(BundleError, match="its reference clip cannot tell right predictions from wrong ones"):
        verify(bundle, backend)
    clip = np.random.default_rng(1).random((8, 1, 16, 24), np.float32)
    assert verify(bundle, backend, open_backend(bundle, "torch"), clip).passed


@pytest.mark.parametrize("options", [["--against", "torch"], ["--steps", 8]])
def test_a_backend_gets_no_verdict_against_itself(bundle_path: Path, tmp_path: Path, options: list[object]) -> None:
    copied = shutil.copytree(bundle_path, tmp_path / "copy.e3d")
    result = e3d("verify", copied, "--backend", "torch", *options, "--json")
    assert json.loads(result.stdout)["passed"] is None
    assert result.stderr.splitlines()[-1].startswith("WARN no verdict: torch was compared with itself; give another")
    assert not (copied / "verify.json").exists()


@pytest.mark.parametrize("number", [math.nan, math.inf, -0.1])
def test_a_budget_is_a_number_from_0_on(number: float) -> None:
    with pytest.raises(ConfigError, match="for dpsnr, expected a finite number of at least 0"):
        Budget(dpsnr=number)


@pytest.mark.parametrize(
    ("rounding", "says"), [(0.02, "PASS"), (0.1, "WARN no verdict: rounding errors alone change the")]
)
def test_a_network_that_rounding_drowns_gets_no_verdict(
    rounding: float, says: str, bundle_path: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(bundle_path, tmp_path / "copy.e3d")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["rounding"]["predictions"] = rounding
    (copied / "manifest.json").write_text(json.dumps(manifest))
    result = e3d("verify", copied, "--backend", "onnxruntime", "--against", "reference")
    assert result.stderr.splitlines()[-1].startswith(says)


@pytest.mark.parametrize("is_off", [False, True])
def test_predictions_that_are_all_the_same_get_no_verdict_unless_one_is_off(
    is_off: bool, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verify(Bundle.open(bundle_path), open_backend(Bundle.open(bundle_path), "onnxruntime", threads=1))
    assert found.unproved is None
    original = Bundle.reference

    def same(bundle: Bundle) -> dict[str, np.ndarray]:
        reference = original(bundle)
        return {**reference, "predictions": np.zeros_like(reference["predictions"])}

    monkeypatch.setattr(Bundle, "reference", same)
    if not is_off:
        monkeypatch.setattr("e3d_deploy.runtime.verify._difference", lambda *_: 0.0)
    copied = shutil.copytree(bundle_path, tmp_path / "copy.e3d")
    options = ["--backend", "onnxruntime", "--against", "reference", "--json"]
    result = e3d("verify", copied, *options, code=3 if is_off else 0)
    last = result.stderr.splitlines()[-1]
    assert json.loads(result.stdout)["passed"] is (False if is_off else None)
    assert last.startswith(
        "FAIL" if is_off else "WARN no verdict: the predictions of different steps differ by 0.0e+00 at most"
    )
    assert (copied / "verify.json").exists() == is_off


def test_a_blank_reference_is_refused_at_export(exported: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", np.full((8, 16, 24, 1), 255, np.uint8))
    options = ["--context", 4, "--horizon", 3, "--reference", tmp_path / "clip.npy"]
    line = e3d("export", exported / "tiny.safetensors", "-o", tmp_path / "x.e3d", *options, code=2).stderr
    assert f"reference: {tmp_path / 'clip.npy'} has no frame with a contrast above 0" in line


def test_black_windows_do_not_tell_how_a_state_ages(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    windows = [np.zeros((6, 1, 16, 24), np.float32)]
    with pytest.raises(ClipError, match="night: nothing moves in the frames that are forecast"):
        measure_decay(
            open_backend(bundle, "onnxruntime", threads=1),
            windows,
            ages=(3,),
            context_length=2,
            horizon=2,
            data="night",
        )


def test_an_empty_cache_gets_no_verdict(tmp_path: Path) -> None:
    stderr = e3d("cache", "verify", "--cache", tmp_path).stderr
    assert f"WARN nothing to check: {tmp_path} has no engines" in stderr
    assert "PASS" not in stderr
