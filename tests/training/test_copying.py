"""Verdict at the end of a run: the model compared with copying the last frame."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from e3d_deploy import checkpoint, metrics, plots
from e3d_deploy.config import ModelConfig, TrainConfig
from e3d_deploy.data.datasets import MovingMNIST, evaluation_data
from e3d_deploy.data.form import Form
from e3d_deploy.training.copying import Comparison, copying_errors, measure
from e3d_deploy.training.train import Machine, train

MODEL = ModelConfig(image_size=(32, 32), patch_size=8, hidden=(4,), kernel_size=3)
TRAINING = TrainConfig(context_length=2, horizon=2, steps=2, batch_size=2, validate_every=2, validation_clips=3)
QUIET = Machine(progress=False, measure_decay=False)
ERRORS = 1e-4  # relative; measured 2e-7

FOUND = Comparison(step=10, clips=64, mse=100.0, copying_mse=200.0)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "strips", lambda *_, **__: b"picture")


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (
            FOUND,
            "the model beats copying the last frame: squared error 100 per frame compared with 200, "
            "on 64 validation clips",
        ),
        (FOUND, "; on dark clips a black frame may beat copying too, so check the pictures in previews/"),
        (replace(FOUND, mse=196.0), "the model barely beats copying the last frame: squared error 196 per frame"),
        (replace(FOUND, mse=200.0), "the model does not beat copying the last frame: squared error 200 per frame"),
        (
            replace(FOUND, mse=300.0),
            "on 64 validation clips; train longer, use a larger --preset, or set --l1-weight 0",
        ),
        (replace(FOUND, copying_mse=0.0), "nothing moves in the validation clips, so nothing can beat copying"),
        (replace(FOUND, clips=1), "on 1 validation clip, too few for a reliable result"),
        (
            replace(FOUND, in_doubt=True),
            "clips, which do not count as held out: some file names look like names of splits",
        ),
        (replace(FOUND, held_out=False), "clips, which are not held out: the model was trained on them too"),
    ],
)
def test_the_verdict_is_in_words(found: Comparison, verdict: str) -> None:
    assert verdict in found.verdict


def test_copying_is_compared_with_each_predicted_frame() -> None:
    frames = torch.rand(2, 5, 1, 8, 8)
    copies = frames[:, 2:3].expand(-1, 2, -1, -1, -1)
    expected = metrics.mse(copies.numpy(), frames[:, 3:].numpy())
    assert copying_errors(frames, 3).numpy() == pytest.approx(expected, rel=ERRORS)


@pytest.mark.parametrize("validate_every", [2, 100])
def test_a_run_ends_with_the_verdict_of_its_model(tmp_path: Path, validate_every: int) -> None:
    """The errors are those of the last validation, or are measured on the few clips that a short run allows."""
    said: list[str] = []
    config = replace(TRAINING, validate_every=validate_every)
    path = train(MODEL, config, tmp_path / "run", machine=QUIET, progress=said.append)
    entries = json.loads((tmp_path / "run/result.json").read_text())
    count = 3 if validate_every == 2 else 1
    form = Form(image_size=(32, 32), channels=1)
    clips = evaluation_data("moving-mnist", form, split="valid", length=4, most=3)
    frames = torch.stack([clips[index] for index in range(count)])
    forecast = checkpoint.load(path)(frames[:, :2], 2)[:, -2:].detach().clamp(0, 1)
    copies = frames[:, 1:2].expand(-1, 2, -1, -1, -1)
    assert entries["mse"] == pytest.approx(metrics.mse(forecast.numpy(), frames[:, 2:].numpy()).mean(), rel=ERRORS)
    expected = metrics.mse(copies.numpy(), frames[:, 2:].numpy()).mean()
    assert entries["copying_mse"] == pytest.approx(expected, rel=ERRORS)
    assert (entries["step"], entries["clips"], entries["held_out"]) == (2, count, True)
    assert said == [entries["verdict"]]


def test_the_number_of_measured_clips_is_limited_by_the_run(tmp_path: Path) -> None:
    from e3d_deploy.model import E3DLSTM

    checkpoint.save(E3DLSTM(MODEL), tmp_path / "m.safetensors")
    clips = torch.utils.data.Subset(MovingMNIST("valid", length=4, image_size=(32, 32)), range(5))
    cpu = torch.device("cpu")
    counts = [measure(tmp_path / "m.safetensors", clips, TRAINING, steps=n, device=cpu)[0] for n in (1, 10, 1000)]
    assert counts == [1, 3, 5]  # a twentieth of three times the two clips per step


def test_clips_of_a_source_that_is_only_validated_on_are_held_out(tmp_path: Path) -> None:
    frames = TRAINING.context_length + TRAINING.horizon  # too few to split
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).integers(0, 256, (frames, 32, 32, 1), np.uint8))
    (tmp_path / "link.npy").symlink_to("clip.npy")
    sources = {"moving-mnist": True, str(tmp_path / "link.npy"): False}
    for number, (data, held_out) in enumerate(sources.items()):
        run = tmp_path / f"run-{number}"
        train(MODEL, TRAINING, run, data=[(data, 1.0)], valid=str(tmp_path / "clip.npy"), machine=QUIET)
        assert json.loads((run / "result.json").read_text())["held_out"] is held_out


def test_skipped_files_and_doubtful_splits_are_reported_at_the_end(tmp_path: Path) -> None:
    for number, name in enumerate(("traina", "testb", "2", "3", "4", "5")):
        folder = tmp_path / "clips" / name
        folder.mkdir(parents=True)
        for t in range(6):
            Image.fromarray(np.full((32, 32), 20 * t + number, np.uint8)).save(folder / f"{t}.png")
        (folder / "5.png").write_bytes(b"damaged")
    said: list[str] = []
    data = [(str(tmp_path / "clips"), 1.0)]
    train(MODEL, TRAINING, tmp_path / "run", data=data, skip_bad=True, machine=QUIET, progress=said.append)
    result = json.loads((tmp_path / "run/result.json").read_text())
    skipped = result["skipped"]
    assert len(skipped) >= 4
    assert said[-1].startswith(f"skipped {len(skipped)} files that cannot be read (")
    assert (result["in_doubt"], result["held_out"]) == (True, False)
    assert "which do not count as held out" in said[-2]
