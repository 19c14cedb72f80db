"""Tour of `e3d demo`, and the models that it shows."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from e3d_deploy import checkpoint
from e3d_deploy.cli import main
from e3d_deploy.config import ModelConfig
from e3d_deploy.data.clips import read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.demo import exhibits, tour
from e3d_deploy.demo.exhibits import (
    CARD,
    CONTEXT,
    DIGITS,
    FILM,
    FULL,
    HORIZON,
    MODEL,
    Exhibit,
    digits_clip,
    film_windows,
)
from e3d_deploy.demo.report import SHOWN
from e3d_deploy.errors import BackendUnavailable, CheckpointError, ConfigError
from e3d_deploy.files import sha256
from e3d_deploy.frames import to_frames
from e3d_deploy.model import E3DLSTM
from e3d_deploy.runtime import Bundle
from e3d_deploy.shipped import extracted


@pytest.mark.parametrize("exhibit", [DIGITS, FILM], ids=lambda one: one.name)
def test_a_model_that_ships_is_small_and_has_a_card(exhibit: Exhibit) -> None:
    with extracted(exhibit.model) as path:
        assert path.stat().st_size <= 6_000_000
        decay, config = checkpoint.read_card(path).decay, checkpoint.load(path).config
    assert decay is not None
    card = json.loads(exhibit.card.read_text())
    for command in card["commands"]:
        assert command.startswith("e3d train ")
        assert f"--hidden {','.join(map(str, config.hidden))} " in command
    assert card["settings"][-1]["burn_in"] > 0
    assert len(card["curve"]["step"]) == len(card["curve"]["valid_mse"]) > 5
    for name in ("mse", "mae", "ssim", "psnr"):
        assert {who: len(values) for who, values in card["quality"]["measures"][name].items()} == {
            "forecast": HORIZON,
            "copy last": HORIZON,
            "mean of context": HORIZON,
        }


DIGITS_SHARE, FILM_SHARE = 0.27, 0.8
"""Maximum errors divided by the error of copying the last frame (measured on all clips: 0.249 and 0.642)."""


@pytest.mark.parametrize(
    ("exhibit", "share"), [(DIGITS, DIGITS_SHARE), (FILM, FILM_SHARE)], ids=lambda one: getattr(one, "name", "")
)
def test_forecasts_have_a_fraction_of_the_error_of_copy_last(exhibit: Exhibit, share: float) -> None:
    """Holds on clips of the test set, computed here, and on the whole test set, read from the JSON file."""
    with extracted(exhibit.model) as path:
        model = checkpoint.load(path)
    form = Form(image_size=model.config.image_size, channels=1)
    clips = [digits_clip(index) for index in range(12)] if exhibit is DIGITS else film_windows(form)[::11]
    wrong, copied = [], []
    for clip in clips:
        frames = to_frames(clip, image_size=form.image_size, channels=1)
        given, truth = frames[:CONTEXT], frames[CONTEXT:]
        with torch.inference_mode():
            forecast = model(torch.from_numpy(given[None]), HORIZON)[0, -HORIZON:].clamp(0, 1).numpy()
        wrong.append(np.square(forecast - truth).sum((1, 2, 3)).mean())
        copied.append(np.square(given[-1] - truth).sum((1, 2, 3)).mean())
    assert np.mean(wrong) < share * np.mean(copied)
    card = json.loads(exhibit.card.read_text())["quality"]["measures"]["mse"]
    assert np.mean(card["forecast"]) < share * np.mean(card["copy last"])


def run(output: Path, *options: str) -> None:
    result = CliRunner().invoke(main, ["demo", "-o", str(output), *options])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    assert "PASS" in result.stderr
    report = (output / "report.html").read_text()
    names = ["full"] if "--full" in options else ["digits", "film"]
    assert report.count("data:image/png;base64,") == 1 + 7 * len(names)
    assert report.count("data:image/gif;base64,") == len(names)
    assert "src='http" not in report
    live = [] if "--full" in options else ["pedestrians"]
    assert sorted(film.stem for film in output.glob("*.mp4")) == [*names, *live]
    assert report.count("data:video/mp4;base64,") == len(live)
    next_ = f"next: e3d serve {output}/film.e3d --source {output}/pedestrians.mp4\n"
    assert (next_ in result.stderr) == bool(live)
    for name in names:
        assert read_clips(output / f"{name}.mp4", Form(image_size=(256, 512), channels=1)).frames.shape[1] >= 60
        assert (output / f"{name}.gif").stat().st_size > 10_000


def smaller(path: Path) -> ModelConfig:
    """Save a smaller network to `path`, with the card of a shipped model; return its config."""
    torch.manual_seed(0)
    config = ModelConfig(image_size=(64, 64), channels=1, patch_size=16, hidden=(4,), kernel_size=3)
    checkpoint.save(E3DLSTM(config), path, card=checkpoint.read_card(MODEL))
    return config


def test_the_tour_without_tensorrt_reports_skipped_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last test runs the tour with the shipped model and builds engines."""

    def missing(*_: object, **__: object) -> None:
        raise BackendUnavailable("tensorrt-rtx: does not load here")

    smaller(tmp_path / "tiny.safetensors")
    monkeypatch.setattr(tour, "build", missing)
    monkeypatch.setattr(tour, "benchmark", partial(tour.benchmark, seconds=0.05))
    tiny = (replace(one, model=tmp_path / "tiny.safetensors") for one in tour.SHIPPED)
    monkeypatch.setattr(tour, "SHIPPED", tuple(tiny))
    run(tmp_path / "out")
    assert "skipped: tensorrt-rtx: does not load here" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_the_full_tour_shows_another_model_and_no_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = replace(FULL, model=tmp_path / "tiny.safetensors", card=CARD)
    config = smaller(tmp_path / "tiny.safetensors")
    monkeypatch.setattr(exhibits, "FULL", full)
    run(tmp_path / "out", "--full")
    assert Bundle.open(tmp_path / "out" / "full.e3d").config == config
    assert full.measured_by in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "full.e3d" / "engines").exists()


