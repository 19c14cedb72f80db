"""Evaluation: the numbers of the publications, the baselines, the written files, and the command."""

import json
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import demo_quality
from e3d_deploy.config import ModelConfig
from e3d_deploy.data.clips import PEDESTRIANS, read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.errors import ClipError, ConfigError, ShapeError, StreamError
from e3d_deploy.evaluation import Evaluation, evaluate
from e3d_deploy.evaluation.conventions import CONVENTIONS, OPENSTL, ORIGINAL
from e3d_deploy.evaluation.samples import write_samples
from e3d_deploy.files import new_folder
from e3d_deploy.runtime import Predictor
from e3d_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from e3d_deploy.shipped import extracted
from tests.golden import GOLDEN, read
from tests.tools import e3d

PRINTED_MSE = 1e-6  # relative; the original sums in float32; measured 4.7e-8
PRINTED_PSNR = 2e-5  # dB; the original takes the logarithm in float32; measured 3.4e-6
BACKENDS = 2e-5  # relative, ONNX Runtime against PyTorch; measured 2.7e-6 (SSIM)
CUT_OFF = 1e-2  # the same where a change of 1e-7 may change a value truncated to 8 bits; measured 7.6e-4 (SSIM)
CARD = 2e-5  # relative; measured 6.6e-6 (SSIM), of which the card's five decimals are up to 6.9e-6

Frames = np.ndarray[Any, Any]
ARRAYS, _ = read(GOLDEN / "metrics.npz")


class Recorded:
    """A backend that returns given forecasts [horizon, C, H, W], one per clip."""

    name, sizes, pads, device = "recorded", (1,), False, None

    def __init__(self, forecasts: Sequence[Frames], context_length: int) -> None:
        self.forecasts, self.context_length = iter(forecasts), context_length

    def initial_state(self, batch: int | None = None) -> dict[str, Any]:
        return {"forecast": next(self.forecasts), "seen": 0}

    def step(self, _: Frames, state: dict[str, Any]) -> tuple[Frames, dict[str, Any]]:
        place = max(state["seen"] + 1 - self.context_length, 0)
        return state["forecast"][place : place + 1], {**state, "seen": state["seen"] + 1}

    def close(self) -> None:
        pass


def recorded(forecasts: Sequence[Frames], *, context_length: int) -> Predictor:
    _, C, H, W = forecasts[0].shape
    config = ModelConfig(image_size=(H, W), channels=C, patch_size=2, hidden=(4,))
    return Predictor(config, Recorded(forecasts, context_length), identity="recorded")  # type: ignore[arg-type]


def golden(name: str) -> list[Frames]:
    """Return the clips [B, T, C, H, W] and forecasts [B, horizon, C, H, W] of all recorded batches."""
    batches = (np.moveaxis(ARRAYS[f"{name}/{kind}"], -1, -3) for kind in ("target", "pred"))
    return [batch.reshape(-1, *batch.shape[2:]) for batch in batches]


def measured(forecast: Frames, truth: Frames) -> Evaluation:
    """Evaluate one forecast; its context is the first frame of `truth`."""
    clip = np.concatenate([truth[:1], truth]).astype(np.float32)
    predictor = recorded([forecast.astype(np.float32)], context_length=1)
    return evaluate(predictor, [clip], context_length=1, horizon=len(truth))


@pytest.mark.parametrize("name", ["gray", "rgb"])
def test_the_original_convention_is_what_the_released_code_printed(name: str) -> None:
    clips, forecasts = golden(name)
    horizon = forecasts.shape[1]
    context_length = clips.shape[1] - horizon
    predictor = recorded(list(forecasts), context_length=context_length)
    found = evaluate(predictor, clips, context_length=context_length, horizon=horizon)
    assert found.clips == len(clips)
    mse, psnr = (found.frames["original", measure, "forecast"] for measure in ("mse", "psnr"))
    np.testing.assert_allclose(mse, ARRAYS[f"{name}/mse_per_frame"], rtol=PRINTED_MSE)
    np.testing.assert_allclose(psnr, ARRAYS[f"{name}/psnr_per_frame"], rtol=0, atol=PRINTED_PSNR)
    assert found.overall("original", "mse") == pytest.approx(float(ARRAYS[f"{name}/mse_per_seq"]), rel=PRINTED_MSE)
    assert found.overall("original", "psnr") == pytest.approx(float(ARRAYS[f"{name}/psnr_mean"]), abs=PRINTED_PSNR)


