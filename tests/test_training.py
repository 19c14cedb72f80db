"""How a network learns: scheduled sampling, the loss, whole runs."""

import csv
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN, channels_first, model_parameters, read
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from e3d_deploy import checkpoint, metrics
from e3d_deploy.config import ModelConfig, TrainConfig
from e3d_deploy.data.datasets import Mixture, MovingMNIST, Windows
from e3d_deploy.errors import ClipError, ConfigError, E3DError, ShapeError
from e3d_deploy.model import E3DLSTM
from e3d_deploy.training import sampling
from e3d_deploy.training.module import Learner
from e3d_deploy.training.train import open_data, train

SCHEDULE = 1e-9  # absolute; measured 7.5e-13, the rounding of 50,000 subtractions
LOSS = 1e-6  # relative; measured 1.5e-7
VALIDATION = 1e-6  # relative; measured 8.4e-8
AVERAGE = 1e-6  # absolute, after a few steps; measured 0

MODEL = ModelConfig(image_size=(32, 32), patch_size=8, hidden=(4,), kernel_size=3)
TRAINING = TrainConfig(
    context_length=3, horizon=2, steps=4, batch_size=2, warmup_steps=1, ema_decay=0.5, steps_per_epoch=2
)

# Scheduled sampling


@pytest.mark.parametrize(
    ("step", "chance"), [(0, 0.8), (250, 0.6), (500, 0.4), (750, 0.2), (1000, 0.0), (1001, 0.0), (10**6, 0.0)]
)
def test_chance_of_truth_falls_in_a_line(step: int, chance: float) -> None:
    assert sampling.probability(step, start=0.8, stop_step=1000) == pytest.approx(chance)


def test_truth_is_never_shown_with_stop_step_zero() -> None:
    assert sampling.probability(0, start=1.0, stop_step=0) == 0


def test_chance_of_truth_equals_the_released_schedule() -> None:
    """google/e3d_lstm run.py: 0.00002 less at each iteration, 0 from iteration 50,000 on."""
    eta = 1.0
    for iteration in range(1, 50_010):
        eta = eta - 0.00002 if iteration < 50_000 else 0.0
        assert abs(sampling.probability(iteration, start=1.0, stop_step=50_000) - eta) < SCHEDULE


def test_truth_is_drawn_as_often_as_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = sampling.draw((500, 9), 0.3, generator)
    assert drawn.shape == (500, 9)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert 0.27 < drawn.mean() < 0.33  # measured 0.302
    assert sampling.draw((50, 9), 1.0, generator).all()
    assert not sampling.draw((50, 9), 0.0, generator).any()


# Loss and validation


def learner(model: E3DLSTM, config: TrainConfig) -> tuple[Learner, dict[str, float]]:
    """A Learner outside of a Trainer, and what it logs."""
    learner, logged = Learner(model, config), {}

    def log(name: str, value: Any, **_: Any) -> None:
        logged[name] = torch.as_tensor(value).item()

    learner.log = log  # type: ignore[method-assign, assignment]
    return learner, logged


@pytest.mark.parametrize(("variant", "semantics"), [("paper", "paper"), ("released", "google")])
def test_loss_equals_the_released_one(variant: str, semantics: Any) -> None:
    arrays, settings = read(GOLDEN / f"model_A_{variant}.npz")
    config = ModelConfig(
        image_size=(16, 16), patch_size=4, hidden=settings["hidden"], norm_eps=1e-12, semantics=semantics
    )
    model = E3DLSTM(config).requires_grad_(False)
    model.load_state_dict(model_parameters(arrays, layers=2))
    alone, logged = learner(model, TrainConfig(context_length=3, horizon=3, sampling_start=0.0))
    frames = channels_first(arrays["images"])
    loss = alone.training_step(frames, 0)
    assert loss.item() == pytest.approx(float(arrays["free/loss_train"]), rel=LOSS)
    squared = (channels_first(arrays["free/gen"]) - channels_first(arrays["x"][:, 1:])).square()
    assert logged["train_mse"] == pytest.approx(squared.sum().item() / len(frames) / 5, rel=LOSS)  # per frame


