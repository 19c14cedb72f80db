"""Commands as a user types them: their output, their files and their exit codes."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from e3d_deploy import checkpoint, inventory
from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.cli import main
from e3d_deploy.data.clips import read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.files import sha256
from e3d_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from e3d_deploy.runtime.backends.torch_eager import TorchBackend
from e3d_deploy.training.module import Learner
from tests.manifests import rewrite, sidecar
from tests.tools import e3d, perturb

REAL_CLIP = Path(__file__).parents[1] / "e3d_deploy" / "data" / "clips" / "pedestrians.mp4"


def failing(*arguments: object, code: int) -> str:
    """Return the error line of a failing command."""
    result = e3d(*arguments, code=code)
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert "Traceback" not in result.output
    return line


def picture_of(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    "command", [[], *([name] for name in main.commands)], ids=lambda names: " ".join(names) or "e3d"
)
def test_every_command_has_help(command: list[str]) -> None:
    output = e3d(*command, "--help").output
    assert "Usage:" in output
    assert len(output.splitlines()) > 5


def test_version() -> None:
    assert e3d("--version").stdout.startswith("e3d, version 0.")


def test_an_unknown_option_or_command_gets_the_nearest_suggested(exported: Path) -> None:
    assert "Did you mean '--horizon'?" in e3d("predict", "a", "b", "-o", "c", "--horizn", 3, code=2).stderr
    assert "Did you mean 'verify'?" in e3d("verfy", code=2).stderr


def test_train_export_predict(tmp_path: Path) -> None:
    """Train a model on files, export it and use it."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "clips.npz", frames=rng.integers(0, 256, (3, 9, 32, 32, 1), np.uint8))
    model = tmp_path / "run" / "model.safetensors"
    options = ["--image-size", "32x32", "--patch-size", 8, "--hidden", "4", "--kernel-size", 3, "--context", 3]
    options += ["--horizon", 2, "--batch-size", 2, "--steps", 2, "--save-every", 1, "--ema-decay", 0.5]
    data = ["--data", f"{tmp_path}/clips.npz:2", "--data", "moving-mnist"]
    result = e3d("train", "-o", tmp_path / "run", *data, *options)
    assert result.stdout.strip() == str(model)
    config = checkpoint.load(model).config
    assert (config.image_size, config.patch_size, config.hidden, config.kernel_size) == ((32, 32), 8, (4,), 3)
    assert "holds a run already" in failing("train", "-o", tmp_path / "run", *data, *options, code=2)

    result = e3d("export", model, "-o", tmp_path / "run.e3d", "--context", 3, "--horizon", 2)
    assert "step.onnx" in result.stdout
    assert f"next: e3d verify {tmp_path}/run.e3d" in result.stderr
    by_bundle, by_model = tmp_path / "a.npz", tmp_path / "b.npz"
    for source, output in ((tmp_path / "run.e3d", by_bundle), (model, by_model)):
        e3d("predict", source, tmp_path / "clips.npz", "-o", output, "--context", 3, "--horizon", 4)
    one, other = (np.load(path)["frames"] for path in (by_bundle, by_model))
    assert one.shape == (3, 4, 32, 32, 1)
    assert one.dtype == np.float32
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("extra", [[], ["--against", "reference"]])
def test_verify_passes_and_records(bundle_path: Path, tmp_path: Path, extra: list[str]) -> None:
    picture = tmp_path / "drift.png"
    result = e3d("verify", bundle_path, "--backend", "onnxruntime", "--threads", 1, "--picture", picture, *extra)
    assert "PASS onnxruntime" in result.stderr
    assert picture_of(picture).shape[1] > 300
    assert json.loads(e3d("inspect", bundle_path, "--json").stdout)["verified"]["onnxruntime"]["passed"] is True
    report = json.loads(e3d("verify", bundle_path, "--backend", "onnxruntime", "--json", *extra).stdout)
    assert report["passed"]
    assert len(report["predictions"]) == 6