def test_the_conventions_differ_in_clipping_rounding_and_sums() -> None:
    truth = np.full((2, 1, 8, 8), 1.0)
    forecast = np.full((2, 1, 8, 8), 0.5)
    forecast[0] = 1.5  # equals the truth once it is clipped
    found = measured(forecast, truth)
    assert found.frames["openstl", "mse", "forecast"] == [64 * 0.25, 64 * 0.25]
    assert found.frames["openstl", "mae", "forecast"] == [64 * 0.5, 64 * 0.5]
    assert found.overall("openstl", "mse") == 16
    assert found.frames["original", "mse", "forecast"] == [0, 64 * 0.25]
    assert found.overall("original", "mse") == 16  # per sequence
    assert found.overall("original", "mae") == 16  # per frame
    for convention, difference in (("openstl", 0.5), ("original", 128 / 255)):  # 127.5 is truncated to 127
        infinite, finite = found.frames[convention, "psnr", "forecast"]
        assert infinite == np.inf
        assert finite == pytest.approx(-20 * np.log10(difference))
    assert found.frames["openstl", "ssim", "forecast"][0] == pytest.approx(1)


def test_numbers_are_means_over_the_clips() -> None:
    rng = np.random.default_rng(0)
    truths, forecasts = rng.random((2, 3, 2, 1, 8, 8))
    each = [measured(*pair) for pair in zip(forecasts, truths, strict=True)]
    clips = [np.concatenate([truth[:1], truth]).astype(np.float32) for truth in truths]
    predictor = recorded([forecast.astype(np.float32) for forecast in forecasts], context_length=1)
    together = evaluate(predictor, clips, context_length=1, horizon=2)
    for key, values in together.frames.items():
        np.testing.assert_allclose(values, np.mean([one.frames[key] for one in each], axis=0), rtol=1e-12)


def test_the_baselines_are_the_last_frame_and_the_mean_of_the_context() -> None:
    clip = np.stack([np.full((1, 8, 8), value, np.float32) for value in (0, 0.5, 0.5, 1)])
    found = evaluate(recorded([clip[2:]], context_length=2), [clip], context_length=2, horizon=2)
    assert found.forecasters == ["forecast", "copy last", "mean of context"]
    assert found.frames["openstl", "mse", "forecast"] == [0, 0]
    assert found.frames["openstl", "mse", "copy last"] == [0, 64 * 0.25]
    assert found.frames["openstl", "mse", "mean of context"] == [64 * 0.0625, 64 * 0.5625]


def test_every_number_in_the_json_is_described_and_infinity_is_null() -> None:
    truth = np.random.default_rng(0).random((2, 1, 8, 8))
    found = json.loads(json.dumps(measured(truth, truth).to_dict(), allow_nan=False))
    assert set(found["conventions"]) == set(CONVENTIONS)
    for convention in found["conventions"].values():
        assert convention["meaning"].endswith(".")
        assert all(measure["meaning"] and measure["overall"] for measure in convention["measures"].values())
    original = found["conventions"]["original"]["measures"]
    assert original["psnr"]["forecast"] == {"frames": [None, None], "overall": None}
    assert original["mse"]["overall"] == "sum over frames"
    assert "data range 2" in found["conventions"]["openstl"]["measures"]["ssim_range_2"]["meaning"]