def test_without_the_full_model_the_error_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package has no folder `models` next to it."""
    absent = tmp_path / "models" / "moving_mnist_64x4.safetensors"
    monkeypatch.setattr(exhibits, "FULL", replace(FULL, model=absent))
    result = CliRunner().invoke(main, ["demo", "--full", "-o", str(tmp_path / "out")])
    assert result.exit_code == CheckpointError.exit_code
    assert f"{absent}: no such file" in result.stderr
    assert "run e3d from a checkout" in result.stderr
    assert not (tmp_path / "out").exists()


def emptied(path: Path) -> None:
    path.write_text("{}")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("pedestrians.json", Path.unlink, "no such file; install the package again"),
        ("pedestrians.json", halved, "not JSON"),
        ("pedestrians.json", emptied, "lacks curve and quality"),
        ("pedestrians.safetensors", halved, "pedestrians.safetensors: "),
    ],
    ids=["missing", "cut card", "empty card", "cut model"],
)
def test_missing_or_damaged_files_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: Callable[[Path], None], message: str
) -> None:
    for file in (FILM.model, FILM.card):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path / name)
    film = replace(FILM, model=tmp_path / FILM.model.name, card=tmp_path / FILM.card.name)
    monkeypatch.setattr(tour, "SHIPPED", (DIGITS, film))
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path / "out")])
    assert result.exit_code == CheckpointError.exit_code
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path / "out")])
    assert result.exit_code == ConfigError.exit_code
    assert "is a file; give a folder" in result.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_the_description_of_the_full_model_is_correct() -> None:
    if not FULL.model.exists():
        pytest.skip("the model was moved out of this checkout")
    model, card = checkpoint.load(FULL.model), json.loads(FULL.card.read_text())
    assert model.config.hidden == (64, 64, 64, 64)
    assert sha256(FULL.model) in (FULL.model.parent / "README.md").read_text()
    assert len(card["curve"]["step"]) == len(card["curve"]["valid_mse"]) > 5
    for who in SHOWN:
        assert {len(card["quality"]["measures"][name][who]) for name in ("mse", "mae", "ssim", "psnr")} == {HORIZON}


@pytest.mark.slow
def test_the_tour_builds_engines_and_can_be_repeated(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed (extra `rtx`)")
    run(tmp_path / "out")
    run(tmp_path / "out")
    assert (tmp_path / "out" / "digits.e3d" / "engines" / "clip.tensorrt-rtx.plan").exists()
