"""Damaged bundles, and streams on a backend whose outputs can be computed by hand."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy import runtime, tensorrt_library
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BackendUnavailable, BundleError, ConfigError, ShapeError, StreamError
from e3d_deploy.runtime import Bundle, Predictor
from e3d_deploy.runtime.backends.host import as_frames
from e3d_deploy.runtime.backends.protocol import Frame, State
from e3d_deploy.runtime.backends.registry import open_backend
from tests.fake_backend import AGELESS

CONFIG = ModelConfig(image_size=(4, 8), hidden=(1,))

ENDED = """
import sys, time
import numpy as np
from e3d_deploy import runtime
streams = runtime.load(sys.argv[1], sys.argv[2]).streams(renewal="none", queue_length=1000)
stream = streams.open()
for _ in range(1000):
    stream.push(np.zeros((16, 24, 1), np.uint8))
sys.exit(3)
"""

INTERRUPTED = """
import faulthandler, os, signal, sys
from e3d_deploy import runtime
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
faulthandler.enable()  # gives this thread a stack for signal handlers, which OpenVINO replaces by its own
first, second = (runtime.load(sys.argv[1], "openvino") for _ in range(2))
first.close()
del first
second.close()
del second
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


class Halving:
    """Backend that predicts half of the frame, and counts frames in its state."""

    name, sizes, pads, device = "halving", (1,), False, None

    def initial_state(self, batch: int | None = None) -> State:
        return {"count": np.zeros(1)}

    def gather(self, rows: Sequence[tuple[State, int]]) -> State:
        [(state, _)] = rows
        return state

    def step(self, frame: Frame, state: State) -> tuple[NDArray[np.float32], State]:
        return as_frames(frame, CONFIG) / 2, {"count": state["count"] + 1}

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], State]:
        return context[:, -1:] / 2, self.initial_state()

    def to_arrays(self, state: State) -> dict[str, NDArray[Any]]:
        return {"count": state["count"].copy()}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        return {"count": arrays["count"].copy()}

    def close(self) -> None:
        self.name = "closed"


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(CONFIG, Halving(), identity="halving", card=AGELESS)


def white(value: int = 200) -> NDArray[np.uint8]:
    return np.full((4, 8, 1), value, np.uint8)


def test_predict_feeds_predictions_back_and_does_not_move_the_stream(predictor: Predictor) -> None:
    stream = predictor.stream()
    stream.push(white())
    assert stream.predict(3)[:, 0, 0, 0].tolist() == [100, 50, 25]
    assert stream.predict(3)[:, 0, 0, 0].tolist() == [100, 50, 25]
    assert stream.snapshot().states[0]["count"] == 1
    assert stream.predict(1).dtype == np.uint8
    assert stream.forecast(2).shape == (2, 1, 4, 8)


def test_streams_of_one_predictor_are_separate(predictor: Predictor) -> None:
    one, other = predictor.stream(), predictor.stream()
    one.push(white(200))
    other.push(white(100))
    assert one.predict(1).max() == 100
    assert other.predict(1).max() == 50


def test_snapshot_is_a_value(predictor: Predictor) -> None:
    stream = predictor.stream()
    stream.push(white())
    snapshot = pickle.loads(pickle.dumps(stream.snapshot()))
    stream.push(white(10))
    again = predictor.stream(snapshot)
    assert (again.pushed, again.predict(1).max()) == (1, 100)
    stream.restore(snapshot)
    assert (stream.pushed, stream.predict(1).max()) == (1, 100)


def test_reset_forgets_the_video(predictor: Predictor) -> None:
    stream = predictor.stream()
    stream.push(white())
    stream.reset()
    assert stream.pushed == 0
    assert stream.snapshot().states[0]["count"] == 0
    with pytest.raises(StreamError, match="push at least one picture"):
        stream.predict(1)


def test_leaving_a_predictor_closes_its_backend(predictor: Predictor) -> None:
    with predictor:
        assert predictor.backend.name == "halving"
    assert predictor.backend.name == "closed"


def test_whatever_opens_something_is_a_context_manager(predictor: Predictor) -> None:
    with predictor, predictor.streams() as streams, streams.open() as slot:
        slot.push(white())
    for use in (slot.snapshot, streams.open, predictor.streams, predictor.stream):
        with pytest.raises(StreamError, match="closed"):
            use()


def test_snapshot_of_another_network_is_refused(predictor: Predictor) -> None:
    other = Predictor(CONFIG, Halving(), identity="another")
    with pytest.raises(StreamError, match="taken from another network"):
        predictor.stream(other.stream().snapshot())


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((8, 8, 1), np.uint8), r"got \[8, 8, 1\] uint8, expected \[H, W, C\] = \[4, 8, 1\]; resize it"),
        (np.zeros((1, 4, 8, 1), np.uint8), r"expected \[H, W, C\]"),
        (np.zeros((4, 8, 1), np.int32), "got int32, expected uint8, or float"),
        (np.full((4, 8, 1), np.nan), "holds NaN or infinity"),
        (np.full((4, 8, 1), 255.0), r"float64 picture out of range, values from 255 to 255, expected \[0, 1\]"),
    ],
)
def test_a_wrong_picture_is_refused_and_the_stream_stays(
    predictor: Predictor, picture: NDArray[Any], message: str
) -> None:
    stream = predictor.stream()
    stream.push(white())
    with pytest.raises(ShapeError, match=message):
        stream.push(picture)
    assert (stream.pushed, stream.predict(1).max()) == (1, 100)