def test_clips_are_not_stored() -> None:
    """Each clip is freed before the next but one is read, for any number of clips."""
    seen: list[weakref.ref[Frames]] = []
    alive = []

    def clips() -> Iterator[Frames]:
        for _ in range(20):
            clip = np.zeros((3, 1, 8, 8), np.float32)
            seen.append(weakref.ref(clip))
            alive.append(sum(one() is not None for one in seen))
            yield clip

    forecasts = [np.zeros((2, 1, 8, 8), np.float32)] * 20
    assert evaluate(recorded(forecasts, context_length=1), clips(), context_length=1, horizon=2).clips == 20
    assert max(alive) <= 2


def test_bad_clips_are_named() -> None:
    good = np.zeros((3, 1, 8, 8), np.float32)

    def run(second: Frames, forecast: Frames = good[1:], **lengths: int) -> None:
        predictor = recorded([good[1:], forecast], context_length=1)
        evaluate(predictor, [good, second], **{"context_length": 1, "horizon": 2, **lengths})

    with pytest.raises(ShapeError, match=r"clip 2: got \[2, 1, 8, 8\], expected .* with T at least 3"):
        run(good[:2])
    with pytest.raises(ShapeError, match=r"clip 2: got \[3, 8, 10, 1\].*, expected \[..., 8, 8, 1\]; resize it"):
        run(np.zeros((3, 1, 8, 10), np.float32))
    with pytest.raises(ShapeError, match="clip 2: holds NaN"):
        run(np.full((3, 1, 8, 8), np.nan, np.float32))
    with pytest.raises(StreamError, match="clip 2: frame 0: the prediction is not finite"):
        run(good, np.full((2, 1, 8, 8), np.nan, np.float32))
    late = good[1:].copy()
    late[1, 0, 0, 0] = np.inf
    with pytest.raises(StreamError, match="clip 2: forecast frame 1: the prediction is not finite"):
        run(good, late)
    with pytest.raises(ConfigError, match="expected 1 or more"):
        run(good, horizon=0)
    with pytest.raises(ClipError, match="evaluation: got no clip"):
        evaluate(recorded([good], context_length=1), [], context_length=1, horizon=2)


@pytest.mark.parametrize("name", ["gray", "rgb"])
def test_samples_have_the_names_and_values_of_the_original(name: str, tmp_path: Path) -> None:
    targets, forecasts = (np.moveaxis(ARRAYS[f"{name}/{kind}"], -1, -3) for kind in ("target", "pred"))
    context_length = targets.shape[2] - forecasts.shape[2]
    for number, (target, forecast) in enumerate(zip(targets, forecasts, strict=True), 1):  # one batch each
        write_samples(tmp_path / "golden" / str(number), target[0], forecast[0], context_length)
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert written == sorted(ARRAYS[f"{name}/saved_files"])
    with Image.open(tmp_path / "golden" / "1" / f"pd{context_length + 1:02d}.png") as picture:
        assert np.array_equal(np.asarray(picture), ARRAYS[f"{name}/saved_first_pd"])


def test_samples_are_not_overwritten_and_must_be_pictures(tmp_path: Path) -> None:
    clip = np.zeros((3, 1, 8, 8), np.float32)
    write_samples(tmp_path / "1", clip, clip[1:], 1)
    with pytest.raises(ConfigError, match="samples are not overwritten"):
        write_samples(tmp_path / "1", clip, clip[1:], 1)
    with pytest.raises(ConfigError, match="got frames of 2 colours, expected 1 or 3"):
        write_samples(tmp_path / "2", clip.repeat(2, axis=1), clip[1:], 1)


