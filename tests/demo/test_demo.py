"""The tour, and the model that it shows."""

import json
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
from e3d_deploy.demo import tour
from e3d_deploy.errors import BackendUnavailable, CheckpointError
from e3d_deploy.files import sha256
from e3d_deploy.model import E3DLSTM
from e3d_deploy.runtime import Bundle


def test_the_model_is_small_and_has_a_card() -> None:
    card = json.loads(tour.CARD.read_text())
    assert tour.MODEL.stat().st_size <= 6_000_000
    assert checkpoint.load(tour.MODEL).config.image_size == (64, 64)
    assert all(command.startswith("e3d train ") for command in card["commands"])
    assert len(card["curve"]["step"]) == len(card["curve"]["valid_mse"]) > 5
    for name in ("mse", "mae", "ssim", "psnr"):
        assert {who: len(values) for who, values in card["quality"]["measures"][name].items()} == {
            "forecast": tour.HORIZON,
            "copy last": tour.HORIZON,
            "mean of context": tour.HORIZON,
        }


def test_the_model_halves_the_error_of_copying_the_last_frame() -> None:
    """On a part of the test set, computed here; the card has all of it."""
    model, wrong, copied = checkpoint.load(tour.MODEL), [], []
    for index in range(12):
        clip = tour.moving_mnist(
            tour.load_digits("test"), np.random.default_rng((tour.TEST_SEED, index)), length=tour.CONTEXT + tour.HORIZON
        )
        frames = tour.frames.to_frames(clip, image_size=(64, 64), channels=1)
        given, truth = frames[: tour.CONTEXT], frames[tour.CONTEXT :]
        with torch.inference_mode():
            forecast = model(torch.from_numpy(given[None]), tour.HORIZON)[0, -tour.HORIZON :].clamp(0, 1).numpy()
        wrong.append(np.square(forecast - truth).sum((1, 2, 3)).mean())
        copied.append(np.square(given[-1] - truth).sum((1, 2, 3)).mean())
    assert np.mean(wrong) < 0.5 * np.mean(copied)


def run(output: Path, *options: str) -> None:
    result = CliRunner().invoke(main, ["demo", "-o", str(output), *options])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    assert "PASS" in result.stderr
    report = (output / "report.html").read_text()
    films = ["moving_mnist.mp4"] if "--full" in options else ["moving_mnist.mp4", "pedestrians.mp4"]
    assert report.count("data:image/png;base64,") == 7 + len(films)
    assert report.count("data:image/gif;base64,") == 1
    assert "src='http" not in report
    assert sorted(film.name for film in output.glob("*.mp4")) == films
    for name in films:
        assert read_clips(output / name, Form(image_size=(256, 512), channels=1)).frames.shape[1] >= 60
    assert (output / "forecast.gif").stat().st_size > 10_000


def smaller(path: Path) -> ModelConfig:
    """Write a smaller network, which stands for one that is shown, with the card of the one that ships."""
    torch.manual_seed(0)
    config = ModelConfig(image_size=(64, 64), channels=1, patch_size=16, hidden=(4,), kernel_size=3)
    checkpoint.save(E3DLSTM(config), path, card=checkpoint.read_card(tour.MODEL))
    return config


def test_the_tour_without_tensorrt_says_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network that ships makes the tour below, which builds engines."""

    def missing(*_: object, **__: object) -> None:
        raise BackendUnavailable("tensorrt-rtx: does not load here")

    smaller(tmp_path / "tiny.safetensors")
    monkeypatch.setattr(tour, "build", missing)
    monkeypatch.setattr(tour, "benchmark", partial(tour.benchmark, seconds=0.05))
    monkeypatch.setattr(tour, "DEMO", replace(tour.DEMO, model=tmp_path / "tiny.safetensors"))
    run(tmp_path / "out")
    assert "left out: tensorrt-rtx: does not load here" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_the_full_tour_shows_another_model_and_no_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = replace(tour.FULL, model=tmp_path / "tiny.safetensors", card=tour.CARD)
    config = smaller(tmp_path / "tiny.safetensors")
    monkeypatch.setattr(tour, "FULL", full)
    run(tmp_path / "out", "--full")
    assert Bundle.open(tmp_path / "out" / "demo.e3d").config == config
    assert full.measured_by in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "demo.e3d" / "engines").exists()


def test_without_the_full_model_the_error_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package has no folder `models` beside it."""
    absent = tmp_path / "models" / "moving_mnist_64x4.safetensors"
    monkeypatch.setattr(tour, "FULL", replace(tour.FULL, model=absent))
    result = CliRunner().invoke(main, ["demo", "--full", "-o", str(tmp_path / "out")])
    assert result.exit_code == CheckpointError.exit_code
    assert f"{absent}: no such file" in result.stderr
    assert "run e3d from a checkout" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_full_model_is_described_as_it_is() -> None:
    if not tour.FULL.model.exists():
        pytest.skip("the model was moved out of this checkout")
    model, card = checkpoint.load(tour.FULL.model), json.loads(tour.FULL.card.read_text())
    assert model.config.hidden == (64, 64, 64, 64)
    assert sha256(tour.FULL.model) in (tour.FULL.model.parent / "README.md").read_text()
    assert len(card["curve"]["step"]) == len(card["curve"]["valid_mse"]) > 5
    for who in tour.SHOWN:
        assert {len(card["quality"]["measures"][name][who]) for name in ("mse", "mae", "ssim", "psnr")} == {
            tour.HORIZON
        }


@pytest.mark.slow
def test_the_tour_builds_engines_and_can_be_repeated(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed (extra `rtx`)")
    run(tmp_path / "out")
    run(tmp_path / "out")
    assert (tmp_path / "out" / "demo.e3d" / "engines" / "clip.tensorrt-rtx.plan").exists()