def test_a_layout_without_arrays_is_refused(exported: Path, tmp_path: Path) -> None:
    result = e3d("predict", exported / "tiny.e3d", REAL_CLIP, "-o", tmp_path / "o.npz", "--layout", "nthwc")
    assert "pedestrians.mp4: no array with these axes was read, so --layout NTHWC has no effect" in result.stderr
    assert "--layout requires --clip" in failing("verify", exported / "tiny.e3d", "--layout", "NTHWC", code=2)
    arguments = ["export", exported / "tiny.safetensors", "-o", tmp_path / "n.e3d", "--layout", "NTHWC"]
    assert "--layout requires --calibration or --reference" in failing(*arguments, code=2)


def test_verify_on_another_clip(exported: Path, tmp_path: Path) -> None:
    assert "PASS" in e3d("verify", exported / "tiny.e3d", "--clip", REAL_CLIP).stderr
    np.save(tmp_path / "short.npy", np.zeros((2, 16, 24, 1), np.uint8))
    line = failing("verify", exported / "tiny.e3d", "--clip", tmp_path / "short.npy", code=2)
    assert "has 2 frames, expected 4 or more; give a longer clip" in line


def test_a_picture_that_cannot_be_written_is_refused_before_the_work(exported: Path, tmp_path: Path) -> None:
    for command in ("verify", "benchmark"):
        line = failing(command, exported / "tiny.e3d", "--picture", tmp_path / "no" / "drift.png", code=2)
        assert "its folder does not exist" in line
        line = failing(command, exported / "tiny.e3d", "--picture", tmp_path, code=2)
        assert "got a folder, expected a file" in line


