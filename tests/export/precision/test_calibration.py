"""Unsuitable calibration clips are refused, or show in the drift."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, TensorProto, helper, numpy_helper

from e3d_deploy.data.form import Form
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import BackendUnavailable, ClipError, ConfigError, QualityError
from e3d_deploy.export.precision import drift
from e3d_deploy.export.precision.choose import Chooser, Fit, choose
from e3d_deploy.export.precision.drift import Drift, real_clips
from e3d_deploy.export.precision.quantize import MARK, _Watching, check_ranges
from e3d_deploy.policies import BUDGETS, Budget
from e3d_deploy.runtime.backends.emulated import Steps
from tests.tools import e3d

LENGTH = 6
FORM = Form(image_size=(32, 32), channels=1)
PICTURES = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 1)).astype(np.uint8)
REFERENCE = np.zeros((LENGTH, 1, 32, 32), np.float32)


def saved(tmp_path: Path, pictures: Any) -> Path:
    np.save(tmp_path / "clips.npy", pictures)
    return tmp_path / "clips.npy"


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros_like(PICTURES), "has no frame with a contrast above 0 of 255 grey levels"),
        (PICTURES // 100 + 100, "has no frame with a contrast above 2 of 255 grey levels"),
        (
            PICTURES[:1].repeat(24, axis=0),
            r"has 1 distinct frame \(distinct means: differs in 6 pixels or more\), at least 6 are needed",
        ),
        (
            np.tile(PICTURES[:3], (8, 1, 1, 1)),
            r"has 3 distinct frames \(distinct means: differs in 6 pixels or more\), at least 6 are needed",
        ),
    ],
)
def test_clips_without_contrast_or_motion_are_refused(pictures: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        real_clips(FORM, LENGTH, saved(tmp_path, pictures), REFERENCE)


def test_clips_shorter_than_a_rollout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="has 5 frames, expected 6 or more"):
        real_clips(FORM, LENGTH, saved(tmp_path, PICTURES[:5]), REFERENCE)


def test_export_refuses_to_calibrate_on_a_black_clip(exported: Path, tmp_path: Path) -> None:
    black = saved(tmp_path, np.zeros((12, 16, 24, 1), np.uint8))
    options = ["--context", 4, "--horizon", 3, "--batch", 1, "--precision", "int8", "--calibration", black]
    line = e3d("export", exported / "tiny.safetensors", "-o", tmp_path / "x.e3d", *options, code=2).stderr
    assert f"calibration: {black} has no frame with a contrast above 0" in line
    assert "omit --calibration to learn from the clips of the package" in line
    assert not (tmp_path / "x.e3d").exists()


def test_the_drift_is_also_measured_on_the_clips_of_the_package(tmp_path: Path) -> None:
    found = real_clips(FORM, LENGTH, saved(tmp_path, PICTURES), REFERENCE)
    assert (found.source, found.measured) == ("clips.npy", "clips.npy, Moving MNIST, pedestrians.mp4")
    assert len(found.calibrate) == 2
    assert len(found.measure) == 1 + 2 + 2
    assert found.measure[0] is REFERENCE
    own = real_clips(FORM, LENGTH, None, REFERENCE)
    assert any(np.array_equal(found.measure[-1], one) for one in (*own.calibrate, *own.measure))
    assert found.describe_measured()["source"] == found.measured


def test_without_the_packages_video_the_drift_is_measured_on_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, windows = saved(tmp_path, PICTURES), drift._windows

    def without_video(form: Form, length: int, path: Path, remarks: Remarks) -> Any:
        if path.suffix == ".mp4":
            raise BackendUnavailable("av is not installed")
        return windows(form, length, path, remarks)

    monkeypatch.setattr(drift, "_windows", without_video)
    with caplog.at_level(logging.WARNING):
        assert real_clips(FORM, LENGTH, source, REFERENCE).measured == "clips.npy, Moving MNIST"
    assert "not measured on the video of the package (av is not installed)" in caplog.text


def core() -> GraphProto:
    """Return a core with one convolution, one of whose factors is computed."""
    weights = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight")
    nodes = [
        helper.make_node("Relu", ["frame"], ["x"], name="net/relu/Relu"),
        helper.make_node("Conv", ["x", "weight"], ["y"], name="net/cells.0.merge/Conv"),
        helper.make_node("Tanh", ["y"], ["z"], name="net/tanh/Tanh"),
    ]
    sides = [1, 1, 4, 4]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name in ("frame", "z")]
    return helper.make_graph(nodes, "step", ends[:1], ends[1:], [weights])


@pytest.mark.parametrize(
    ("largest", "usual", "refused"),
    [
        ({"x": 0.0, "y": 1.0}, {"x": 1.0, "y": 1.0}, "cells.0.merge have the range 0, expected"),
        ({"x": 1.0, "y": math.nan}, {"x": 1.0, "y": 1.0}, "cells.0.merge have the range nan, expected"),
        ({"x": 1.0, "y": math.inf}, {"x": 1.0, "y": math.inf}, "cells.0.merge have the range inf, expected"),
        ({"x": 0.0, "y": 1.0}, {"x": 0.0, "y": 1.0}, None),  # a memory that stays zero
        ({"x": 1.0, "y": 1.0}, {"x": 1.0, "y": 1.0}, None),
    ],
)
def test_a_layer_without_a_range_is_refused(
    largest: dict[str, float], usual: dict[str, float], refused: str | None
) -> None:
    if refused is None:
        check_ranges(core(), largest, usual, "clips.npy")
        return
    with pytest.raises(ConfigError, match=refused):
        check_ranges(core(), largest, usual, "clips.npy")


def test_a_nan_range_stays_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _Watching.__new__(_Watching)
    steps.largest = {"x": 1.0}
    monkeypatch.setattr(Steps, "run", lambda *_: {f"t0/{MARK}x": np.float32(np.nan)})
    monkeypatch.setattr(Steps, "split", lambda *_: (np.zeros(1, np.float32), {}))
    steps.step(np.zeros(1, np.float32), {})
    assert math.isnan(steps.largest["x"])


@pytest.mark.parametrize("policy", ["int8", "fp8", "fp16", "bf16", "tf32"])
def test_every_policy_but_fp32_limits_the_loss_of_ssim_and_psnr(policy: str) -> None:
    small = Drift(difference=0.1, dssim=0.0, dpsnr=0.0)
    assert small.share_of(BUDGETS[policy]) == 0
    assert replace(small, dpsnr=1.0).share_of(BUDGETS[policy]) > 1
    assert replace(small, dssim=0.1).share_of(BUDGETS[policy]) > 1


@pytest.mark.parametrize("budget", [Budget(dssim=0.01), Budget(difference=2.0)])
def test_no_budget_allows_more_than_the_range_of_a_picture(budget: Budget) -> None:
    assert math.isinf(Drift(difference=1.2, dssim=-0.1, dpsnr=-1.0).share_of(budget))
    assert Drift(difference=1.0, dssim=-0.1, dpsnr=-1.0).share_of(budget) <= 1


@pytest.mark.parametrize(
    ("difference", "remedy"), [(0.5, ", or a larger --budget"), (1.2, "; no --budget allows that")]
)
def test_a_larger_budget_is_advised_only_if_it_helps(difference: float, remedy: str) -> None:
    drifted = Drift(difference=difference, dssim=0.1, dpsnr=0.1)
    fit = Fit("int8", GraphProto(), [], drifted, BUDGETS["int8"], 0, None)

    class Fixed(Chooser):
        def fit(self, *_: object) -> Fit:
            return fit

    chooser = Fixed.__new__(Fixed)
    with pytest.raises(QualityError, match=f"or other clips to --calibration{remedy}$"):
        choose(chooser, {"int8": fit.budget})
