"""`e3d train -o RUN --resume` reads all settings from the run folder, and refuses only options that differ."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from e3d_deploy import checkpoint, files, plots
from e3d_deploy.config import ModelConfig, TrainConfig
from e3d_deploy.errors import CheckpointError
from e3d_deploy.model import E3DLSTM
from e3d_deploy.training import train as training
from e3d_deploy.training.callbacks import Interrupted
from e3d_deploy.training.module import Learner
from e3d_deploy.training.settings import Begun, Command
from e3d_deploy.training.train import Machine, train
from tests.tools import e3d

MODEL = ModelConfig(image_size=(32, 32), patch_size=8, hidden=(4,), kernel_size=3)
TRAINING = TrainConfig(context_length=2, horizon=1, steps=1, batch_size=1, validation_clips=1)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "strips", lambda *_, **__: b"picture")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with clips and a run of one step on them; the command was run in the folder, with a share."""
    folder = tmp_path_factory.mktemp("begun")
    clips = np.random.default_rng(0).integers(0, 256, (4, 6, 16, 16), np.uint8)
    np.save(folder / "clips.npy", clips)
    model = checkpoint_of(folder / "start.safetensors")
    before = Path.cwd()
    os.chdir(folder)
    try:
        e3d_train(
            "-o", "run", "--data", "clips.npy", "--preset", "tiny", "--image-size", "16x16", "--hidden", 4,
            "--context", 2, "--horizon", 1, "--steps", 1, "--batch-size", 1, "--validation-clips", 1,
            "--fit", "crop", "--layout", "NTHW", "--init", model, "--parts", "out", "--no-decay",
        )  # fmt: skip
    finally:
        os.chdir(before)
    return folder


def checkpoint_of(path: Path) -> Path:
    checkpoint.save(E3DLSTM(ModelConfig(image_size=(16, 16), patch_size=8, hidden=(4,))), path)
    return path


def e3d_train(*options: object, code: int = 0) -> str:
    return e3d("train", *options, code=code).stderr


def steps_done(run: Path) -> int:
    return int(torch.load(run / "last.ckpt", weights_only=True)["global_step"])


@pytest.fixture
def begun(done: Path, tmp_path: Path) -> Path:
    shutil.copytree(done, tmp_path / "begun")
    return tmp_path / "begun"


def test_a_run_is_resumed_from_its_folder_only(begun: Path) -> None:
    """The working folder is a different one; clips, initial weights, fit and parts are those of the first launch."""
    e3d_train("-o", begun / "run", "--resume", "--steps", 2)
    assert steps_done(begun / "run") == 2
    settings = json.loads((begun / "run/config.json").read_text())
    assert settings["train"]["fit"] == "crop"
    assert checkpoint.read_card(begun / "run/model.safetensors").fit == "crop"


def test_the_folder_of_parts_is_stored(done: Path) -> None:
    assert Command.read(done / "run").options["parts"] == str(done / "out")
    assert [path.suffix for path in (done / "out").iterdir()] == [".safetensors"]


def test_options_that_agree_may_be_given(begun: Path) -> None:
    options = ["--preset", "tiny", "--hidden", "4", "--fit", "crop", "--data", "clips.npy", "--recipe", "modern"]
    e3d_train("-o", begun / "run", "--resume", *options, "--devices", 1, "--workers", 0)
    assert steps_done(begun / "run") == 1


OPENSTL = (
    "optimizer, beta2, learning_rate, schedule, sampling, sampling_hold_steps, sampling_stop_step, average, precision, "
    "burn_in"
)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--fit", "pad"], "fit"),
        (["--hidden", "8"], "hidden"),
        (["--learning-rate", "0.1"], "learning_rate"),
        (["--data", "moving-mnist"], "data"),
        (["--valid-data", "moving-mnist"], "valid"),
        (["--recipe", "openstl", "--batch-size", "1"], OPENSTL),
        (["--preset", "small"], "hidden, batch_size"),
        (["--preset", "full"], "patch_size, hidden, batch_size"),
    ],
)
def test_options_that_differ_are_refused(done: Path, options: list[str], names: str) -> None:
    said = e3d_train("-o", done / "run", "--resume", *options, code=2)
    assert f"was begun with different options ({names}); give the same options, or a new folder" in said


@pytest.mark.parametrize("command", ["from Python", "of an older version"])
def test_without_a_command_recipes_and_presets_are_compared_by_their_values(begun: Path, command: str) -> None:
    """The run has the recipe openstl and the preset tiny, which its files do not name."""
    settings = json.loads((begun / "run/config.json").read_text())
    sizes = {"steps": 1, "batch_size": 4, "context_length": 2, "horizon": 1, "validation_clips": 1}
    settings["train"] = TrainConfig.of_recipe("openstl", layout="NTHW", **sizes).to_dict()
    settings["model"]["hidden"] = [16, 16]
    (begun / "run/config.json").write_text(json.dumps(settings))
    if command == "from Python":
        Command(folder=begun).write(begun / "run")
    else:
        (begun / "run/command.json").unlink()
    goes_on = ["-o", begun / "run", "--data", "clips.npy", "--resume"]
    e3d_train(*goes_on, "--recipe", "openstl", "--preset", "tiny")
    said = e3d_train(*goes_on, "--preset", "full", code=2)
    assert "was begun with different options (patch_size, hidden)" in said
    assert f"was begun with different options ({OPENSTL})" in e3d_train(*goes_on, "--recipe", "modern", code=2)