def test_a_new_folder_is_complete_or_absent(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a") as folder:  # noqa: PT012 (both are the test)
        (folder / "file").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with new_folder(tmp_path / "a") as folder:
        (folder / "file").touch()
        assert list((tmp_path / "a").iterdir()) == []
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.fixture
def clips_path(tmp_path: Path) -> Path:
    """Write thirty clips of seven frames, three of them in the test split."""
    np.savez(tmp_path / "clips.npz", frames=np.random.default_rng(1).integers(0, 256, (30, 7, 16, 24, 1), np.uint8))
    return tmp_path / "clips.npz"


def report_of(*arguments: object) -> Any:
    return json.loads(e3d("evaluate", *arguments, "--json").stdout)


def test_a_model_file_and_its_bundle_measure_the_same(exported: Path, clips_path: Path) -> None:
    by_bundle = report_of(exported / "tiny.e3d", "--data", clips_path, "--backend", "onnxruntime")
    by_model = report_of(exported / "tiny.safetensors", "--data", clips_path, "--context", 4, "--horizon", 3)
    assert (by_bundle["backend"], by_model["backend"]) == ("onnxruntime", "torch")
    assert by_bundle["clips"] == by_model["clips"] == 3
    assert (by_bundle["context_length"], by_bundle["horizon"]) == (4, 3)
    for name, convention in CONVENTIONS.items():
        one, other = (report["conventions"][name]["measures"] for report in (by_bundle, by_model))
        for measure in convention.measures:
            tolerance = CUT_OFF if name == "original" and measure in ("psnr", "ssim") else BACKENDS
            expected = other[measure]["forecast"]["frames"]
            assert one[measure]["forecast"]["frames"] == pytest.approx(expected, rel=tolerance)
            assert one[measure]["copy last"] == other[measure]["copy last"]


def test_the_table_names_conventions_measures_and_baselines(exported: Path, clips_path: Path) -> None:
    arguments = ["evaluate", exported / "tiny.e3d", "--data", clips_path, "--horizon", 2]
    result = e3d(*arguments, "--most", 2)
    assert OPENSTL.meaning in result.stdout
    assert ORIGINAL.meaning in result.stdout
    for line in ("ssim_range_2", "forecast, frame 2", "copy last, overall", "mean of context, overall"):
        assert line in result.stdout
    assert "frame 3" not in result.stdout
    assert "2 clips of" in result.stderr.splitlines()[-1]
    assert ORIGINAL.meaning not in e3d(*arguments, "--convention", "openstl").stdout


def test_the_table_contains_names_that_are_not_utf8(exported: Path, clips_path: Path, tmp_path: Path) -> None:
    bundle = tmp_path / os.fsdecode(b"caf\xe9.e3d")
    bundle.symlink_to(exported / "tiny.e3d")
    arguments = ["evaluate", bundle, "--data", clips_path, "-o", tmp_path / "out", "--backend", "onnxruntime"]
    e3d(*arguments, "--most", 1, "--samples", 0)
    assert b"caf\xe9.e3d" in (tmp_path / "out" / "table.md").read_bytes()


def test_the_folder_holds_report_table_plots_and_samples(exported: Path, clips_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["evaluate", exported / "tiny.e3d", "--data", clips_path, "-o", output]
    assert e3d(*arguments, "--samples", 2).stdout.splitlines()[-1] == str(output)
    files = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    samples = {f"gt{t:02d}.png" for t in range(1, 8)} | {f"pd{t:02d}.png" for t in range(5, 8)}
    pictures = {f"{number}.{suffix}" for number in (1, 2) for suffix in ("png", "gif")}
    plots = {"error_openstl.png", "error_original.png"}
    assert files == {"report.json", "table.md", *plots, *pictures, *(f"{n}/{name}" for n in (1, 2) for name in samples)}
    report = json.loads((output / "report.json").read_text())
    assert report["data"] == str(clips_path)
    assert OPENSTL.meaning in (output / "table.md").read_text()
    with Image.open(output / "1.gif") as film:
        assert (getattr(film, "n_frames"), film.size) == (7, (2 * 26 * 8, 18 * 8))  # noqa: B009 (only GIFs have it)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "clips.npz"}
    error = e3d(*arguments, code=2).stderr.splitlines()[-1]
    assert "already exists and is not an empty folder" in error


def test_generated_clips_are_the_default(exported: Path) -> None:
    error = e3d("evaluate", exported / "tiny.e3d", "--most", 1, code=2).stderr.splitlines()[-1]
    assert "too small for digits of 28 pixels" in error


def test_a_failed_evaluation_leaves_no_files(
    exported: Path, clips_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*options: object, model: str = "tiny.e3d", code: int = 2) -> str:
        result = e3d("evaluate", exported / model, "-o", tmp_path / "out", *options, code=code)
        assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
        return result.stderr.splitlines()[-1]

    assert "no clip has 13 frames" in failing("--data", clips_path, "--horizon", 9)
    np.savez(tmp_path / "wide.npz", frames=np.zeros((1, 9, 16, 32, 1), np.uint8))
    assert "16, 32" in failing("--data", tmp_path / "wide.npz")
    assert "absent" in failing("--data", tmp_path / "absent.npz")
    assert "tensorrt" in failing("--data", clips_path, "--backend", "tensorrt", code=4)
    assert "absent.safetensors" in failing("--data", clips_path, "--lpips", tmp_path / "absent.safetensors", code=2)
    step = OnnxRuntimeBackend.step

    def broken(self: OnnxRuntimeBackend, *arguments: Any) -> Any:
        prediction, state = step(self, *arguments)
        return prediction * np.float32(np.nan), state

    monkeypatch.setattr(OnnxRuntimeBackend, "step", broken)
    options = ["--data", clips_path, "--backend", "onnxruntime"]
    assert "clip 1: frame 0: the prediction is not finite" in failing(*options, code=1)


def test_the_demo_models_card_is_measured_by_the_same_code() -> None:
    """In the card predictions are clipped, and each measure is given for the forecast and each baseline, per frame."""
    import torch

    from e3d_deploy import checkpoint, metrics
    from e3d_deploy.data.datasets import MovingMNIST
    from e3d_deploy.demo.exhibits import CONTEXT, DIGITS, HORIZON, MODEL, TEST_SEED

    found = demo_quality.measure(DIGITS, 2)["measures"]
    written = json.loads(DIGITS.card.read_text())["quality"]["measures"]
    assert {name: list(by) for name, by in found.items()} == {name: list(by) for name, by in written.items()}
    data = MovingMNIST("test", length=CONTEXT + HORIZON, seed=TEST_SEED)
    clips = torch.stack([data[index] for index in range(2)])
    with torch.inference_mode():
        forecast = checkpoint.load(MODEL)(clips[:, :CONTEXT], HORIZON)[:, -HORIZON:].clamp(0, 1).numpy()
    for name, function in metrics.MEASURES.items():
        expected = function(forecast, clips[:, CONTEXT:].numpy()).mean(0)
        np.testing.assert_allclose(found[name]["forecast"], expected, rtol=CARD)


def test_the_film_models_card_is_measured_on_the_test_film() -> None:
    from e3d_deploy.demo.exhibits import FILM

    written, found = json.loads(FILM.card.read_text())["quality"], demo_quality.measure(FILM, 2)
    assert written["sequences"] == 131  # windows of 20 frames in 150
    assert (found["sequences"], found["task"]) == (2, written["task"])
    with extracted(PEDESTRIANS) as path:
        film = read_clips(path, Form(image_size=(72, 96), channels=1)).frames[0]
    frame = film.astype(np.float64) / 255
    copied = [np.square(frame[start + 10] - frame[start + 9]).sum() for start in (0, 1)]
    np.testing.assert_allclose(found["measures"]["mse"]["copy last"][0], np.mean(copied), rtol=CARD)


def test_a_learning_curve_joins_runs_and_starts_that_ended_before_a_validation(tmp_path: Path) -> None:
    import torch

    def log(run: str, version: int, text: str) -> None:
        folder = tmp_path / run / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)

    log("first", 0, "step,train_mse,valid_mse\n1,9.0,\n9,,5.0\n")
    log("first", 1, "step,train_mse\n11,8.0\n")
    log("first", 2, "step,train_mse,valid_mse\n19,,4.0\n24,7.0,\n")
    log("second", 0, "step,train_mse,valid_mse\n9,,3.0\n")
    for run, steps in (("first", 27), ("second", 10)):
        torch.save({"global_step": steps}, tmp_path / run / "last.ckpt")
    found = demo_quality.curve([tmp_path / "first", tmp_path / "second"])
    assert found == {"step": [10, 20, 37], "valid_mse": [5.0, 4.0, 3.0]}