def test_an_answer_that_is_not_finite_does_not_enter_the_stream() -> None:
    class Breaking(Halving):
        def step(self, frame: Frame, state: State) -> tuple[NDArray[np.float32], State]:
            seen = as_frames(frame, CONFIG)
            return (seen * np.nan if state["count"] == 1 else seen), {"count": state["count"] + 1}

    stream = Predictor(CONFIG, Breaking(), identity="breaking").stream()
    stream.push(white())
    with pytest.raises(StreamError, match="frame 1: the prediction is not finite"):
        stream.push(white())
    assert stream.pushed == 1
    assert np.isfinite(stream.forecast(1)).all()


def test_a_forecast_that_is_not_finite_is_an_error() -> None:
    class Breaking(Halving):
        def step(self, frame: Frame, state: State) -> tuple[NDArray[np.float32], State]:
            seen = as_frames(frame, CONFIG)
            return (seen * np.nan if state["count"] == 2 else seen), {"count": state["count"] + 1}

    stream = Predictor(CONFIG, Breaking(), identity="breaking").stream()
    stream.push(white())
    assert np.isfinite(stream.forecast(2)).all()
    with pytest.raises(StreamError, match="forecast frame 2: the prediction is not finite"):
        stream.forecast(3)


def test_horizon_below_one_is_refused(predictor: Predictor) -> None:
    with pytest.raises(ConfigError, match="horizon: got 0"):
        predictor.stream().predict(0)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_pushing_a_clip_gives_what_pytorch_recorded(exported: Path, backend: str) -> None:
    bundle = Bundle.open(exported / "tiny.e3d")
    clip = np.load(exported / "clip.npy")
    with runtime.load(exported / "tiny.e3d", backend, threads=1) as predictor:
        stream = predictor.stream()
        for picture in clip[: bundle.context_length]:
            stream.push(picture)
        forecast = stream.forecast(bundle.horizon)
        fork = predictor.stream(stream.snapshot())
        stream.push(clip[bundle.context_length])
        np.testing.assert_array_equal(fork.forecast(bundle.horizon), forecast)
    np.testing.assert_allclose(forecast, bundle.reference()["predictions"][-bundle.horizon :], rtol=0, atol=1e-5)