def test_weight_of_the_absolute_differences_counts(tiny_model: E3DLSTM, clip: Tensor) -> None:
    losses = [
        learner(tiny_model, TrainConfig(context_length=4, horizon=3, l1_weight=weight))[0].training_step(clip, 0)
        for weight in (0.0, 1.0, 2.0)
    ]
    difference = tiny_model(clip, 3, torch.ones(2, 2)) - clip[:, 1:]  # at step 0 the truth is always shown
    assert losses[0].item() == pytest.approx(difference.square().sum().item() / 4, rel=LOSS)
    assert (losses[1] - losses[0]).item() == pytest.approx(difference.abs().sum().item() / 2, rel=LOSS)
    assert (losses[2] - losses[1]).item() == pytest.approx((losses[1] - losses[0]).item(), rel=LOSS)


def test_validation_measures_the_frames_after_the_context(tiny_model: E3DLSTM, clip: Tensor) -> None:
    alone, logged = learner(tiny_model, TrainConfig(context_length=4, horizon=3))
    alone.validation_step(clip, 0)
    predictions = tiny_model(clip[:, :4], horizon=3)[:, -3:].clamp(0, 1)
    expected = metrics.mse(predictions.numpy(), clip[:, 4:].numpy()).mean()
    assert logged["valid_mse"] == pytest.approx(expected, rel=VALIDATION)


