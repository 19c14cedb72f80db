"""Tests that `verify` passes correct backends and fails wrong ones."""

import dataclasses
import json
import math
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy.bundle.folder import new_bundle, record_verification
from e3d_deploy.bundle.manifest import Rounding, TensorEntry
from e3d_deploy.errors import BundleError, ConfigError, ShapeError
from e3d_deploy.files import locked
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from e3d_deploy.runtime.backends.protocol import State
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.verify import check_contract, quality_lost, verify
from tests.manifests import changed, rewrite, with_graph, with_shape

ROUNDING = 1e-5
"""Largest difference of a correct backend's predictions from PyTorch's; measured 8.3e-7."""
LOST = 1e-6
"""Largest loss of SSIM by a correct backend; measured 5e-11."""


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


class Faulty(OnnxRuntimeBackend):
    """Backend with a small error from one step on, in its predictions or in one state."""

    def __init__(self, bundle: Bundle, *, from_step: int, prediction: float = 0, memory: float = 0) -> None:
        super().__init__(bundle, threads=1)
        self.from_step, self.prediction, self.memory = from_step, prediction, memory
        self.count = 0

    def step(self, frame: NDArray[np.float32], state: State) -> tuple[NDArray[np.float32], State]:
        prediction, following = super().step(frame, state)
        self.count += 1
        if self.count > self.from_step:
            prediction = prediction + np.float32(self.prediction)
        return prediction, following

    def to_arrays(self, state: State) -> dict[str, NDArray[Any]]:
        arrays = super().to_arrays(state)
        arrays["memory"] += np.float32(self.memory)
        return arrays


@pytest.mark.parametrize("against", ["torch", "reference"])
def test_onnxruntime_passes_step_by_step(bundle: Bundle, against: str) -> None:
    yardstick = open_backend(bundle, "torch") if against == "torch" else None
    report = verify(bundle, open_backend(bundle, "onnxruntime", threads=1), yardstick)
    assert report.passed
    assert 0 < report.worst < ROUNDING
    assert len(report.predictions) == bundle.context_length + bundle.horizon - 1
    assert set(report.final_states) == {tensor.name.removeprefix("next_") for tensor in _states(bundle)}
    assert (len(report.states) > 0) == (against == "torch")
    assert report.dssim == pytest.approx(0, abs=LOST)


def test_pytorch_equals_its_own_recording(bundle: Bundle) -> None:
    report = verify(bundle, open_backend(bundle, "torch"))
    assert max(report.predictions) == max(report.final_states.values()) == 0
    assert report.yardstick == "reference.npz"


@pytest.mark.parametrize("against", ["torch", "reference"])
def test_a_drifting_prediction_fails_at_its_step(bundle: Bundle, against: str) -> None:
    yardstick = open_backend(bundle, "torch") if against == "torch" else None
    report = verify(bundle, Faulty(bundle, from_step=4, prediction=3e-3), yardstick)
    assert not report.passed
    assert max(report.predictions[:4]) < ROUNDING
    assert report.predictions[4] == pytest.approx(3e-3, rel=0.01)
    assert not report.to_dict()["passed"]


def test_a_wrong_final_state_fails(bundle: Bundle) -> None:
    report = verify(bundle, Faulty(bundle, from_step=0, memory=2e-4))
    assert max(report.predictions) < ROUNDING
    assert report.final_states["memory"] == pytest.approx(2e-4, rel=0.1)
    assert not report.passed


@pytest.mark.parametrize("fault", ["forecast", "state"])
def test_a_wrong_clip_graph_fails(bundle: Bundle, fault: str) -> None:
    class WrongClip(OnnxRuntimeBackend):
        def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], State]:
            forecast, state = super().clip(context)
            if fault == "forecast":
                return forecast + np.float32(1e-3), state
            arrays = self.to_arrays(state)
            return forecast, self.from_arrays({**arrays, "cell.1": arrays["cell.1"] + np.float32(1e-3)})

    report = verify(bundle, WrongClip(bundle, threads=1))
    assert not report.passed
    assert fault == "forecast" or report.worst_state[0] == "clip cell.1"


def test_a_network_that_amplifies_rounding_gets_a_budget_by_it(bundle: Bundle) -> None:
    bundle = changed(bundle, rounding=Rounding(predictions=5e-4, states=1e-2))
    report = verify(bundle, Faulty(bundle, from_step=0, prediction=1.5e-4, memory=3e-3))
    assert (report.budget, report.state_budget) == (2e-3, 4e-2)
    assert 1e-4 < report.worst < report.budget
    assert report.passed


@pytest.mark.parametrize("faults", [{"from_step": 5, "prediction": np.nan}, {"from_step": 9, "memory": np.nan}])
def test_what_is_not_a_number_fails(bundle: Bundle, faults: dict[str, Any]) -> None:
    report = verify(bundle, Faulty(bundle, **faults))
    assert not report.passed
    json.dumps(report.to_dict(), allow_nan=False)
    assert not verify(bundle, Faulty(bundle, **faults), open_backend(bundle, "torch")).passed


