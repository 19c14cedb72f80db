"""Context length, horizon and interval of training, passed on from a run or import to the bundle and commands."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from e3d_deploy import checkpoint
from e3d_deploy.card import Card, Window
from e3d_deploy.config import ModelConfig
from e3d_deploy.data.datasets import training_data
from e3d_deploy.data.form import Form
from e3d_deploy.diff import diff
from e3d_deploy.errors import ConfigError
from e3d_deploy.export import bundle as bundle_module
from e3d_deploy.export.bundle import export
from e3d_deploy.importing import import_checkpoint
from e3d_deploy.model import E3DLSTM
from e3d_deploy.runtime import Bundle, load
from tests.data.test_data import gray_levels, write_video
from tests.importing.test_import import openstl_tensors
from tests.kept_steps import KeptSteps
from tests.tools import e3d

WINDOW = Window(context_length=5, horizon=5, interval_ms=40.0, interval_range_ms=(40.0, 40.0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a video, clips, and a training run on them with context length 5 and horizon 5."""
    folder = tmp_path_factory.mktemp("window")
    write_video(folder / "walk.mp4", gray_levels((16, 24), [8 * (n % 30) for n in range(100)]))
    np.savez(folder / "clips.npz", frames=np.random.default_rng(0).integers(0, 256, (3, 12, 16, 24, 1), np.uint8))
    options = ["--image-size", "16x24", "--hidden", "4", "--kernel-size", 3, "--context", 5, "--horizon", 5]
    options += ["--batch-size", 2, "--steps", 1, "--parts", folder / "parts"]
    e3d("train", "-o", folder / "run", "--data", folder / "walk.mp4", "--data", folder / "clips.npz", *options)
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path, steps: KeptSteps) -> Path:
    """Return the model of the run as a bundle, exported without options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "export_core", steps)
        e3d("export", run / "run" / "model.safetensors", "-o", run / "run.e3d", "--batch", 1)
    return run / "run.e3d"


def test_every_file_of_a_run_has_its_window(run: Path) -> None:
    e3d("join", run / "parts", "-o", run / "joined.safetensors", "--overwrite")
    for name in ("run/model.safetensors", "run/model_plain.safetensors", "joined.safetensors"):
        assert checkpoint.read_card(run / name) == Card(window=WINDOW), name


def test_interval_is_the_median_of_the_known_rates() -> None:
    assert Window.of_rates(3, 2, []) == Window(context_length=3, horizon=2)
    assert Window.of_rates(3, 2, [25.0, 10.0]).interval_ms == 70
    found = Window.of_rates(3, 2, [50.0, 10.0, 25.0])
    assert (found.interval_ms, found.interval_range_ms) == (40, (20, 100))


def test_training_data_report_the_rates_of_their_videos(run: Path) -> None:
    options: dict[str, Any] = {"form": Form(image_size=(32, 32), channels=1), "length": 4, "seed": 0}
    sources = [("moving-mnist", 1.0), (str(run / "walk.mp4"), 1.0)]
    assert training_data(sources, **options).rates == (25,)
    assert training_data(sources[:1], **options).rates == ()


def test_every_video_of_a_source_counts_in_the_median_interval(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
    for number, rate in enumerate((25, 25, 5)):
        write_video(tmp_path / "train" / f"{number}.mp4", gray_levels((16, 24), range(number, 200, 20)), rate=rate)
    data = training_data([(str(tmp_path), 1.0)], Form(image_size=(16, 24), channels=1), length=4, seed=0)
    assert Window.of_rates(3, 1, data.rates).interval_ms == 40


def test_model_exports_and_predicts_as_it_was_trained(run: Path, bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle)
    assert (opened.context_length, opened.horizon, opened.card.window) == (5, 5, WINDOW)
    with load(bundle, "onnxruntime") as predictor:
        assert (predictor.context_length, predictor.horizon, predictor.card.window) == (5, 5, WINDOW)
    assert "PASS" in e3d("verify", bundle).stderr
    model = run / "run" / "model.safetensors"
    for source in (model, bundle):
        report = json.loads(e3d("evaluate", source, "--data", run / "clips.npz", "--json").stdout)
        assert (report["context_length"], report["horizon"]) == (5, 5)
        e3d("predict", source, run / "clips.npz", "-o", tmp_path / "o.npz")
        found = np.load(tmp_path / "o.npz")["frames"]
        e3d("predict", source, run / "clips.npz", "--context", 5, "--horizon", 5, "-o", tmp_path / "o.npz")
        np.testing.assert_array_equal(found, np.load(tmp_path / "o.npz")["frames"])


@pytest.mark.usefixtures("kept_steps")
def test_given_lengths_override_those_of_the_card(run: Path, tmp_path: Path) -> None:
    model = run / "run" / "model.safetensors"
    opened = Bundle.open(export(model, tmp_path / "given.e3d", context_length=3, batch=1))
    assert (opened.context_length, opened.horizon, opened.card.window) == (3, 5, WINDOW)
    e3d("export", model, "-o", tmp_path / "given.e3d", "--horizon", 2, "--batch", 1, "--overwrite")
    opened = Bundle.open(tmp_path / "given.e3d")
    assert (opened.context_length, opened.horizon) == (5, 2)
    for name in ("--context", "--horizon"):
        line = e3d("export", model, "-o", tmp_path / "none.e3d", name, 0, code=2).stderr.splitlines()[-1]
        assert f"'{name}': got 0, expected a whole number from 1 to 10,000" in line
    report = json.loads(e3d("evaluate", model, "--data", run / "clips.npz", "--horizon", 2, "--json").stdout)
    assert (report["context_length"], report["horizon"]) == (5, 2)


@pytest.mark.usefixtures("exported", "kept_steps")
def test_model_without_a_card_has_a_context_and_horizon_of_ten(tiny_model: E3DLSTM, tmp_path: Path) -> None:
    checkpoint.save(tiny_model, tmp_path / "old.safetensors")
    opened = Bundle.open(export(tmp_path / "old.safetensors", tmp_path / "old.e3d", batch=1))
    assert (opened.context_length, opened.horizon) == (10, 10)
    np.save(tmp_path / "clip.npy", np.zeros((24, 16, 24, 1), np.uint8))
    arguments = [tmp_path / "old.safetensors", "--data", tmp_path / "clip.npy", "--json"]
    report = json.loads(e3d("evaluate", *arguments).stdout)
    assert (report["context_length"], report["horizon"]) == (10, 10)
    for name in ("old.safetensors", "old.e3d"):
        assert "window" not in json.loads(e3d("inspect", tmp_path / name, "--json").stdout)


def test_inspect_shows_the_window(run: Path, bundle: Path) -> None:
    for path in (run / "run" / "model.safetensors", bundle):
        found = json.loads(e3d("inspect", path, "--json").stdout)["window"]
        assert found == {"context_length": 5, "horizon": 5, "interval_ms": 40, "interval_range_ms": [40, 40]}
        rows = [line.split() for line in e3d("inspect", path).stdout.splitlines()]
        assert ["window"] in rows
        assert ["interval_ms", "40.0"] in rows


def test_diff_compares_windows(run: Path, bundle: Path, tmp_path: Path) -> None:
    model = run / "run" / "model.safetensors"
    assert diff(model, bundle)["differs_in"] == []
    other = tmp_path / "other.safetensors"
    other.write_bytes(model.read_bytes())
    checkpoint.write_card(other, Card(window=Window.of_rates(5, 7, [25.0])))
    for one in (model, bundle):
        found = diff(one, other)
        assert (found["differs_in"], found["card"]) == (["card"], {"window.horizon": [5, 7]})


def foreign(path: Path, **kept: object) -> Path:
    """Write a checkpoint of OpenSTL that contains settings of Lightning."""
    config = ModelConfig(image_size=(16, 24), hidden=(4,), kernel_size=3, semantics="openstl", layer_norm=False)
    _, tensors = openstl_tensors(config)
    torch.save({"state_dict": tensors, "hyper_parameters": kept}, path)
    return path


@pytest.mark.parametrize(
    ("kept", "given", "expected", "how"),
    [
        ({"pre_seq_length": 4, "aft_seq_length": 3}, {}, (4, 3), "stored by Lightning"),
        ({"in_shape": [4, 1, 16, 24], "aft_seq_length": 3}, {}, (4, 3), "stored by Lightning"),
        ({"in_shape": (4, 1, 16, 24)}, {}, None, "not in the checkpoint; set it with --context, --horizon and --fps"),
        (
            {"in_shape": "no", "pre_seq_length": True, "aft_seq_length": -1},
            {},
            None,
            "not in the checkpoint; set it with",
        ),
        ({}, {}, None, "not in the checkpoint; set it with"),
        ({}, {"context_length": 2, "horizon": 6}, (2, 6), "--context, --horizon"),
        ({"in_shape": [4, 1, 16, 24]}, {"horizon": 6}, (4, 6), "--context, --horizon, otherwise stored by Lightning"),
    ],
)
def test_import_uses_the_window_of_the_settings_or_the_user(
    kept: dict[str, object], given: dict[str, Any], expected: tuple[int, int] | None, how: str, tmp_path: Path
) -> None:
    imported = import_checkpoint(foreign(tmp_path / "m.ckpt", **kept), **given)
    assert imported.card.window == (None if expected is None else Window.of_rates(*expected, []))
    (found,) = (one for one in imported.evidence if one.what == "window")
    assert found.how.startswith(how)
    assert found.value == ("not known" if expected is None else "{} given, {} predicted".format(*expected))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"context_length": 4}, "horizon: is not in the checkpoint; give --context and --horizon together"),
        ({"horizon": 4}, "context: is not in the checkpoint"),
        ({"fps": 25.0}, "context: is not in the checkpoint"),
        (
            {"fps": 0.0, "context_length": 4, "horizon": 3},
            "fps: got 0.0, expected a finite number of frames per second above 0",
        ),
        ({"context_length": 0, "horizon": 3}, "context_length: got 0, expected a whole number from 1 to"),
    ],
)
def test_a_context_length_without_a_horizon_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        import_checkpoint(foreign(tmp_path / "m.ckpt"), **given)


def test_imported_window_reaches_the_model_and_the_evaluation(tmp_path: Path) -> None:
    path = foreign(tmp_path / "m.ckpt", pre_seq_length=4, aft_seq_length=3)
    result = e3d("import", path, "-o", tmp_path / "m.safetensors", "--fps", 25)
    assert "4 given, 3 predicted, a frame every 40 ms" in result.stdout
    assert checkpoint.read_card(tmp_path / "m.safetensors") == Card(window=Window.of_rates(4, 3, [25.0]))
    np.save(tmp_path / "clip.npy", np.zeros((8, 16, 24, 1), np.uint8))
    for model in (path, tmp_path / "m.safetensors"):
        report = json.loads(e3d("evaluate", model, "--data", tmp_path / "clip.npy", "--json").stdout)
        assert (report["context_length"], report["horizon"]) == (4, 3)
