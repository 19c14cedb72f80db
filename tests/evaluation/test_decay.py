"""Decay of a state: measuring it, reporting it, and storing it with a model."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from e3d_deploy import checkpoint, metrics, plots
from e3d_deploy.bundle.folder import record_decay
from e3d_deploy.card import AGES, Card, Decay, Window
from e3d_deploy.config import ModelConfig, TrainConfig
from e3d_deploy.data.datasets import MovingMNIST, decay_data
from e3d_deploy.data.form import Form
from e3d_deploy.data.kth import find_stretches
from e3d_deploy.data.sources import Source, decay_windows, open_source
from e3d_deploy.errors import (
    BundleError,
    CheckpointError,
    ClipError,
    ConfigError,
    ShapeError,
    StreamError,
)
from e3d_deploy.evaluation.renewals import compare_renewals, positions_of
from e3d_deploy.evaluation.streaming import decay_ages, measure_decay, record_with_model, steps_of
from e3d_deploy.files import sha256
from e3d_deploy.model import E3DLSTM
from e3d_deploy.runtime import Bundle, Predictor, Snapshot, load
from e3d_deploy.runtime.backends.torch_eager import TorchBackend
from e3d_deploy.training import decay as training_decay
from e3d_deploy.training.train import Machine, train
from tests.tools import e3d

STREAM = 1e-6  # relative difference of errors; measured 2e-9, with replay on the clip graph
BATCH = 1e-4  # relative difference between batch sizes; measured 3.6e-7
BACKENDS = 1e-4  # relative difference between ONNX Runtime and PyTorch; measured 4.2e-7

Frames = np.ndarray[Any, Any]


def frames(count: int, *, seed: int = 0) -> Frames:
    """Return a clip of noise, float32 [T, 1, 16, 24]."""
    return np.random.default_rng(seed).random((count, 1, 16, 24), np.float32)


def predictor_for(model: E3DLSTM) -> Predictor:
    return Predictor(model.config, TorchBackend(model), identity="tiny")


def by_streams(predictor: Predictor, windows: list[Frames], age: int, horizon: int) -> Frames:
    """Return the errors [windows, horizon] of the public API: a new stream per window, a push per frame."""
    errors = []
    for window in windows:
        stream, target = predictor.stream(renewal="none"), len(window) - horizon
        for picture in np.moveaxis(window[target - age : target], 1, -1):
            stream.push(picture)
        errors.append(metrics.mse(stream.forecast(horizon).clip(0, 1), window[target:]))
    return np.array(errors)


def test_errors_equal_those_of_new_streams_before_the_same_frames(tiny_model: E3DLSTM) -> None:
    windows = [frames(9, seed=number) for number in range(3)]
    with predictor_for(tiny_model) as predictor:
        found = measure_decay(
            predictor.backend, windows, ages=(1, 6), context_length=3, horizon=3, data="noise", progress=lambda _: None
        )
        assert list(found.mse) == [1, 3, 6]
        for age, errors in found.mse.items():
            expected = by_streams(predictor, windows, age, 3).mean(axis=0)
            np.testing.assert_allclose(errors, expected, rtol=STREAM)
    copying = np.mean([metrics.mse(window[5:6], window[6:]) for window in windows], axis=0)
    np.testing.assert_allclose(found.copy_last, copying, rtol=STREAM)
    assert (found.context_length, found.data, found.clips) == (3, "noise", 3)


def test_windows_are_stepped_together_if_the_backend_can(any_batch: Path, exported: Path) -> None:
    windows = [frames(9, seed=number) for number in range(5)]  # a batch of 4 and one of 1
    options: dict[str, Any] = {"ages": (6,), "context_length": 3, "horizon": 2, "data": "noise"}
    seen: list[str] = []
    with load(any_batch, "onnxruntime") as predictor:
        together = measure_decay(predictor.backend, windows, **options, progress=seen.append)
    assert len(seen) == 2 * 2
    with load(exported / "tiny.e3d", "onnxruntime") as predictor:
        alone = measure_decay(predictor.backend, windows, **options)
    for age, errors in alone.mse.items():
        np.testing.assert_allclose(together.mse[age], errors, rtol=BATCH)


def test_predictions_are_clipped_and_frames_after_the_window_ignored() -> None:
    class Loud:
        sizes = (1,)

        def initial_state(self, batch: int | None = None) -> None:
            pass

        def step(self, frame: Frames, _: None) -> tuple[Frames, None]:
            return np.full_like(frame, 7), None

    window = np.concatenate([np.zeros((3, 1, 4, 4)), np.ones((2, 1, 4, 4)), np.zeros((5, 1, 4, 4))])
    found = measure_decay(Loud(), [window], ages=(3,), context_length=2, horizon=2, data="")
    assert found.mse == {2: (0.0, 0.0), 3: (0.0, 0.0)}
    assert found.copy_last == (16.0, 16.0)
    assert (found.ratio(3), found.report()["ages"]["3"]["ratio"]) == (1.0, 1.0)


def test_measured_ages_are_the_given_ages_and_the_context() -> None:
    assert decay_ages(10) == AGES
    assert decay_ages(4) == tuple(sorted({*AGES, 4, 24}))
    assert decay_ages(4, (9, 1, 9)) == (1, 4, 9)
    assert steps_of((1, 10), horizon=10) == 10 + 19
    with pytest.raises(ConfigError, match="ages: got 0, expected 1 or more"):
        decay_ages(4, (0,))


def test_bad_windows_are_named(tiny_model: E3DLSTM) -> None:
    backend = TorchBackend(tiny_model)
    options: dict[str, Any] = {"ages": (), "context_length": 3, "horizon": 2, "data": "noise"}
    with pytest.raises(ShapeError, match=r"window 2: got \[4, 1, 16, 24\], expected .* T at least 5"):
        measure_decay(backend, [frames(5), frames(4)], **options)
    with pytest.raises(ClipError, match="noise: got no window"):
        measure_decay(backend, [], **options)
    with pytest.raises(ConfigError, match="horizon: got 0"):
        measure_decay(backend, [frames(5)], **{**options, "horizon": 0})
    with pytest.raises(StreamError, match="window 1: a prediction at age 3 is not finite"):
        measure_decay(backend, [np.full((5, 1, 16, 24), np.nan, np.float32)], **options)


# Windows


def source_of(*lengths: int) -> Source:
    clips = [np.full((length, 16, 24, 1), number, np.uint8) for number, length in enumerate(lengths)]
    return Source("clips", "array", clips, None, held_out=True)


def test_windows_begin_at_every_frame_that_leaves_room_for_the_largest_age() -> None:
    windows, age = decay_windows(source_of(10, 3, 12), (1, 4, 7, 99), least=2, horizon=3)
    assert age == 7
    assert windows.tolist() == [[0, 0], [2, 0], [2, 1], [2, 2]]


def test_largest_age_is_one_that_half_of_the_clips_have_room_for() -> None:
    assert decay_windows(source_of(10, 10, 100), (7, 60), least=2, horizon=3)[1] == 7
    assert decay_windows(source_of(10, 100), (7, 60), least=2, horizon=3)[1] == 60
    assert decay_windows(source_of(10, 4, 4, 4), (7,), least=2, horizon=3)[1] == 7  # the short ones do not count
    assert decay_windows(source_of(6), (1, 99), least=3, horizon=3)[1] == 3
    with pytest.raises(ClipError, match="clips: no clip has 6 frames without a gap"):
        decay_windows(source_of(5, 5), (1,), least=3, horizon=3)


def test_windows_do_not_span_a_gap() -> None:
    assert find_stretches([[1, 2, 3, 7, 8], [], [5]]).tolist() == [[0, 0, 3], [0, 3, 2], [2, 0, 1]]
    source = replace(source_of(5, 1), stretches=find_stretches([[1, 2, 3, 7, 8], [5]]))
    assert decay_windows(source, (), least=1, horizon=1)[0].tolist() == [[0, 0], [0, 1], [0, 3]]


def test_ages_without_room_are_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", np.arange(20 * 16 * 24, dtype=np.uint8).reshape(20, 16, 24, 1))
    options: dict[str, Any] = {"split": "test", "form": Form(image_size=(16, 24), channels=1), "most": None}
    path, ages = str(tmp_path / "clip.npy"), (1, 4, 12, 16, 17)
    windows, fitting = decay_data(path, ages, context_length=4, horizon=4, **options)
    assert fitting == (1, 4, 12, 16)
    assert len(windows) == 1
    assert tuple(windows[0].shape) == (20, 1, 16, 24)
    opened = open_source(path, options["form"], split="test", length=8)
    again, _ = decay_data(opened, (4,), context_length=4, horizon=4, **{**options, "most": 5})
    assert len(again) == 5  # of 13


def test_generated_clips_are_as_long_as_the_largest_age_needs() -> None:
    windows, fitting = decay_data(
        "moving-mnist",
        (4, 30),
        Form(image_size=(32, 32), channels=1),
        split="valid",
        context_length=4,
        horizon=3,
        most=None,
    )
    assert (len(windows), len(windows[0]), fitting) == (32, 33, (4, 30))
    shorter = MovingMNIST("valid", length=7, image_size=(32, 32), seed=2**31)[0]
    assert torch.equal(windows[0][:7], shorter)


# Verdicts and records


def decay(**errors: float) -> Decay:
    """Return a decay for C = 4 and one forecast frame; errors are given by age, such as a24=1.2."""
    mse = {4: (1.0,)} | {int(age[1:]): (error,) for age, error in errors.items()}
    return Decay(context_length=4, data="noise", clips=32, mse=mse, copy_last=(2.0,))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (decay(a12=1.0, a24=1.02), "after 24 frames .* 1.02 times as wrong as after 4; .* may be any number of frames"),
        (decay(a12=1.5, a24=1.2), "after 12 frames .* 1.50 times as wrong as after 4; .* needs a renewal"),
        (decay(a5=1.5), "after 5 frames .* needs a renewal"),
        (decay(a1=9.0, a12=1.0), "ends at age 12, .* clips that reach age 24"),
        (decay(), "ends at age 4, .* clips that reach age 24"),
    ],
)
def test_verdict_describes_the_decay_and_the_remedy(found: Decay, expected: str) -> None:
    assert re.search(expected, found.verdict)


def test_error_of_exact_forecasts_has_no_finite_ratio() -> None:
    found = replace(decay(), mse={4: (0.0,), 24: (1.0,)})
    assert found.ratio(24) == np.inf
    assert json.loads(json.dumps(found.report(), allow_nan=False))["ages"]["24"]["ratio"] is None


WINDOW = Window(context_length=4, horizon=3)


def test_record_keeps_the_other_facts_of_a_model_file(tiny_model: E3DLSTM, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(tiny_model, path, card=Card(window=WINDOW))
    identity = sha256(path)
    record_with_model(path, identity, decay(a24=1.0))
    assert checkpoint.read_card(path) == Card(window=WINDOW, decay=decay(a24=1.0))
    with pytest.raises(CheckpointError, match="was written again during the measurement"):
        record_with_model(path, identity, decay())


def test_bundle_with_a_record_is_the_same_bundle(bundle_path: Path, tmp_path: Path) -> None:
    with load(bundle_path, "onnxruntime") as predictor:
        stream = predictor.stream()
        stream.push(frames(1)[0].transpose(1, 2, 0))
        stream.snapshot().save(tmp_path / "stream.npz")
        expected = stream.forecast(3)
    before = Bundle.open(bundle_path)
    record_with_model(bundle_path, before.identity, decay(a24=1.0))
    after = Bundle.open(bundle_path)
    assert after.card.decay == decay(a24=1.0)
    assert after.digest == before.digest
    assert replace(after.manifest, card={}) == replace(before.manifest, card={})
    with load(bundle_path, "onnxruntime") as predictor:
        restored = predictor.stream(Snapshot.load(tmp_path / "stream.npz"))
        assert np.array_equal(restored.forecast(3), expected)


def test_record_is_not_written_into_another_bundle(bundle_path: Path, any_batch: Path) -> None:
    opened = Bundle.open(bundle_path)
    with pytest.raises(BundleError, match="was exported again during the measurement"):
        record_with_model(any_batch, "another", decay())
    shutil.rmtree(bundle_path)
    shutil.copytree(any_batch, bundle_path)
    with pytest.raises(BundleError, match="was exported again while this command ran"):
        record_decay(opened, decay())
    assert Bundle.open(bundle_path).card.decay is None


# Renewals


def test_each_renewal_is_measured_at_every_position_of_the_cycle_on_the_same_frames(exported: Path) -> None:
    windows = [frames(13, seed=number) for number in range(2)]
    with load(exported / "tiny.e3d", "onnxruntime") as predictor:
        found = compare_renewals(predictor, windows, longest=10, horizon=3)
        assert found.positions == (8, 9, 10)
        ages = {one.renewal: one.ages for one in found.renewals}
        assert ages == {"none": (8, 9, 10), "refresh:2": (5, 3, 4), "replay": (4, 4, 4)}
        for one in found.renewals:
            for position, age, error in zip(found.positions, one.ages, one.mse, strict=True):
                ends = [window[: position + 3] for window in windows]
                assert error == pytest.approx(by_streams(predictor, ends, age, 3).mean(), rel=STREAM)
    copying = [metrics.mse(window[n - 1 : n], window[n : n + 3]).mean() for window in windows for n in found.positions]
    assert found.copy_last == pytest.approx(np.mean(copying))
    costs = {one.renewal: (one.steps_per_frame, one.steps_per_forecast) for one in found.renewals}
    assert costs == {"none": (1, 2), "refresh:2": (5 / 3, 2), "replay": (0, 6)}
    refresh = found.renewals[1]
    assert (refresh.mean, refresh.worst) == (pytest.approx(np.mean(refresh.mse)), max(refresh.mse))
    assert found.report()["by_renewal"]["refresh:2"]["ages"] == [3, 5]


def test_positions_cover_a_whole_cycle_of_every_renewal_after_the_warm_up(exported: Path) -> None:
    with load(exported / "tiny.e3d", "onnxruntime") as predictor:
        assert positions_of(predictor, ["none"], longest=10) == (10,)
        assert len(positions_of(predictor, ["refresh:2", "refresh:3"], longest=99)) == 6  # cycles of 3 and 2
        assert positions_of(predictor, ["refresh:2"], longest=8) == (6, 7, 8)
        with pytest.raises(ClipError, match="ages up to 7, expected at least 8"):
            positions_of(predictor, ["refresh:2"], longest=7)
        with pytest.raises(ConfigError, match="renewals: got none"):
            positions_of(predictor, [], longest=7)
        with pytest.raises(ClipError, match="renewals: got no window"):
            compare_renewals(predictor, [], longest=10, horizon=3)


def test_renewal_that_is_named_twice_is_compared_once(exported: Path) -> None:
    with load(exported / "tiny.e3d", "onnxruntime") as predictor:
        once, twice = (
            compare_renewals(predictor, [frames(9)], renewals=names, longest=6, horizon=3)
            for names in (["none"], ["none", "none"])
        )
    assert twice == once


# The command


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Write one clip of 40 frames, too short for a held-out part."""
    np.save(tmp_path / "film.npy", np.random.default_rng(1).integers(0, 256, (40, 16, 24, 1), np.uint8))
    return tmp_path / "film.npy"


