"""Presets: their values, their entry in the help, and options that take precedence over them."""

import json
from pathlib import Path
from typing import Any

import pytest

from e3d_deploy.config import PRESETS, RECIPES, ModelConfig, TrainConfig
from e3d_deploy.errors import E3DError
from e3d_deploy.training import train as training
from tests.tools import e3d

Seen = dict[str, Any]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Replace training; return a list of the configurations that the command would train."""
    found: Seen = {}

    def keep(model: ModelConfig, config: TrainConfig, run: Path, **call: Any) -> Path:
        found.update(model=model, config=config, run=run, **call)
        return run / "model.safetensors"

    monkeypatch.setattr(training, "train", keep)
    return found


def e3d_train(*options: object, code: int = 0) -> str:
    return e3d("train", "-o", "runs/a", *options, code=code).stderr


def test_full_has_the_default_values(seen: Seen) -> None:
    for options in ([], ["--preset", "full"]):
        e3d_train(*options)
        assert (seen["model"], seen["config"]) == (ModelConfig(), TrainConfig())


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_a_preset_sets_only_sizes_of_network_and_run(seen: Seen, preset: str) -> None:
    e3d_train("--preset", preset, "--recipe", "google")
    sizes = PRESETS[preset]
    assert set(sizes) == {"hidden", "patch_size", "steps", "batch_size"}
    assert seen["model"] == ModelConfig(hidden=sizes["hidden"], patch_size=sizes["patch_size"])
    expected = TrainConfig(**{**RECIPES["google"], "steps": sizes["steps"], "batch_size": sizes["batch_size"]})
    assert seen["config"] == expected


def test_presets_grow() -> None:
    tiny, small, full = (ModelConfig(**{"hidden": PRESETS[name].get("hidden", (64,) * 4)}) for name in PRESETS)
    assert sum(tiny.hidden) < sum(small.hidden) < sum(full.hidden)
    assert PRESETS["tiny"]["steps"] < PRESETS["small"]["steps"] < TrainConfig().steps


def test_an_option_takes_precedence_over_the_preset(seen: Seen) -> None:
    e3d_train("--steps", 7, "--preset", "tiny", "--hidden", "5")
    assert (seen["model"].hidden, seen["model"].patch_size) == ((5,), 8)
    assert (seen["config"].steps, seen["config"].batch_size) == (7, 4)


def test_the_help_shows_the_values_of_presets() -> None:
    shown = " ".join(e3d("train", "--help").stdout.split())
    for name in ("tiny", "small"):
        values = PRESETS[name]
        hidden = ",".join(map(str, values["hidden"]))
        steps = f"{values['steps']} steps of {values['batch_size']} clips"
        assert f"{name}: hidden {hidden}, patch {values['patch_size']}, {steps}" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--image-size", "0x0"], "image_size: got (0, 0), expected height and width in pixels, such as 64x64"),
        (["--image-size", "64"], "image_size: got (64,), expected height and width in pixels, such as 64x64"),
        (["--image-size", "60x60", "--preset", "tiny"], "patch_size: 8 does not divide the frame of (60, 60) pixels"),
        (["--hidden", ""], "got '', expected whole numbers such as 64,64"),
        (["--hidden", "0"], "hidden: got (0,), expected at least one layer"),
        (["--steps", "0"], "steps: got 0, expected 1 or more"),
        (["--data", ""], "got an empty text, expected moving-mnist, a file or a folder"),
        (["--data", "clips.npz:0"], "expected a share above 0, such as clips.npz:2"),
        (["--data", "clips.npz:inf"], "expected a share above 0"),
        (["--data", "missing.npz"], "missing.npz: no such file or folder; give"),
        (["--preset", "huge"], "'huge' is not one of 'tiny', 'small', 'full'"),
    ],
)
def test_invalid_runs_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in e3d_train(*options, code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--context", "--horizon"])
def test_frames_have_a_limit(seen: Seen, option: str) -> None:
    assert "got 10001, expected a whole number from 1 to 10,000" in e3d_train(option, 10_001, code=2)
    assert not seen
    e3d_train(option, 10_000)
    assert seen


def test_a_folder_without_clips_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "empty" in e3d_train("--data", "empty", code=2)
    assert not (tmp_path / "runs").exists()


def test_a_colon_in_an_existing_name_is_not_a_share(seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "2024-05-01T12:30:00").mkdir()
    e3d_train("--data", tmp_path / "2024-05-01T12:30:00", "--data", "a.npz:2")
    assert seen["data"] == [(str(tmp_path / "2024-05-01T12:30:00"), 1.0), ("a.npz", 2.0)]


def test_the_options_of_the_command_are_passed_on(seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    e3d_train("--preset", "tiny", "--parts", "out", "--no-decay", "--devices", 1, "--skip-bad")
    kept = {
        "recipe": "modern",
        "preset": "tiny",
        "parts": str(tmp_path / "out"),
        "measure_decay": False,
        "skip_bad": True,
    }
    assert json.loads(json.dumps(seen["options"])) == kept


def test_errors_of_configurations_are_exit_2() -> None:
    with pytest.raises(E3DError) as caught:
        ModelConfig(image_size=(0, 0))
    assert caught.value.exit_code == 2