def test_truth_is_drawn_from_seed_and_step(tiny_model: E3DLSTM, clip: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a resumed run draws what the uninterrupted one does."""
    draw, drawn = sampling.draw, []

    def record(shape: tuple[int, int], chance: float, generator: torch.Generator) -> Tensor:
        drawn.append(draw(shape, chance, generator))
        return drawn[-1]

    monkeypatch.setattr(sampling, "draw", record)
    for seed, step in [(0, 7), (0, 7), (0, 8), (1, 7)]:
        alone, _ = learner(tiny_model, TrainConfig(context_length=2, horizon=5, sampling_start=0.5, seed=seed))
        monkeypatch.setattr(Learner, "global_step", step)
        alone.training_step(clip, 0)
    assert drawn[0].shape == (2, 4)
    assert torch.equal(drawn[1], drawn[0])
    assert not torch.equal(drawn[2], drawn[0])
    assert not torch.equal(drawn[3], drawn[0])


def test_learning_rate_rises_then_falls_to_zero(tiny_model: E3DLSTM) -> None:
    config = TrainConfig(steps=50, warmup_steps=9, learning_rate=0.01)
    made: Any = Learner(tiny_model.requires_grad_(True), config).configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(52):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.001)
    top = int(np.argmax(rates))
    assert top in (8, 9)
    assert rates[top] > 0.009
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:51]) < 0).all()
    assert rates[50:] == [0, 0]


def test_a_single_clip_can_be_learned_by_heart() -> None:
    torch.manual_seed(0)
    config = TrainConfig(context_length=3, horizon=2, sampling_start=0.0)
    alone, _ = learner(E3DLSTM(replace(MODEL, hidden=(8,))), config)
    clip = MovingMNIST("train", length=config.clip_length, image_size=(32, 32))[0][None]
    optimizer = torch.optim.Adam(alone.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = alone.training_step(clip, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2  # measured a fifth


# Whole runs


class Recorder(Callback):
    """Keeps each batch and the weights after it, and breaks off as a power cut would."""

    def __init__(self, stop_epoch: int | None = None) -> None:
        self.stop_epoch = stop_epoch
        self.weights: list[dict[str, Tensor]] = []
        self.batches: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        self.batches.append(batch)
        self.weights.append({name: weight.clone() for name, weight in pl_module.model.state_dict().items()})

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.stop_epoch:
            raise InterruptedError("power cut")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """The folder of a finished run of 4 steps, and the weights on its way."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    recorder = Recorder()
    assert train(MODEL, TRAINING, run, progress=False, callbacks=[recorder]) == run / "model.safetensors"
    return run, recorder


def test_run_writes_a_model_that_loads(finished: tuple[Path, Recorder]) -> None:
    run, _ = finished
    model = checkpoint.load(run / "model.safetensors")
    assert model.config == MODEL
    assert model(torch.rand(1, 3, 1, 32, 32), horizon=2).isfinite().all()


def test_run_sees_each_sample_once(finished: tuple[Path, Recorder]) -> None:
    _, recorder = finished
    data = MovingMNIST("train", length=TRAINING.clip_length, image_size=MODEL.image_size, seed=TRAINING.seed)
    samples = torch.cat(recorder.batches)
    assert len(samples) == TRAINING.steps * TRAINING.batch_size
    assert torch.equal(samples, torch.stack([data[index] for index in range(len(samples))]))


def test_run_writes_its_settings(finished: tuple[Path, Recorder]) -> None:
    run, _ = finished
    settings = json.loads((run / "config.json").read_text())
    assert ModelConfig.from_dict(settings["model"]) == MODEL
    assert settings["train"] == asdict(TRAINING)
    assert settings["data"] == [["moving-mnist", 1.0]]


def test_run_logs_both_errors_at_every_epoch(finished: tuple[Path, Recorder]) -> None:
    run, _ = finished
    assert (run / "last.ckpt").is_file()
    with (run / "logs" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("train_mse", "valid_mse"):
        values = [float(row[name]) for row in rows if row[name]]
        assert len(values) == 2
        assert min(values) > 0


def test_saved_weights_are_the_moving_average(finished: tuple[Path, Recorder]) -> None:
    run, recorder = finished
    assert len(recorder.weights) == TRAINING.steps
    average = recorder.weights[0]
    for weights in recorder.weights[1:]:
        average = {name: 0.5 * average[name] + 0.5 * weight for name, weight in weights.items()}
    saved = checkpoint.load(run / "model.safetensors").state_dict()
    assert max((saved[name] - weight).abs().max().item() for name, weight in average.items()) < AVERAGE
    last = recorder.weights[-1]
    assert max((saved[name] - weight).abs().max().item() for name, weight in last.items()) > 100 * AVERAGE


def test_run_is_not_overwritten(finished: tuple[Path, Recorder]) -> None:
    run, _ = finished
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="tiny: holds a run already; give --resume to go on with it, or another"):
        train(MODEL, TRAINING, run, progress=False)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_nothing_cannot_be_resumed(tmp_path: Path) -> None:
    run = tmp_path / "new"
    with pytest.raises(ConfigError, match=r"new: nothing to resume, last\.ckpt is not there; train without --resume"):
        train(MODEL, TRAINING, run, progress=False, resume=True)
    assert not run.exists()


def test_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    config = replace(TRAINING, steps=8, sampling_stop_step=8)
    whole, first, second = Recorder(), Recorder(stop_epoch=2), Recorder()
    straight = train(MODEL, config, tmp_path / "straight", progress=False, callbacks=[whole])
    with pytest.raises(InterruptedError):
        train(MODEL, config, tmp_path / "cut", progress=False, callbacks=[first])
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    resumed = train(MODEL, config, tmp_path / "cut", progress=False, resume=True, callbacks=[second])

    steps = first.weights + second.weights
    assert (len(first.weights), len(second.weights)) == (4, 4)
    assert torch.equal(torch.stack(first.batches + second.batches), torch.stack(whole.batches))
    for ours, theirs in zip(steps, whole.weights, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    expected = checkpoint.load(straight).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in checkpoint.load(resumed).state_dict().items())
    assert sorted(path.name for path in (tmp_path / "cut" / "logs").iterdir()) == ["version_0", "version_1"]


def test_seed_decides_a_run(tmp_path: Path, finished: tuple[Path, Recorder]) -> None:
    _, recorder = finished
    again, other = Recorder(), Recorder()
    train(MODEL, TRAINING, tmp_path / "again", progress=False, callbacks=[again])
    train(MODEL, replace(TRAINING, seed=1), tmp_path / "other", progress=False, callbacks=[other])
    last = recorder.weights[-1]
    assert all(torch.equal(again.weights[-1][name], weight) for name, weight in last.items())
    assert not all(torch.equal(other.weights[-1][name], weight) for name, weight in last.items())


# Sources


def write_clips(path: Path, array: np.ndarray[Any, Any]) -> str:
    np.savez(path, frames=array)
    return str(path)


def test_run_learns_from_files(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 6, 32, 32, 3), dtype=np.uint8)
    source = write_clips(tmp_path / "clips.npz", pictures)
    parts = open_data([(source, 1.0)], replace(MODEL, channels=3), TRAINING)
    assert isinstance(parts, Windows)
    assert parts[0].shape == (5, 3, 32, 32)


def test_float_clips_are_learned_as_bytes(tmp_path: Path) -> None:
    levels = np.linspace(0, 1, 256).astype(np.float32)
    clips = np.broadcast_to(levels[:, None, None, None], (256, 32, 32, 1))
    data = open_data([(write_clips(tmp_path / "clips.npz", clips), 1.0)], MODEL, TRAINING)
    assert isinstance(data, Windows)
    assert data.clips[0][:, 0, 0, 0].tolist() == list(range(256))