def test_verify_beyond_the_budget_exits_3(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perturb(monkeypatch, OnnxRuntimeBackend)
    result = e3d("verify", bundle_path, "--backend", "onnxruntime", code=3)
    assert result.stderr.splitlines()[-1].startswith("FAIL onnxruntime")
    assert "largest difference at step" in result.stderr.splitlines()[-1]
    assert result.stderr.count("predictions") == 1


def test_verify_shows_numbers_that_are_not_finite(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, steps = OnnxRuntimeBackend.step, []

    def wrong(self: OnnxRuntimeBackend, *arguments: Any) -> Any:
        prediction, state = step(self, *arguments)
        steps.append(prediction)
        return prediction if len(steps) < 6 else prediction * np.nan, state

    monkeypatch.setattr(OnnxRuntimeBackend, "step", wrong)
    result = e3d("verify", bundle_path, "--backend", "onnxruntime", code=3)
    assert next(line for line in result.stdout.splitlines() if "step by step" in line).split()[-2] == "nan"
    assert "largest difference at step 6" in result.stderr.splitlines()[-1]


def test_predict_writes_videos_pictures_and_arrays(exported: Path, tmp_path: Path) -> None:
    arguments = ["predict", exported / "tiny.e3d", REAL_CLIP, "--context", 4, "--horizon", 3, "--forecast-only"]
    for name in ("o.mp4", "o.gif", "pictures", "o.npz"):
        zoom = () if name == "o.npz" else ("--zoom", 2)
        result = e3d(*arguments, "-o", tmp_path / name, *zoom)
        assert result.stdout.strip() == str(tmp_path / name)
        assert "pedestrians.mp4: 144×192 yuv420p, stretched to 16×24 gray" in result.stderr
    wanted = np.load(tmp_path / "o.npz")["frames"]
    assert wanted.shape == (1, 3, 16, 24, 1)
    shown = read_clips(tmp_path / "pictures", Form(image_size=(32, 48), channels=1)).frames[0, :, ::2, ::2]
    np.testing.assert_allclose(shown / 255, wanted[0].clip(0, 1), atol=0.5 / 255 + 1e-6)
    video = read_clips(tmp_path / "o.mp4", Form(image_size=(32, 48), channels=1))
    assert video.frames.shape == (1, 3, 32, 48, 1)
    assert video.frames_per_second == 10
    with Image.open(tmp_path / "o.gif") as image:
        assert getattr(image, "n_frames") == 3  # noqa: B009 (only GIFs have it)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"o.mp4", "o.gif", "pictures", "o.npz"}


def test_predict_refuses_wrong_input_and_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"

    def wrong(clip: object, *options: object, code: int = 2) -> str:
        return failing("predict", exported / "tiny.e3d", clip, "-o", output, *options, code=code)

    np.savez(tmp_path / "wide.npz", frames=np.zeros((12, 16, 32, 1), np.uint8))
    assert "expected [16, 24, 1]" in wrong(tmp_path / "wide.npz")
    np.save(tmp_path / "nan.npy", np.full((12, 16, 24, 1), np.nan, np.float32))
    assert "NaN" in wrong(tmp_path / "nan.npy")
    np.save(tmp_path / "range.npy", np.full((12, 16, 24, 1), 255.0, np.float32))
    assert "expected [0, 1]; divide by 255" in wrong(tmp_path / "range.npy")
    np.save(tmp_path / "type.npy", np.zeros((12, 16, 24, 1), np.int64))
    assert "got int64" in wrong(tmp_path / "type.npy")
    np.save(tmp_path / "short.npy", np.zeros((3, 16, 24, 1), np.uint8))
    assert "has 3 frames, expected 4 or more; give a longer clip" in wrong(tmp_path / "short.npy")
    np.save(tmp_path / "long.npy", np.zeros((12, 16, 24, 1), np.uint8))
    few = wrong(tmp_path / "long.npy", "--every", 20)
    assert "has 1 frame, expected 4 or more" in few
    assert few.endswith("give a longer clip or a smaller --context, or a smaller --every")
    assert wrong(REAL_CLIP, "--resample", 0.1).endswith("or a higher --resample")
    (tmp_path / "text.mp4").write_text("not a video")
    assert "not a video that can be read" in wrong(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").touch()
    assert "not a video that can be read" in wrong(tmp_path / "empty.mp4")
    assert "no such file" in wrong(tmp_path / "absent.mp4")
    assert not output.exists()


def test_predict_refuses_an_output_path_that_is_not_writable(exported: Path, tmp_path: Path) -> None:
    arguments = ["predict", exported / "tiny.e3d", exported / "clip.npy", "--context", 4]
    assert "got .avi, expected .npz, .mp4, .gif, or no suffix for a folder" in failing(
        *arguments, "-o", tmp_path / "o.avi", code=2
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    assert "is a folder; choose another name" in failing(*arguments, "-o", tmp_path / "folder.npz", code=2)
    assert "not an empty folder" in failing(*arguments, "-o", tmp_path / "full", code=2)
    assert "its folder does not exist" in failing(*arguments, "-o", tmp_path / "no" / "o.npz", code=2)


def test_a_model_file_runs_only_on_torch(exported: Path, tmp_path: Path) -> None:
    arguments = [
        "predict",
        exported / "tiny.safetensors",
        exported / "clip.npy",
        "-o",
        tmp_path / "o.npz",
        "--context",
        4,
    ]
    assert "backend torch" in e3d(*arguments).stderr
    assert "give a bundle made by `e3d export`" in failing(*arguments, "--backend", "onnxruntime", code=2)


def test_damaged_artifacts_exit_5(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    assert "not made by e3d_deploy" in failing("inspect", tmp_path / "model.safetensors", code=5)
    (bundle_path / "step.onnx").write_bytes(b"")
    for command in (
        ["verify"],
        ["inspect"],
        ["benchmark"],
        ["stream", None],
        ["predict", None, "-o", tmp_path / "o.npz"],
    ):
        name, *rest = (REAL_CLIP if one is None else one for one in command)
        assert "step.onnx: altered or truncated" in failing(name, bundle_path, *rest, code=5)


def test_build_without_the_library_exits_4(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e3d_deploy.tensorrt_library.MODULES", {"tensorrt": ("no_such_module",)})
    remedy = failing("build", bundle_path, "--target", "tensorrt", code=4)
    assert "pip uninstall -y onnxruntime && pip install 'e3d_deploy[gpu]'" in remedy
    assert not (bundle_path / "engines").exists()


def test_stream_forecasts_a_video_while_it_plays(exported: Path, tmp_path: Path) -> None:
    output = tmp_path / "beside.mp4"
    result = e3d("stream", exported / "tiny.e3d", REAL_CLIP, "--horizon", 2, "-o", output, "--zoom", 1, "--json")
    summary = json.loads(result.stdout)
    assert str(output) in result.stderr
    assert " ".join(summary) == "backend horizon renewal frames frames_per_second dropped sources"
    (source,) = summary["sources"]
    assert summary["frames"] == source["frames"] == 150
    assert source["source_frames_per_second"] == 10
    assert 0 < source["model_ms"]["p50"] <= source["model_ms"]["p99"]
    assert source["mse"] > 0
    assert " ".join(source) == (
        "source frames frames_per_second source_frames_per_second latency_ms model_ms dropped reconnects cuts age "
        "mse copy_mse verdict output pushed not_pushed error"
    )
    video = read_clips(output, Form(image_size=(16, 48), channels=1)).frames[0]
    assert video.shape == (150, 16, 48, 1)
    assert video[:2, :, 24:].max() < 16  # black while there is no forecast yet
    assert "model p50" in e3d("stream", exported / "tiny.e3d", REAL_CLIP, "--horizon", 2).stdout


def test_benchmark_reports_speed_and_accuracy(exported: Path, tmp_path: Path) -> None:
    picture = tmp_path / "latency.png"
    options = ["--threads", 1, "--seconds", 0.02, "--picture", picture, "--json"]
    result = json.loads(e3d("benchmark", exported / "tiny.e3d", *options).stdout)
    torch_, onnxruntime = result["results"]
    assert (torch_["backend"], onnxruntime["backend"]) == ("torch", "onnxruntime")
    assert torch_["speedup"] == 1
    assert onnxruntime["median_ci_ms"][0] <= onnxruntime["median_ms"] <= onnxruntime["median_ci_ms"][1]
    assert 0 < onnxruntime["max_abs_difference"] < 1e-4
    assert torch_["max_abs_difference"] == 0
    assert result["environment"]["threads"] == 1
    assert result["environment"]["versions"]["onnxruntime"]
    assert picture_of(picture).shape[1] > 300
    shown = e3d("benchmark", exported / "tiny.e3d", "--seconds", 0.02, "--backends", "onnxruntime").stdout
    assert "onnxruntime" in shown


def test_benchmark_refuses_an_unknown_backend(exported: Path) -> None:
    assert "expected one of auto" in failing("benchmark", exported / "tiny.e3d", "--backends", "torch,tflite", code=2)


def test_inspect_shows_model_and_bundle(exported: Path) -> None:
    model = json.loads(e3d("inspect", exported / "tiny.safetensors", "--json").stdout)
    assert model["config"]["hidden"] == [4, 6]
    bundle = json.loads(e3d("inspect", exported / "tiny.e3d", "--json").stdout)
    assert bundle["config"] == model["config"]
    assert bundle["step_inputs"]["history.1"] == {"shape": [1, 4, 48, 6], "dtype": "float32"}
    assert bundle["bundle"]["history"] == {"slots": 4, "exact_for_steps": 4, "then": "the last 4 cells"}
    assert "exact for 4 steps, then the last 4 cells" in e3d("inspect", exported / "tiny.e3d").stdout


def test_inspect_reports_the_cost_of_the_graphs(exported: Path) -> None:
    found = json.loads(e3d("inspect", exported / "tiny.e3d", "--json").stdout)
    assert found["cost"]["steps"] == {"step": 1, "rollout": 2, "clip": 6}
    assert found["nodes"]["Softmax"] == {"step": 2, "rollout": 4, "clip": 12}
    text = e3d("inspect", exported / "tiny.e3d").stdout
    assert f"{found['cost']['flop']['clip']:,}" in text
    assert "counting method: FLOP: 2 for each multiply-add" in text


def test_inspect_refuses_a_file_that_is_neither_bundle_nor_model(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign.onnx").write_bytes(b"x")
    assert "foreign.onnx: a graph, not a bundle" in failing("inspect", tmp_path / "foreign.onnx", code=5)
    line = failing("inspect", exported / "tiny.e3d" / "reference.npz", code=5)
    assert "an archive, not a bundle; if `e3d pack` wrote it" in line
    assert "if it is a PyTorch checkpoint, import it with `e3d import`" in line


def test_pack_and_unpack(bundle_path: Path, tmp_path: Path) -> None:
    archive, output = tmp_path / "tiny.e3d.zip", tmp_path / "out.e3d"
    result = e3d("pack", bundle_path, "-o", archive)
    assert result.stdout.strip() == str(archive)
    assert f"next: e3d unpack {archive} -o tiny.e3d" in result.stderr
    assert "left out" not in result.stderr
    assert "already exists; give --overwrite" in failing("pack", bundle_path, "-o", archive, code=2)
    result = e3d("unpack", archive, "-o", output)
    assert result.stdout.strip() == str(output)
    assert f"next: e3d verify {output}" in result.stderr
    assert "are the same" in e3d("diff", bundle_path, output, "--exit-code").stdout
    assert "already exists; give --overwrite" in failing("unpack", archive, "-o", output, code=2)
    e3d("unpack", archive, "-o", output, "--overwrite")
    (tmp_path / "text.zip").write_text("not an archive")
    assert "text.zip: is not a zip archive" in failing(
        "unpack", tmp_path / "text.zip", "-o", tmp_path / "x.e3d", code=5
    )
    assert "no such file" in failing("unpack", tmp_path / "absent.zip", "-o", tmp_path / "x.e3d", code=2)
    assert "got a folder, expected an archive of `e3d pack`" in failing(
        "unpack", bundle_path, "-o", tmp_path / "x.e3d", code=2
    )
    assert not (tmp_path / "x.e3d").exists()


def test_the_next_command_can_be_pasted(bundle_path: Path, tmp_path: Path) -> None:
    result = e3d("pack", bundle_path, "-o", tmp_path / "my tiny.zip")
    assert f"next: e3d unpack '{tmp_path}/my tiny.zip' -o 'my tiny.e3d'\n" in result.stderr


def test_the_next_command_names_a_program_that_is_not_on_the_path(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["my env/bin/e3d", "pack"])
    monkeypatch.setenv("PATH", str(tmp_path))
    result = e3d("pack", bundle_path, "-o", tmp_path / "tiny.zip")
    assert f"next: 'my env/bin/e3d' unpack {tmp_path}/tiny.zip -o tiny.e3d\n" in result.stderr


def test_the_next_command_does_not_read_a_path_as_an_option(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = e3d("pack", "-o", "-d.zip", bundle_path)
    assert "next: e3d unpack ./-d.zip -o -d.e3d\n" in result.stderr
    e3d("unpack", "./-d.zip", "-o", "-d.e3d")
    assert (tmp_path / "-d.e3d").is_dir()


def test_pack_and_unpack_report_dropped_engines(bundle_path: Path, tmp_path: Path) -> None:
    (bundle_path / "engines").mkdir()
    (bundle_path / "engines" / "step.tensorrt.plan").write_bytes(bytes(2_500_000))
    files = {
        **Bundle.open(bundle_path).manifest.files,
        "engines/step.tensorrt.plan": sha256(bundle_path / "engines" / "step.tensorrt.plan"),
    }
    rewrite(bundle_path, files=files, engines={"step.tensorrt": sidecar()})
    archive = tmp_path / "tiny.zip"
    assert "omitted: the engines step.tensorrt" in e3d("pack", bundle_path, "-o", archive).stderr
    assert "omitted" not in e3d("pack", bundle_path, "-o", archive, "--overwrite", "--with-engines").stderr
    line = "WARN dropped: the engines step.tensorrt, because they are native code"
    assert line in e3d("unpack", archive, "-o", tmp_path / "a.e3d").stderr
    assert "WARN" not in e3d("unpack", archive, "-o", tmp_path / "b.e3d", "--trust-engines").stderr
    assert (tmp_path / "b.e3d" / "engines" / "step.tensorrt.plan").read_bytes() == bytes(2_500_000)
    small = ["unpack", archive, "-o", tmp_path / "c.e3d", "--limit-mb", 2]
    assert "but the limit is 2,000,000; raise the limit with --limit-mb" in failing(*small, "--trust-engines", code=5)
    e3d(*small)


def test_doctor_shows_libraries_and_how_to_install_missing_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(e3d("doctor", "--json").stdout)
    libraries = {one["library"]: one for one in found["libraries"]}
    assert libraries["onnxruntime"]["version"]
    assert found["backends"]["onnxruntime"] is True
    monkeypatch.setattr(inventory, "version_of", lambda packages: "1.0" if "onnxruntime" in packages[0] else None)
    result = e3d("doctor")
    assert "pip install 'e3d_deploy[train]'" in result.stdout


def test_a_missing_library_names_its_extra(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    line = failing("stream", exported / "tiny.e3d", REAL_CLIP, code=4)
    assert "pip install 'e3d_deploy[video]'" in line


def test_an_unexpected_error_is_one_line_and_a_traceback_only_with_debug(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(TorchBackend, "step", explode)
    arguments = ["verify", exported / "tiny.e3d", "--backend", "torch"]
    assert "unexpected ZeroDivisionError: by zero" in failing(*arguments, code=1)
    result = e3d("--debug", *arguments, code=1)
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: by zero; run `e3d --debug …` to see the traceback\n")


def test_debug_keeps_the_exit_code(tmp_path: Path) -> None:
    result = e3d("--debug", "inspect", tmp_path / "absent.e3d", code=2)
    assert "BundleMissing" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["export", "M", "-o", "X", "--calibration", "/no"], "calibration: not used with precision fp32"),
        (["export", "M", "-o", "X", "--batch", "1000000000000"], "expected a number from 1 to 4096, or any"),
        (
            ["evaluate", "B", "--patch-size", "99", "--image-size", "1x1"],
            "--patch-size, --image-size: only for third-party",
        ),
        (["evaluate", "M", "--channels", "7"], "--channels: only for third-party checkpoints"),
        (["doctor", "--again"], "--again requires --bundle"),
        (["benchmark", "B", "--fps", "3"], "--fps requires --latency-goal"),
        (["benchmark", "B", "--tolerance", "0"], "--tolerance requires --baseline"),
        (["benchmark", "B", "--seconds", "nan"], "nan is not a finite number"),
        (["benchmark", "B", "--seconds", "inf"], "inf is not in the range"),
        (["build", "B", "--target", "tensorrt", "--cache-limit-gb", "inf"], "inf is not a finite number"),
        (["train", "-o", "X", "--time-limit", "nan"], "nan is not a finite number"),
        (["build", "B", "--target", "tensorrt", "--compute-capability", ""], "got '', expected one such as 8.6"),
        (["build", "B", "--target", "tensorrt", "--workspace-mb", "9" * 20], "expected 1 to 9223372036854775807"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_an_option_without_effect_or_without_end_is_refused(
    exported: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    places = {"M": exported / "tiny.safetensors", "B": exported / "tiny.e3d", "X": tmp_path / "x"}
    assert words in failing(*(places.get(one, one) for one in options), code=2)
    assert not (tmp_path / "x").exists()


OUT_OF_MEMORY = (
    MemoryError("Unable to allocate 1 TiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nframe #0: c10::ThrowEnforceNotMet"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["numpy", "cpu", "gpu", "system"])
def test_out_of_memory_exits_7(exported: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(TorchBackend, "step", fail)
    result = e3d("verify", exported / "tiny.e3d", "--backend", "torch", code=7)
    assert "use a smaller batch or model" in result.stderr.splitlines()[-1]
    assert "frame #0" not in result.stderr


def test_a_closed_pipe_is_not_an_error(exported: Path) -> None:
    command = [sys.executable, "-m", "e3d_deploy", "diff", exported / "tiny.e3d", exported / "tiny.e3d"]
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert "Broken pipe" not in done.stderr


def test_ctrl_c_exits_130(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(OnnxRuntimeBackend, "step", interrupt)
    assert "interrupted" in e3d("verify", exported / "tiny.e3d", "--backend", "onnxruntime", code=130).stderr


def test_ctrl_c_in_training_exits_130_and_names_the_command_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, count = Learner.training_step, []

    def interrupt(self: Learner, *arguments: Any) -> Any:
        count.append(1)
        if len(count) == 3:  # after the first saved state
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Learner, "training_step", interrupt)
    options = ["--image-size", "32x32", "--patch-size", 8, "--hidden", "4", "--kernel-size", 3, "--context", 3]
    options += ["--horizon", 2, "--batch-size", 1, "--steps", 6, "--save-every", 2]
    result = e3d("train", "-o", tmp_path / "run", *options, code=130)
    assert f"next: e3d train -o {tmp_path}/run --resume" in result.stderr
    saved = (tmp_path / "run" / "model.safetensors").read_bytes()
    e3d("train", "-o", tmp_path / "run", "--resume", *options)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != saved


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "e3d_deploy", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("e3d")