def measured(model: Path, *options: object) -> Any:
    arguments = ["evaluate", model, "--streaming", "--ages", "1,24,99", *options]
    return json.loads(e3d(*arguments, "--json").stdout)


def test_a_model_file_and_its_bundle_decay_equally(exported: Path, film: Path) -> None:
    by_bundle = measured(exported / "tiny.e3d", "--data", film, "--backend", "onnxruntime", "--most", 6)
    lengths = ["--context", 4, "--horizon", 3]
    by_model = measured(exported / "tiny.safetensors", "--data", film, *lengths, "--most", 6)
    assert (by_bundle["backend"], by_model["backend"]) == ("onnxruntime", "torch")
    assert list(by_bundle["ages"]) == ["1", "4", "24"]
    assert by_bundle["ages_left_out"] == [99]
    assert (by_bundle["windows"], by_bundle["context_length"], by_bundle["horizon"]) == (6, 4, 3)
    assert by_bundle["recorded"] is False
    assert by_bundle["renewals"]["frames_seen"] == [22, 24]
    assert list(by_bundle["renewals"]["by_renewal"]) == ["none", "refresh:2", "replay"]
    assert by_bundle["copy_last"] == by_model["copy_last"]
    for age, found in by_bundle["ages"].items():
        assert found["frames"] == pytest.approx(by_model["ages"][age]["frames"], rel=BACKENDS)