def test_another_clip_needs_pytorch_and_enough_frames(bundle: Bundle) -> None:
    backend = open_backend(bundle, "onnxruntime", threads=1)
    clip = np.random.default_rng(1).random((9, 1, 16, 24), np.float32)
    assert verify(bundle, backend, open_backend(bundle, "torch"), clip).passed
    with pytest.raises(ShapeError, match="recorded only for the reference clip"):
        verify(bundle, backend, None, clip)
    with pytest.raises(ShapeError, match="has 2 frames, expected at least the bundle's context of 4"):
        verify(bundle, backend, open_backend(bundle, "torch"), clip[:2])


def test_names_and_shapes_come_before_values(bundle: Bundle) -> None:
    odd = with_graph(bundle, "step", inputs=with_shape(bundle, 1, 99))
    with pytest.raises(BundleError, match=r"step inputs: cell\.0 is .*99.*from the config and the states"):
        check_contract(odd)


def test_a_report_is_not_recorded_in_a_newer_bundle(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """The case occurs if `e3d export --overwrite` runs during `e3d verify`."""
    files = {**bundle.manifest.files, "model.safetensors": "0" * 64}
    rewrite(bundle.path, files=files)
    record_verification(bundle, {"backend": "onnxruntime", "passed": True})
    assert not (bundle.path / "verify.json").exists()
    assert "verify: the report is not stored in the bundle" in caplog.text
    assert "was exported again while this command ran" in caplog.text


def test_a_report_and_a_new_bundle_wait_for_each_other(bundle: Bundle) -> None:
    """Otherwise the report could be written into the new bundle after it was compared with the old one."""
    with locked(bundle.path):
        thread = threading.Thread(target=_replace_with_itself, args=(bundle.path,))
        thread.start()
        time.sleep(0.2)
        assert thread.is_alive()
        assert not (bundle.path / "new").exists()
    thread.join()
    assert (bundle.path / "new").exists()


def _replace_with_itself(path: Path) -> None:
    with new_bundle(path, overwrite=True) as folder:
        shutil.copytree(path, folder, dirs_exist_ok=True)
        (folder / "new").touch()


def test_a_report_on_a_place_that_cannot_be_written_is_no_error(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system", str(bundle.path / "verify.json"))

    monkeypatch.setattr("e3d_deploy.bundle.folder.replace_file", read_only)
    record_verification(bundle, {"backend": "onnxruntime", "passed": True})
    assert "not stored in the bundle (Read-only file system" in caplog.text


def _states(bundle: Bundle) -> list[TensorEntry]:
    return [tensor for tensor in bundle.entry("step").outputs if tensor.name != "prediction"]


@pytest.mark.parametrize(("graph", "wrong"), [("clip", 1e-3), ("rollout", np.nan)])
def test_the_graph_that_alone_is_off_is_named(bundle: Bundle, graph: str, wrong: float) -> None:
    class Wrong(OnnxRuntimeBackend):
        def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], State]:
            forecast, state = super().clip(context)
            return forecast + np.float32(wrong if graph == "clip" else 0), state

        def rollout(self, prediction: NDArray[np.float32], state: State) -> tuple[NDArray[np.float32], State]:
            forecast, following = super().rollout(prediction, state)
            return forecast + np.float32(wrong if graph == "rollout" else 0), following

    assert verify(bundle, Wrong(bundle, threads=1)).furthest == f"{graph} graph"


def test_where_it_is_furthest_off_is_a_step_or_a_state(bundle: Bundle) -> None:
    """The fault is in only one place, so that rounding cannot decide between places with equal differences."""
    report = verify(bundle, Faulty(bundle, from_step=4, prediction=np.nan))
    assert report.furthest == "step 5"
    assert math.isnan(report.stepped)
    last = bundle.context_length + bundle.horizon - 2

    class WrongMemory(OnnxRuntimeBackend):
        count = 0

        def step(self, frame: NDArray[np.float32], state: State) -> tuple[NDArray[np.float32], State]:
            prediction, following = super().step(frame, state)
            self.count += 1
            if self.count > last:  # No later step reads this state.
                arrays = self.to_arrays(following)
                following = self.from_arrays({**arrays, "memory": arrays["memory"] + np.float32(1.0)})
            return prediction, following

    assert verify(bundle, WrongMemory(bundle, threads=1)).furthest == "state memory"


def test_no_steps_are_too_few(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="steps: got 0, expected 6, the steps of the bundle's rollout"):
        verify(bundle, open_backend(bundle, "onnxruntime", threads=1), steps=0)


def test_perfect_forecasts_lose_nothing(bundle: Bundle) -> None:
    truth = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    worse = truth * np.float32(0.5)
    assert quality_lost(truth, truth, truth) == {"ssim": 0, "psnr": 0}
    assert quality_lost(worse, truth, truth)["psnr"] == -math.inf
    assert quality_lost(truth, worse, truth)["psnr"] == math.inf
    assert quality_lost(truth, truth * np.nan, truth) == {"ssim": None, "psnr": None}
    report = verify(bundle, open_backend(bundle, "onnxruntime", threads=1))
    for lost, passed in ((-math.inf, True), (math.inf, False)):
        found = dataclasses.replace(report, budget=math.inf, dssim_budget=0.1, dpsnr_budget=0.1, dssim=0.0, dpsnr=lost)
        assert found.passed == passed
        json.dumps(found.to_dict(), allow_nan=False)