def test_snapshot_goes_from_one_backend_to_the_other(exported: Path) -> None:
    """The ring is full and has wrapped, so the backends must agree on the order of its slots."""
    clip = np.load(exported / "clip.npy")
    ort, torch_ = (runtime.load(exported / "tiny.e3d", name, threads=1) for name in ("onnxruntime", "torch"))
    stream = ort.stream()
    for picture in clip[:6]:
        stream.push(picture)
    other = torch_.stream(stream.snapshot())
    back = ort.stream(other.snapshot())
    for one in (stream, other, back):
        for picture in clip[6:]:
            one.push(picture)
    np.testing.assert_allclose(other.forecast(4), stream.forecast(4), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(back.forecast(4), stream.forecast(4))


def test_backends_that_are_unknown_or_not_installed_say_so(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(exported / "tiny.e3d")
    with pytest.raises(
        ConfigError, match=r"got 'tflite', expected one of auto, tensorrt, .*, onnxruntime, openvino, torch"
    ):
        open_backend(bundle, "tflite")
    monkeypatch.setitem(tensorrt_library.MODULES, "tensorrt", ("no_such_tensorrt",))
    with pytest.raises(BackendUnavailable, match=r"tensorrt: does not load here .*pip install 'e3d_deploy\[gpu\]'"):
        open_backend(bundle, "tensorrt")


def edit(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def test_a_missing_file_is_named(bundle_path: Path) -> None:
    (bundle_path / "clip.onnx").unlink()
    with pytest.raises(BundleError, match=r"clip\.onnx: cannot be read .*copy or export the bundle again"):
        Bundle.open(bundle_path)


@pytest.mark.parametrize("name", ["model.safetensors", "step.onnx", "reference.npz"])
def test_a_truncated_or_altered_file_is_named(bundle_path: Path, name: str) -> None:
    content = bytearray((bundle_path / name).read_bytes())
    (bundle_path / name).write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{name}: altered or truncated"):
        Bundle.open(bundle_path)
    content[len(content) // 2] ^= 1
    (bundle_path / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: altered or truncated"):
        Bundle.open(bundle_path)


def test_a_newer_schema_is_refused(bundle_path: Path) -> None:
    edit(bundle_path, schema=3)
    with pytest.raises(BundleError, match="schema 3, this version reads 1 and 2; update e3d_deploy"):
        Bundle.open(bundle_path)


def test_a_config_of_a_newer_version_is_refused(bundle_path: Path) -> None:
    edit(bundle_path, config={"depth": 4})
    with pytest.raises(BundleError, match="unknown field depth"):
        Bundle.open(bundle_path)


def test_a_file_outside_the_bundle_is_refused(bundle_path: Path) -> None:
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    edit(bundle_path, files={**manifest["files"], "../secret": "0"})
    with pytest.raises(BundleError, match="is outside the bundle"):
        Bundle.open(bundle_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "not JSON"])
def test_what_is_no_manifest_is_refused(bundle_path: Path, content: str) -> None:
    (bundle_path / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match="not a manifest"):
        Bundle.open(bundle_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": []}, r"files: got \[\], expected an object"),
        ({"context_length": "10"}, "context_length: got '10', expected a whole number"),
        ({"verification": []}, r"verification: got \[\], expected an object"),
        ({"graphs": []}, "graphs: lacks step"),
        (
            {"graphs": [{"name": "step"}]},
            r"graphs\[0\]: lacks backends, file, inputs, nodes, opset, outputs, precision, weights",
        ),
        ({"rounding": {}}, "rounding: lacks predictions, states"),
        ({"horizon": -3}, "horizon: got -3, expected 1 or more"),
        ({"batch": 0}, "batch: got 0"),
        ({"engines": {"step.tensorrt": 3}}, r"engines\.step\.tensorrt: got 3, expected an object"),
        ({"verification": {"torch": 1}}, r"verification\.torch: got 1"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(bundle_path: Path, changes: dict[str, Any], message: str) -> None:
    edit(bundle_path, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": None}, r"graphs\[0\]\.precision: got None, expected text"),
        ({"inputs": [{"name": "frame"}]}, r"graphs\[0\]\.inputs\[0\]: lacks dtype, shape"),
        ({"weights": [3]}, r"graphs\[0\]\.weights\[0\]: got 3"),
        ({"file": "../evil.onnx"}, r"lacks the hash of \.\./evil\.onnx"),
        ({"file": "engines/evil.onnx"}, r"files: got engines/evil\.onnx, expected a file next to the manifest"),
    ],
)
def test_a_graph_that_cannot_be_trusted_is_refused(bundle_path: Path, changes: dict[str, Any], message: str) -> None:
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    manifest["graphs"][0] |= changes
    manifest["files"]["engines/evil.onnx"] = "0"
    edit(bundle_path, **manifest)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle_path)


def test_a_file_without_a_hash_is_refused(bundle_path: Path) -> None:
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    del manifest["files"]["step.onnx"]
    edit(bundle_path, files=manifest["files"])
    with pytest.raises(BundleError, match=r"lacks the hash of step\.onnx"):
        Bundle.open(bundle_path)


def test_a_graph_that_is_not_what_the_manifest_lists_is_refused(shared_path: Path) -> None:
    manifest = json.loads((shared_path / "manifest.json").read_text())
    listed = manifest["graphs"][0]["inputs"][1]
    listed["shape"][1] = 99
    (state,) = (one for one in manifest["states"] if one["name"] == listed["name"])
    state["shape"][1] = 99
    edit(shared_path, graphs=manifest["graphs"], states=manifest["states"])
    with pytest.raises(BundleError, match="its inputs differ from those in the manifest"):
        runtime.load(shared_path, "onnxruntime")


def test_a_manifest_that_lacks_a_part_is_refused(bundle_path: Path) -> None:
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    del manifest["graphs"]
    (bundle_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="lacks graphs"):
        Bundle.open(bundle_path)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_program_that_ends_with_its_streams_open_ends_as_it_wants(exported: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed (extra `openvino`)")
    arguments = [sys.executable, "-c", ENDED, str(exported / "tiny.e3d"), backend]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")


def test_openvino_does_not_read_a_bundle_that_was_replaced(any_batch: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra `openvino`)")
    path = Path(shutil.copytree(any_batch, tmp_path / "any.e3d"))
    opened, untouched = (open_backend(Bundle.open(one), "openvino") for one in (path, any_batch))
    graph = Bundle.open(path).graph("step")
    graph.write_bytes(b"another")
    frame = np.full((2, 1, 16, 24), 0.5, np.float32)
    found, _ = opened.step(frame, opened.initial_state(2))
    np.testing.assert_array_equal(found, untouched.step(frame, untouched.initial_state(2))[0])


def test_ctrl_c_after_openvino_is_closed_is_no_crash(exported: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra `openvino`)")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(exported / "tiny.e3d")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle.open(tmp_path / "absent.e3d")
    with pytest.raises(BundleError, match=r"has no manifest\.json, so it is not a bundle"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(BundleError, match=r"manifest\.json: is not a regular file; copy or export the bundle again"):
        Bundle.open(tmp_path)