def test_ages_are_counted_in_the_frames_that_are_read(exported: Path, film: Path) -> None:
    model, options = exported / "tiny.e3d", ["--data", film, "--backend", "onnxruntime", "--most", 1]
    found = measured(model, *options, "--every", 2)
    assert 24 in found["ages_left_out"]
    line = e3d("evaluate", model, "--streaming", "--data", "moving-mnist", "--every", 2, code=2).stderr
    assert "is generated, so it has no frame rate" in line


@pytest.mark.parametrize("name", ["tiny.e3d", "tiny.safetensors"])
def test_command_shows_draws_and_records(name: str, exported: Path, film: Path, tmp_path: Path) -> None:
    copied = shutil.copytree if name == "tiny.e3d" else shutil.copy
    model, output = Path(copied(exported / name, tmp_path / name)), tmp_path / "out"
    assert "decay: not measured" in e3d("inspect", model).stdout
    options = ["--data", film, "--context", 4, "--horizon", 3, "--ages", "1,24,99", "-o", output, "--record"]
    result = e3d("evaluate", model, "--streaming", *options)
    report = json.loads((output / "report.json").read_text())
    for line in ("age of the state", "copying the last frame", "refresh:2", report["verdict"], str(output)):
        assert line in result.stdout
    assert "skipped: ages 99" in result.stderr
    assert "14 windows" in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].endswith(f"recorded in {model}")
    with Image.open(output / "decay.png") as picture:
        assert picture.format == "PNG"
    card = Bundle.open(model).card if model.is_dir() else checkpoint.read_card(model)
    assert card.decay is not None
    assert json.loads(json.dumps(card.decay.report()))["ages"] == report["ages"]
    assert f"decay: {report['verdict']}" in e3d("inspect", model).stdout
    assert json.loads(e3d("inspect", model, "--json").stdout)["decay"]["ages"] == report["ages"]