def test_several_sources_become_a_mixture(tmp_path: Path) -> None:
    source = write_clips(tmp_path / "clips.npz", np.zeros((6, 32, 32, 1), np.uint8))
    data = open_data([("moving-mnist", 3.0), (source, 1.0)], MODEL, TRAINING)
    assert isinstance(data, Mixture)
    assert [type(part) for part in data.parts] == [MovingMNIST, Windows]
    assert data.shares.tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    ("source", "changes", "error", "message"),
    [
        ("moving-mnist", {"channels": 3}, ConfigError, "Moving MNIST is gray, the model takes 3 colours"),
        ("absent.mp4", {}, ClipError, r"absent\.mp4: no such file"),
        ("short.npz", {}, ClipError, "no clip has 5 frames"),
        ("short.npz", {"channels": 3}, ShapeError, r"frames \[32, 32, 1\], expected \[32, 32, 3\]"),
    ],
)
def test_sources_that_cannot_be_learned_from_leave_no_run(
    tmp_path: Path, source: str, changes: dict[str, Any], error: type[E3DError], message: str
) -> None:
    write_clips(tmp_path / "short.npz", np.zeros((4, 32, 32, 1), np.uint8))
    name = source if source == "moving-mnist" else str(tmp_path / source)
    with pytest.raises(error, match=message):
        train(replace(MODEL, **changes), TRAINING, tmp_path / "run", data=[(name, 1.0)], progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_clips_out_of_range_are_refused(tmp_path: Path, kind: type) -> None:
    source = write_clips(tmp_path / "clips.npz", np.full((6, 32, 32, 1), 200, kind))
    with pytest.raises(ShapeError):
        open_data([(source, 1.0)], MODEL, TRAINING)


def test_lightning_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING):
        train(MODEL, replace(TRAINING, steps=2), tmp_path / "run", progress=False)
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = train(MODEL, TRAINING, run, progress=False)
    before = model.read_bytes()
    assert train(MODEL, TRAINING, run, resume=True, progress=False).read_bytes() == before
    model.unlink()
    assert train(MODEL, TRAINING, run, resume=True, progress=False).read_bytes() == before


def test_resume_with_other_options_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(MODEL, TRAINING, run, progress=False)
    settings = (run / "config.json").read_text()
    for model, config in ((replace(MODEL, hidden=(5,)), TRAINING), (MODEL, replace(TRAINING, batch_size=3))):
        with pytest.raises(ConfigError, match=r"was begun with other options \((hidden|batch_size)\)"):
            train(model, config, run, resume=True, progress=False)
    (run / "last.ckpt").write_bytes(b"damaged")
    with pytest.raises(E3DError, match="cannot be resumed") as caught:
        train(MODEL, TRAINING, run, resume=True, progress=False)
    assert caught.value.exit_code == 5
    assert (run / "config.json").read_text() == settings


def test_a_run_that_never_saved_can_be_begun_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    assert train(MODEL, TRAINING, run, progress=False).exists()


def test_steps_that_are_no_whole_epochs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5 is not a whole number of epochs of 2 steps"):
        train(MODEL, replace(TRAINING, steps=5), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_on_small_colour_clips(tmp_path: Path) -> None:
    model = ModelConfig(image_size=(16, 24), channels=3, patch_size=8, hidden=(4,), kernel_size=3)
    source = write_clips(tmp_path / "clips.npz", np.random.default_rng(0).random((2, 8, 16, 24, 3), np.float32))
    path = train(model, TRAINING, tmp_path / "run", data=[(str(source), 1.0)], progress=False)
    assert checkpoint.load(path).config == model


@pytest.mark.parametrize("share", [0.0, -1.0])
def test_a_share_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="expected more than 0"):
        open_data([("moving-mnist", share)], MODEL, TRAINING)


def test_a_run_begins_with_the_weights_of_a_model(tmp_path: Path) -> None:
    first = train(MODEL, TRAINING, tmp_path / "first", progress=False)
    still = replace(TRAINING, learning_rate=1e-12)
    second = train(MODEL, still, tmp_path / "second", initial=first, progress=False)
    for name, weight in checkpoint.load(first).state_dict().items():
        torch.testing.assert_close(checkpoint.load(second).state_dict()[name], weight, rtol=0, atol=1e-9)
    with pytest.raises(ConfigError, match="is another network"):
        train(replace(MODEL, hidden=(5,)), still, tmp_path / "third", initial=first, progress=False)
    with pytest.raises(E3DError, match="no such file"):
        train(MODEL, still, tmp_path / "third", initial=tmp_path / "absent.safetensors", progress=False)
    assert not (tmp_path / "third").exists()