def test_a_run_of_an_older_version_is_resumed_without_options(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a run has no command.json, so the folder of its clips is unknown."""
    (begun / "run/command.json").unlink()
    monkeypatch.chdir(begun)
    e3d_train("-o", "run", "--resume", "--steps", 2, "--no-decay")
    assert steps_done(begun / "run") == 2


def test_digits_in_an_unknown_folder_have_to_be_given_again(begun: Path) -> None:
    settings = json.loads((begun / "run/config.json").read_text())
    settings["digits"] = {"name": "mine.npz", "sha256": "0" * 64}
    (begun / "run/config.json").write_text(json.dumps(settings))
    said = e3d_train("-o", begun / "run", "--resume", code=2)
    assert "was started with --digits mine.npz, whose path is unknown; give --digits again" in said


def test_a_finished_run_reports_that_nothing_was_trained(done: Path) -> None:
    assert "the run is finished, so nothing was trained; give more --steps" in e3d_train("-o", done / "run", "--resume")


def test_nothing_to_resume_is_exit_2(tmp_path: Path) -> None:
    assert "nothing to resume, last.ckpt does not exist" in e3d_train("-o", tmp_path / "no", "--resume", code=2)


@pytest.mark.parametrize("content", ["", "[]", '{"folder": 1, "options": {}}'])
def test_a_damaged_command_is_named(begun: Path, content: str) -> None:
    (begun / "run/command.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"command\.json: is damaged .*; delete it, and give"):
        Command.read(begun / "run")


def test_settings_of_a_run_are_read_unchanged(done: Path) -> None:
    begun = Begun.read(done / "run")
    assert (begun.model.hidden, begun.train.fit, begun.train.steps) == ((4,), "crop", 1)
    assert (begun.data, begun.valid, begun.digits) == ((("clips.npy", 1.0),), None, None)


def test_sources_are_looked_up_in_the_folder_of_the_first_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "begun").mkdir()
    for name in ("a.npz", "b.npz"):
        (tmp_path / "begun" / name).touch()
    command = Command(folder=tmp_path / "begun")
    monkeypatch.chdir(tmp_path)
    assert command.located("a.npz") == str(tmp_path / "begun/a.npz")
    assert command.located("a.npz,b.npz") == f"{tmp_path}/begun/a.npz,{tmp_path}/begun/b.npz"
    assert command.located("moving-mnist") == "moving-mnist"
    (tmp_path / "a.npz").touch()
    assert command.located("a.npz") == "a.npz"
    assert Command().located("b.npz") == "b.npz"


# Signals


SMALL = ("--preset", "tiny", "--image-size", "32x32", "--hidden", 4, "--context", 2, "--horizon", 1)


def raise_in_the_first_step(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, *, times: int = 1) -> None:
    step = Learner.training_step

    def interrupted(self: Learner, frames: Tensor, batch_idx: int) -> Tensor:
        for _ in range(times):
            os.kill(os.getpid(), number)
        return step(self, frames, batch_idx)

    monkeypatch.setattr(Learner, "training_step", interrupted)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_run_and_sets_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    raise_in_the_first_step(monkeypatch, number)
    said = e3d_train("-o", tmp_path / "run", *SMALL, code=128 + number)
    assert f"next: e3d train -o {tmp_path}/run --resume\ninterrupted\n" in said
    assert steps_done(tmp_path / "run") == 1


def test_a_second_signal_before_anything_is_saved_does_not_suggest_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_in_the_first_step(monkeypatch, signal.SIGTERM, times=2)
    said = e3d_train("-o", tmp_path / "run", *SMALL, code=143)
    assert "interrupted\n" in said
    assert "next:" not in said
    assert not (tmp_path / "run/last.ckpt").exists()


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_in_the_first_step(monkeypatch, signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(MODEL, TRAINING, tmp_path / "run", machine=Machine(progress=False, measure_decay=False))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert steps_done(tmp_path / "run") == 1


def test_a_hangup_raises_an_exception_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_in_the_first_step(monkeypatch, signal.SIGHUP)
    with pytest.raises(Interrupted) as caught:
        train(MODEL, replace(TRAINING, steps=2), tmp_path / "run", machine=Machine(progress=False))
    assert caught.value.number == signal.SIGHUP


# Leftovers


LEFT = [
    "run/.last.ckpt",
    "run/.model_plain.safetensors",
    "run/previews/.step_000001.png",
    "out/.model-b.part-1-of-1.safetensors",
]
"""Beginnings of the names of workspaces that a killed run leaves."""


def left_below(folder: Path) -> list[Path]:
    """Create workspaces like those of a killed run; only `files` can name the system that created them."""
    left = [folder / f"{name}.{files._system()}abcdefgh{files.PARTIAL}" for name in LEFT]
    for workspace in left:
        workspace.mkdir(parents=True)
        (workspace / "half").write_bytes(b"half")
    return left


def test_leftovers_of_a_killed_run_are_removed_when_it_is_resumed(tmp_path: Path) -> None:
    left = left_below(tmp_path)
    training._remove_leftovers(tmp_path / "run", tmp_path / "out")
    assert not any(folder.exists() for folder in left)


def test_files_and_folders_of_other_programs_are_not_removed(begun: Path) -> None:
    left = left_below(begun)
    theirs = [begun / place / ".film.mkv.partial" for place in ("run", "run/previews", "out")]
    for folder in theirs:
        folder.write_bytes(b"film")
    theirs.append(begun / "out" / ".download.partial")
    theirs[-1].mkdir()
    e3d_train("-o", begun / "run", "--resume", "--steps", 2, "--parts", begun / "out")
    assert all(path.exists() for path in theirs)
    assert not any(folder.exists() for folder in left)


def test_files_that_another_system_may_be_writing_are_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = left_below(tmp_path)
    monkeypatch.setattr(files, "_system", lambda: "another.")
    training._remove_leftovers(tmp_path / "run", tmp_path / "out")
    assert all(folder.exists() for folder in left)