def test_impossible_options_are_refused_before_the_work(exported: Path, film: Path, tmp_path: Path) -> None:
    def failing(*options: object, model: Path = exported / "tiny.e3d") -> str:
        return e3d("evaluate", model, "--data", film, *options, code=2).stderr.splitlines()[-1]

    assert "--record has no effect without --streaming" in failing("--record")
    assert "--ages has no effect without --streaming" in failing("--ages", "1,2")
    assert "--samples has no effect with --streaming" in failing("--streaming", "--samples", 1)
    assert "--lpips has no effect with --streaming" in failing("--streaming", "--lpips", film)
    for ages in ("0,10", "-1", "1.5", "ten", ""):
        assert "--ages" in failing("--streaming", "--ages", ages)
    assert "expected none, refresh:M or replay" in failing("--streaming", "--renewals", "none,often")
    assert "--renewals has no effect without --streaming" in failing("--renewals", "none")
    short = e3d("evaluate", exported / "tiny.e3d", "--data", film, "--streaming", "--ages", "5", "--most", 1)
    assert "renewals were not compared: renewals: got clips for ages up to 5, expected at least 8" in short.stderr
    assert "no clip has 53 frames" in failing("--streaming", "--context", 50)
    (tmp_path / "theirs.ckpt").touch()
    assert "import` first" in failing("--streaming", "--record", model=tmp_path / "theirs.ckpt")


# The end of a run

SMALL = ModelConfig(image_size=(32, 32), patch_size=8, hidden=(4,), kernel_size=3)
RUN = TrainConfig(
    context_length=3, horizon=2, steps=2, batch_size=2, warmup_steps=1, validate_every=2, validation_clips=2
)
STEPS_A_WINDOW = 30  # for the ages 3, 18, 1 and 2, in this order


def trained(run: Path, **options: Any) -> tuple[Path, list[str]]:
    """Train; return the path of the model and the lines about its decay."""
    said: list[str] = []
    path = train(SMALL, RUN, run, **{"machine": Machine(progress=False), "progress": said.append, **options})
    return path, [line for line in said if line.startswith("decay:")]


@pytest.fixture
def costly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make measuring take more work than the short run allows, and draw no previews."""
    work = training_decay.WITH_GRADIENTS * RUN.steps * RUN.batch_size * (RUN.clip_length - 1)
    monkeypatch.setattr(training_decay, "SHARE", STEPS_A_WINDOW * training_decay.WINDOWS / work)
    monkeypatch.setattr(plots, "strips", lambda *_, **__: b"picture")


def test_affordable_ages_begin_with_those_that_a_verdict_needs() -> None:
    def found(steps: int, *ages: int) -> tuple[int, ...]:
        return training_decay.affordable(ages, context_length=3, horizon=2, steps=steps)

    assert found(3, *decay_ages(3)) == ()
    assert found(4, *decay_ages(3)) == (3,)
    assert found(23, *decay_ages(3)) == (3, 18)
    assert found(STEPS_A_WINDOW, *decay_ages(3)) == (1, 2, 3, 18)
    assert found(20, 1, 2, 3, 5) == (1, 2, 3, 5)  # the clips are too short for larger ages
    assert found(10**6, *decay_ages(3)) == decay_ages(3)


@pytest.mark.usefixtures("costly")
def test_run_ends_by_recording_the_decay_of_its_model(tmp_path: Path) -> None:
    path, said = trained(tmp_path / "run")
    found = checkpoint.read_card(path).decay
    assert found is not None
    assert list(found.mse) == [1, 2, 3, 18]
    assert (found.data, found.clips, found.context_length) == ("moving-mnist", 32, 3)
    assert said == [
        "decay: measuring a state at ages 1, 2, 3, 18 on validation clips of moving-mnist",
        f"decay: {found.verdict}",
    ]
    data = MovingMNIST("valid", length=20, image_size=(32, 32), seed=2**31)
    windows = [data[number].numpy() for number in range(32)]
    with predictor_for(checkpoint.load(path)) as predictor:
        for age, errors in found.mse.items():
            np.testing.assert_allclose(errors, by_streams(predictor, windows, age, 2).mean(axis=0), rtol=BATCH)
    before = path.read_bytes()
    assert trained(tmp_path / "run", resume=True) == (path, [])
    assert path.read_bytes() == before
    assert trained(tmp_path / "again")[0].read_bytes() == before


@pytest.mark.usefixtures("costly")
def test_run_on_clips_measures_ages_that_they_have_room_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "clips.npz", frames=np.random.default_rng(0).integers(0, 256, (30, 9, 32, 32, 1), np.uint8))
    path, _ = trained(tmp_path / "run", data=[(str(tmp_path / "clips.npz"), 1.0)])
    found = checkpoint.read_card(path).decay
    assert found is not None
    assert list(found.mse) == [1, 2, 3, 5]
    assert (found.data, found.clips) == (str(tmp_path / "clips.npz"), 9)  # three windows of each held-out clip


def test_short_run_measures_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "strips", lambda *_, **__: b"picture")
    path, said = trained(tmp_path / "run")
    assert checkpoint.read_card(path).decay is None
    assert said == [
        "decay: not measured, because the run was too short; "
        f"measure it with `e3d evaluate {path} --streaming --record`"
    ]
    assert trained(tmp_path / "silent", machine=Machine(progress=False, measure_decay=False))[1] == []


@pytest.mark.usefixtures("costly")
def test_model_is_saved_even_if_measuring_fails_or_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(error: BaseException) -> None:
        def measure(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(training_decay, "measure_decay", measure)

    failing(StreamError("window 1: not finite"))
    path, _ = trained(tmp_path / "failed")
    assert checkpoint.read_card(path).decay is None
    assert "decay: not recorded (window 1: not finite); measure it with" in caplog.text
    failing(torch.OutOfMemoryError("CUDA out of memory"))
    trained(tmp_path / "full")
    assert "decay: not recorded (CUDA out of memory)" in caplog.text
    failing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "interrupted")
    path, _ = trained(tmp_path / "interrupted", resume=True)
    assert checkpoint.load(path).config == SMALL
