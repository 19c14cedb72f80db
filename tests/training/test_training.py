"""Training: scheduled sampling, the loss, whole runs, and runs that are interrupted and resumed."""

import csv
import errno
import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

import lightning.pytorch.loggers.tensorboard
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image
from torch import Tensor

from e3d_deploy import checkpoint, metrics, parts, plots
from e3d_deploy.card import Card
from e3d_deploy.cli import main
from e3d_deploy.config import ModelConfig, TrainConfig
from e3d_deploy.data.datasets import MovingMNIST, evaluation_data
from e3d_deploy.data.form import Form
from e3d_deploy.data.moving_mnist import load_digits
from e3d_deploy.demo.exhibits import MODEL as DEMO
from e3d_deploy.errors import (
    BackendUnavailable,
    CheckpointError,
    ClipError,
    ConfigError,
    E3DError,
    ShapeError,
    TrainingError,
)
from e3d_deploy.files import locked
from e3d_deploy.importing import import_checkpoint
from e3d_deploy.model import E3DLSTM
from e3d_deploy.training import sampling
from e3d_deploy.training.batches import draw_burn_in
from e3d_deploy.training.callbacks import Averaging, Keeper
from e3d_deploy.training.module import Learner, compile_cells
from e3d_deploy.training.train import Machine, _tf32_where_bf16, resume_or_next, train
from tests.golden import GOLDEN, channels_first, model_parameters, read
from tests.tools import Clock, contents

SCHEDULE = 1e-9  # absolute; measured 7.5e-13, the rounding of 50,000 subtractions
LOSS = 1e-6  # relative; measured 1.5e-7
VALIDATION = 1e-6  # relative; measured 8.4e-8
AVERAGE = 1e-6  # absolute, after a few steps; measured 0
PARTS = 5e-5  # absolute, weights that moved by 0.03; measured 5.8e-6 (Adam enlarges rounding where gradients are tiny)
SHARED = 1e-4  # absolute, as above; measured 1.6e-5
HALF = 2e-3  # absolute, of weights as float16; measured 4e-4
COMPILED = 1e-4  # absolute, as above; measured 6.0e-6

FORM = Form(image_size=(32, 32), channels=1)
MODEL = ModelConfig(image_size=(32, 32), patch_size=8, hidden=(4,), kernel_size=3)
TRAINING = TrainConfig(
    context_length=3,
    horizon=2,
    steps=6,
    batch_size=2,
    warmup_steps=1,
    ema_decay=0.5,
    ema_warmup=False,
    learning_rate=0.01,
    validate_every=3,
    validation_clips=3,
    save_every=2,
    log_every=2,
)
QUIET = Machine(progress=False)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no previews, because they take longer than the tiny steps."""
    monkeypatch.setattr(plots, "strips", lambda *_, **__: b"picture")


# Scheduled sampling


@pytest.mark.parametrize(
    ("step", "chance"), [(0, 0.8), (250, 0.6), (500, 0.4), (750, 0.2), (999, 0.0008), (1000, 0.0), (10**6, 0.0)]
)
def test_chance_of_truth_falls_linearly(step: int, chance: float) -> None:
    assert sampling.probability(step, start=0.8, decrease=0.0008, stop_step=1000) == pytest.approx(chance)


def test_truth_is_never_shown_with_stop_step_zero() -> None:
    assert sampling.probability(0, start=1.0, decrease=0.0, stop_step=0) == 0


def test_chance_of_truth_equals_the_released_schedule() -> None:
    """In run.py of google/e3d_lstm the chance falls by 0.00002 per iteration and is 0 from iteration 50,000 on."""
    eta = 1.0
    for iteration in range(1, 50_010):
        eta = eta - 0.00002 if iteration < 50_000 else 0.0
        assert abs(sampling.probability(iteration, start=1.0, decrease=0.00002, stop_step=50_000) - eta) < SCHEDULE


def test_truth_is_drawn_with_the_given_chance() -> None:
    generator = np.random.default_rng(0)
    drawn = sampling.draw((500, 9), 0.3, generator)
    assert drawn.shape == (500, 9)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert 0.27 < drawn.mean() < 0.33  # measured 0.307
    assert sampling.draw((50, 9), 1.0, generator).all()
    assert not sampling.draw((50, 9), 0.0, generator).any()


# Loss and validation


def learner(model: E3DLSTM, config: TrainConfig) -> tuple[Learner, dict[str, float]]:
    """Return a Learner without a Trainer, and a dictionary of the values that it logs."""
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
    frames = channels_first(arrays["images"])
    recipe = TrainConfig.of_recipe("google", context_length=3, horizon=3, sampling_stop_step=0, batch_size=len(frames))
    alone, logged = learner(model, recipe)
    loss = alone.training_step(frames, 0)
    assert loss.item() / len(frames) == pytest.approx(float(arrays["free/loss_train"]), rel=LOSS)
    squared = (channels_first(arrays["free/gen"]) - channels_first(arrays["x"][:, 1:])).square()
    assert logged["train_mse"] == pytest.approx(squared.sum().item() / len(frames) / 5, rel=LOSS)  # per frame
    assert logged["sampling"] == 0


def test_weight_of_the_absolute_differences_counts(tiny_model: E3DLSTM, clip: Tensor) -> None:
    losses = [
        learner(tiny_model, TrainConfig(context_length=4, horizon=3, l1_weight=weight))[0].training_step(clip, 0)
        for weight in (0.0, 1.0, 2.0)
    ]
    # At the first of 80,000 steps the true frame is shown with these draws.
    difference = tiny_model(clip, 3, torch.ones(2, 5)) - clip[:, 1:]
    assert losses[0].item() == pytest.approx(difference.square().mean().item(), rel=LOSS)
    assert (losses[1] - losses[0]).item() == pytest.approx(difference.abs().mean().item(), rel=LOSS)
    assert (losses[2] - losses[1]).item() == pytest.approx((losses[1] - losses[0]).item(), rel=LOSS)


def test_validation_measures_the_frames_after_the_context(tiny_model: E3DLSTM, clip: Tensor) -> None:
    alone, logged = learner(tiny_model, TrainConfig(context_length=4, horizon=3))
    found = alone.validation_step(clip, 0)
    predictions = tiny_model(clip[:, :4], horizon=3)[:, -3:]
    assert torch.equal(found, predictions)
    expected = metrics.mse(predictions.clamp(0, 1).numpy(), clip[:, 4:].numpy()).mean()
    assert logged["valid_mse"] == pytest.approx(expected, rel=VALIDATION)


def test_truth_is_drawn_from_seed_and_step(tiny_model: E3DLSTM, clip: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run therefore repeats the draws of an uninterrupted run."""
    draw, drawn = sampling.draw, []

    def record(shape: tuple[int, int], chance: float, generator: sampling.Generator) -> Tensor:
        drawn.append(draw(shape, chance, generator))
        return drawn[-1]

    monkeypatch.setattr(sampling, "draw", record)
    for seed, step in [(0, 7), (0, 7), (0, 8), (1, 7)]:
        config = TrainConfig(context_length=2, horizon=5, sampling_start=0.5, batch_size=2, seed=seed)
        alone, _ = learner(tiny_model, config)
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
    config = TrainConfig(context_length=3, horizon=2, sampling_stop_step=0, batch_size=1)
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
    assert losses[-1] < losses[0] / 2  # measured 1/5


# Whole runs

Weights = dict[str, Tensor]


def copied(model: Any) -> Weights:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def power_cut() -> None:
    raise InterruptedError("power cut")


class Recorder(Callback):
    """Callback that records a run, and calls `act` after a step and before its state is saved."""

    def __init__(self, step: int | None = None, act: Callable[[], None] = power_cut) -> None:
        self.step, self.act = step, act
        self.weights: list[Weights] = []
        """The initial weights, then the weights after each step."""
        self.averages: list[Weights] = []
        self.batches: list[Tensor] = []
        self.validated: list[Tensor] = []

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights.append(copied(pl_module.model))
        averaging = next(one for one in trainer.callbacks if isinstance(one, Averaging))  # type: ignore[attr-defined]
        self.averages.append(copied(averaging.average))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        self.batches.append(batch)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._keep(trainer, pl_module)
            if trainer.global_step == self.step:
                self.act()

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, *_: Any) -> None:
        self.validated.append(batch)


def equal(ours: Weights, theirs: Weights) -> bool:
    return all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def largest(ours: Weights, theirs: Weights) -> float:
    return max((ours[name] - weight).abs().max().item() for name, weight in theirs.items())


def saved(path: Path) -> Weights:
    return dict(checkpoint.load(path).state_dict())


def steps_done(run: Path) -> int:
    return int(torch.load(run / "last.ckpt", weights_only=True)["global_step"])


def logged(run: Path, name: str, version: int = 0) -> dict[int, float]:
    """Return the values that a run logged under a name, by step, from 0."""
    with (run / "logs" / f"version_{version}" / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """Return the folder of a finished run of 6 steps, and its recorder."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    recorder = Recorder()
    assert train(MODEL, TRAINING, run, machine=QUIET, callbacks=[recorder]) == run / "model.safetensors"
    return run, recorder


def test_run_fills_its_folder(finished: tuple[Path, Recorder]) -> None:
    run, _ = finished
    pictures = [
        f"previews/step_00000{step}.png" for step in (1, 3, 6)
    ]  # an early preview, then those of the validations
    models = ["model.safetensors", "model_plain.safetensors"]
    found = contents(run)
    files = ["command.json", "config.json", "last.ckpt", "logs/version_0/metrics.csv", "result.json"]
    assert sorted(found) == sorted([*files, *models, *pictures])
    for picture in pictures:
        assert np.asarray(Image.open(run / picture)).std() > 0
    assert steps_done(run) == 6


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
    assert {**asdict(TrainConfig()), **settings["train"]} == asdict(TRAINING)
    assert settings["data"] == [["moving-mnist", 1.0]]
    assert (settings["valid"], settings["initial"]) == (None, None)


def test_run_logs_both_errors(finished: tuple[Path, Recorder]) -> None:
    run, _ = finished
    assert list(logged(run, "train_mse")) == [1, 3, 5]  # every second step
    assert list(logged(run, "valid_mse")) == [2, 5]  # every third step
    assert min(logged(run, "train_mse").values()) > 0


def valid_mse(model: Path, config: TrainConfig, source: str = "moving-mnist") -> float:
    """Return the expected error of a validation, computed independently."""
    network = checkpoint.load(model)
    clips = evaluation_data(
        source,
        Form.of(network.config, Card()),
        split="valid",
        length=config.clip_length,
        most=config.validation_clips,
    )
    errors = []
    for index in range(len(clips)):
        clip = clips[index]
        forecast = network(clip[None, : config.context_length], config.horizon)[0, -config.horizon :].clamp(0, 1)
        errors.append(metrics.mse(forecast.numpy(), clip[config.context_length :].numpy()).mean())
    return float(np.mean(errors))


def test_the_saved_weights_are_those_that_were_validated(finished: tuple[Path, Recorder]) -> None:
    run, recorder = finished
    assert logged(run, "valid_mse")[5] == pytest.approx(valid_mse(run / "model.safetensors", TRAINING), rel=VALIDATION)
    assert len(recorder.validated) == 2 * 2  # three clips in batches of two, twice


def by_hand(weights: Sequence[Weights], decay: float) -> Weights:
    average = weights[0]
    for after in weights[1:]:
        average = {name: decay * average[name] + (1 - decay) * weight for name, weight in after.items()}
    return average


def test_saved_weights_are_the_moving_average_that_begins_with_the_initial_weights(
    finished: tuple[Path, Recorder],
) -> None:
    run, recorder = finished
    assert len(recorder.weights) == 1 + TRAINING.steps
    average = by_hand(recorder.weights, TRAINING.ema_decay)
    found = saved(run / "model.safetensors")
    assert largest(found, average) < AVERAGE
    assert largest(found, by_hand(recorder.weights[1:], TRAINING.ema_decay)) > 10 * AVERAGE  # not from the first step
    assert largest(found, recorder.weights[-1]) > 100 * AVERAGE
    assert equal(saved(run / "model_plain.safetensors"), recorder.weights[-1])


def test_the_decay_of_the_average_is_smaller_at_first(tmp_path: Path) -> None:
    recorder = Recorder()
    config = replace(TRAINING, ema_decay=0.9995, ema_warmup=True)
    model = train(MODEL, config, tmp_path / "run", machine=QUIET, callbacks=[recorder])
    average = recorder.weights[0]
    for step, weights in enumerate(recorder.weights[1:], 1):
        decay = (1 + step) / (10 + step)
        average = {name: decay * average[name] + (1 - decay) * weight for name, weight in weights.items()}
    assert largest(saved(model), average) < AVERAGE
    assert largest(saved(model), by_hand(recorder.weights, 0.9995)) > 100 * AVERAGE


def test_the_weights_themselves_are_saved_without_average(tmp_path: Path) -> None:
    recorder = Recorder()
    config = replace(TRAINING, average=False)
    model = train(MODEL, config, tmp_path / "run", machine=QUIET, callbacks=[recorder])
    assert equal(saved(model), recorder.weights[-1])
    average = by_hand(recorder.weights, TRAINING.ema_decay)
    assert largest(saved(tmp_path / "run" / "model_ema.safetensors"), average) < AVERAGE
    assert largest(saved(model), average) > 100 * AVERAGE
    assert not (tmp_path / "run" / "model_plain.safetensors").exists()
    assert logged(tmp_path / "run", "valid_mse")[5] == pytest.approx(valid_mse(model, config), rel=VALIDATION)


def test_previews_show_a_held_out_clip_and_its_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, np.ndarray[Any, Any]]] = []

    def strips(rows: dict[str, np.ndarray[Any, Any]], **_: Any) -> bytes:
        drawn.append(rows)
        return b"picture"

    monkeypatch.setattr(plots, "strips", strips)
    config = replace(TRAINING, steps=11, validate_every=100)
    run = tmp_path / "run"
    train(MODEL, config, run, machine=QUIET)
    assert sorted(path.name for path in (run / "previews").iterdir()) == ["step_000001.png", "step_000010.png"]
    held_out = evaluation_data("moving-mnist", FORM, split="valid", length=5, most=1)[0]
    for rows in drawn:
        assert np.array_equal(rows["truth"], held_out)
        assert np.array_equal(rows["forecast"][:3], held_out[:3])
        assert not np.array_equal(rows["forecast"][3:], held_out[3:])
    assert not np.array_equal(drawn[0]["forecast"], drawn[1]["forecast"])


def test_run_is_not_overwritten(finished: tuple[Path, Recorder]) -> None:
    run, _ = finished
    before = contents(run)
    with pytest.raises(ConfigError, match="tiny: holds a run already; give --resume to continue it, or another"):
        train(MODEL, TRAINING, run, machine=QUIET)
    assert contents(run) == before


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with (
        locked(run),
        pytest.raises(ConfigError, match="run: another process is training in this folder; wait until it ends"),
    ):
        train(MODEL, TRAINING, run, machine=QUIET)
    assert not list(run.iterdir())
    train(MODEL, replace(TRAINING, steps=1), run, machine=QUIET)


def test_seed_decides_a_run(tmp_path: Path, finished: tuple[Path, Recorder]) -> None:
    run, _ = finished
    again = train(MODEL, TRAINING, tmp_path / "again", machine=QUIET)
    other = train(MODEL, replace(TRAINING, seed=1), tmp_path / "other", machine=QUIET)
    assert again.read_bytes() == (run / "model.safetensors").read_bytes()
    assert not equal(saved(other), saved(again))


def test_lightning_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO):
        with pytest.raises(InterruptedError):
            train(MODEL, TRAINING, tmp_path / "run", machine=QUIET, callbacks=[Recorder(step=5)])
        train(MODEL, TRAINING, tmp_path / "run", machine=QUIET, resume=True)
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("changes", [{}, {"reverse_input": True}, {"loss": "sum", "optimizer": "released-adam"}])
def test_a_batch_in_parts_gives_the_same_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = replace(TRAINING, batch_size=4, sampling_start=0.5, sampling_stop_step=6, learning_rate=0.01)
    config = replace(config, **changes)
    whole, parts = Recorder(), Recorder()
    train(MODEL, config, tmp_path / "whole", machine=QUIET, callbacks=[whole])
    train(MODEL, replace(config, accumulate=2), tmp_path / "parts", machine=QUIET, callbacks=[parts])
    assert [len(batch) for batch in parts.batches] == [2] * 12
    assert torch.equal(torch.cat(parts.batches), torch.cat(whole.batches))
    assert largest(parts.weights[-1], whole.weights[-1]) < PARTS
    assert largest(whole.weights[-1], whole.weights[0]) > 100 * PARTS


def counted(monkeypatch: pytest.MonkeyPatch, target: str) -> list[None]:
    """Return a list that gets one entry per call of the function `target`."""
    place, _, name = target.rpartition(".")
    module = resolve_name(place)
    plain, calls = getattr(module, name), list[None]()

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        return plain(*arguments, **options)

    monkeypatch.setattr(module, name, count)
    return calls


def test_recomputing_gives_the_same_weights(
    tmp_path: Path, finished: tuple[Path, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = finished
    calls = counted(monkeypatch, "e3d_deploy.model.checkpoint")
    model = train(MODEL, replace(TRAINING, recompute=True), tmp_path / "run", machine=QUIET)
    assert len(calls) == TRAINING.steps * (TRAINING.clip_length - 1)
    assert model.read_bytes() == (run / "model.safetensors").read_bytes()


def test_gradients_are_clipped(tmp_path: Path) -> None:
    class Norms(Callback):
        def __init__(self) -> None:
            self.found: list[float] = []

        def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            gradients = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
            if gradients:
                self.found.append(float(torch.nn.utils.get_total_norm(gradients)))

    free, clipped = Norms(), Norms()
    train(MODEL, TRAINING, tmp_path / "free", machine=QUIET, callbacks=[free])
    train(MODEL, replace(TRAINING, gradient_clip=0.01), tmp_path / "clipped", machine=QUIET, callbacks=[clipped])
    assert min(free.found) > 0.02
    assert max(clipped.found) < 0.0101


def test_bf16_computes_in_bf16_and_keeps_float32_weights(tmp_path: Path, finished: tuple[Path, Recorder]) -> None:
    recorder = Recorder()
    train(MODEL, replace(TRAINING, precision="bf16"), tmp_path / "run", machine=QUIET, callbacks=[recorder])
    found, expected = recorder.weights[-1], finished[1].weights[-1]
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    differences = torch.cat([(found[name] - weight).abs().flatten() for name, weight in expected.items()])
    assert 1e-5 < differences.mean() < 5e-3  # measured 3e-4, after six steps of 0.01


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
def test_compiled_cells_give_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TRAINING, steps=2)
    plain, compiled = Recorder(), Recorder()
    train(MODEL, config, tmp_path / "plain", machine=QUIET, callbacks=[plain])
    calls = counted(monkeypatch, "torch.compile")
    train(MODEL, replace(config, compile=True), tmp_path / "compiled", machine=QUIET, callbacks=[compiled])
    assert len(calls) == 2 * len(MODEL.hidden)
    assert largest(compiled.weights[-1], plain.weights[-1]) < COMPILED
    assert largest(plain.weights[-1], plain.weights[0]) > 10 * COMPILED


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks, from Python 3.12 on
def test_workers_load_the_same_and_leave_signals_to_the_first_process(
    tmp_path: Path, finished: tuple[Path, Recorder], capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C is sent to all processes of a terminal."""
    told: list[int] = []

    def interrupt() -> None:
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGINT)
            told.append(worker.pid)
        time.sleep(0.2)

    say = logging.StreamHandler(os.fdopen(os.dup(2), "w"))
    logging.getLogger("e3d_deploy").addHandler(say)
    try:
        recorder = Recorder(step=3, act=interrupt)
        model = train(MODEL, TRAINING, tmp_path / "run", machine=replace(QUIET, workers=1), callbacks=[recorder])
    finally:
        logging.getLogger("e3d_deploy").removeHandler(say)
        say.stream.close()
    assert told
    assert model.read_bytes() == (finished[0] / "model.safetensors").read_bytes()
    assert capfd.readouterr() == ("", "")


# Interrupted and resumed runs

ENDLESS = replace(TRAINING, validate_every=100, save_every=100)
"""Settings of a run that saves only on request."""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2},
        {"reverse_input": True},
        {"sampling": "reverse", "sampling_hold_steps": 1, "sampling_decay_steps": 2.0},
        {"optimizer": "adam", "schedule": "onecycle", "average": False},
        {"optimizer": "released-adam", "schedule": "constant", "loss": "sum", "reverse_input": True, "accumulate": 2},
        {"burn_in": 6, "burn_in_steps": 8, "accumulate": 2},
        {"optimizer": "muon", "schedule": "onecycle"},
    ],
    ids=lambda changes: " ".join(f"{value}" for value in changes.values()) or "modern",
)
def test_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = replace(
        TRAINING, steps=8, sampling_stop_step=8, save_every=3, validate_every=7, log_every=1, batch_size=4, **changes
    )
    whole, first, second = Recorder(), Recorder(step=5), Recorder()
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    train(MODEL, config, straight, machine=QUIET, callbacks=[whole])
    with pytest.raises(InterruptedError):
        train(MODEL, config, cut, machine=QUIET, callbacks=[first])
    assert steps_done(cut) == 3
    train(MODEL, config, cut, machine=QUIET, resume=True, callbacks=[second])

    parts = config.accumulate
    for found, expected in ((first, whole.batches[: 5 * parts]), (second, whole.batches[3 * parts :])):
        for ours, theirs in zip(found.batches, expected, strict=True):
            assert torch.equal(ours, theirs)
    lengths = {batch.shape[1] for batch in second.batches}
    assert (max(lengths) > config.clip_length) == (config.burn_in_steps is not None)
    assert (len(first.weights), len(second.weights), len(whole.weights)) == (1 + 5, 1 + 5, 1 + 8)
    for name in ("weights", "averages"):
        for ours, theirs in zip(getattr(second, name), getattr(whole, name)[3:], strict=True):
            assert equal(ours, theirs), name
    assert not equal(whole.weights[8], whole.weights[7])
    models = [path.name for path in straight.glob("*.safetensors")]
    assert len(models) == 2
    for model in models:
        assert (cut / model).read_bytes() == (straight / model).read_bytes()
    assert list(logged(cut, "train_mse", version=1)) == [3, 4, 5, 6, 7]
    assert logged(cut, "valid_mse", version=1) == logged(straight, "valid_mse")
    assert list(logged(straight, "valid_mse")) == [6]


def test_a_folder_without_a_state_cannot_be_resumed(tmp_path: Path) -> None:
    run = tmp_path / "new"
    with pytest.raises(ConfigError, match=r"new: nothing to resume, last\.ckpt does not exist; train without --resume"):
        train(MODEL, TRAINING, run, machine=QUIET, resume=True)
    assert not run.exists()


def test_a_run_that_never_saved_can_be_begun_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(InterruptedError):
        train(MODEL, TRAINING, run, machine=QUIET, callbacks=[Recorder(step=1)])
    assert (run / "config.json").exists()
    assert train(MODEL, TRAINING, run, machine=QUIET).exists()


def test_resuming_a_finished_run_changes_nothing(finished: tuple[Path, Recorder]) -> None:
    run, _ = finished
    before = contents(run)
    assert train(MODEL, TRAINING, run, resume=True, machine=QUIET) == run / "model.safetensors"
    assert contents(run) == before


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """Return the folder of a run of 6 steps that was interrupted after the fourth."""
    with pytest.raises(InterruptedError):
        train(MODEL, TRAINING, tmp_path / "cut", machine=QUIET, callbacks=[Recorder(step=5)])
    return tmp_path / "cut"


@pytest.mark.parametrize(
    ("model", "config", "call", "names"),
    [
        ({"hidden": (5,)}, {}, {}, "hidden"),
        ({}, {"batch_size": 4, "learning_rate": 0.1}, {}, "batch_size, learning_rate"),
        ({}, {"sampling_stop_step": 3}, {}, "sampling_stop_step"),
        ({}, {}, {"data": [("moving-mnist", 2.0)]}, "data"),
        ({}, {}, {"valid": "moving-mnist"}, "valid"),
    ],
)
def test_resume_with_other_options_is_refused(
    cut: Path, model: dict[str, Any], config: dict[str, Any], call: dict[str, Any], names: str
) -> None:
    before = contents(cut)
    message = rf"cut: was begun with different options \({names}\); give the same options, or a new folder"
    with pytest.raises(ConfigError, match=message):
        train(replace(MODEL, **model), replace(TRAINING, **config), cut, resume=True, machine=QUIET, **call)
    assert contents(cut) == before


def test_a_resumed_run_may_be_longer_and_validate_more_often(cut: Path) -> None:
    config = replace(
        TRAINING, steps=8, validate_every=1, validation_clips=1, save_every=1, log_every=1, sampling_stop_step=None
    )
    recorder = Recorder()
    train(MODEL, config, cut, resume=True, machine=QUIET, callbacks=[recorder])
    assert steps_done(cut) == 8
    assert len(recorder.validated) == 4


def test_one_cycle_cannot_be_extended(tmp_path: Path) -> None:
    config = replace(TRAINING, schedule="onecycle")
    with pytest.raises(InterruptedError):
        train(MODEL, config, tmp_path / "run", machine=QUIET, callbacks=[Recorder(step=3)])
    with pytest.raises(ConfigError, match=r"was begun with different options \(steps\)"):
        train(MODEL, replace(config, steps=8), tmp_path / "run", resume=True, machine=QUIET)


@pytest.mark.parametrize("name", ["last.ckpt", "config.json"])
@pytest.mark.parametrize("how", ["empty", "cut", "other"])
def test_a_damaged_run_is_not_resumed(cut: Path, name: str, how: str) -> None:
    content = (cut / name).read_bytes()
    (cut / name).write_bytes({"empty": b"", "cut": content[: len(content) // 2], "other": b"damaged"}[how])
    before = contents(cut)
    with pytest.raises(CheckpointError, match="cut: cannot be resumed") as caught:
        train(MODEL, TRAINING, cut, resume=True, machine=QUIET)
    assert caught.value.exit_code == 5
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        resume_or_next(MODEL, TRAINING, cut, data=[("moving-mnist", 1.0)])
    assert contents(cut) == before


def test_folder_in_which_a_run_is_resumed_or_begun(cut: Path) -> None:
    def place(config: TrainConfig = TRAINING) -> tuple[str, bool]:
        folder, resume = resume_or_next(MODEL, config, cut, data=[("moving-mnist", 1.0)], machine=QUIET)
        assert folder.parent == cut.parent
        return folder.name, resume

    assert place() == ("cut", True)
    assert place(replace(TRAINING, seed=1)) == ("cut-2", False)
    shutil.copytree(cut, cut.with_name("cut-2"))
    assert place(replace(TRAINING, seed=1)) == ("cut-3", False)
    train(MODEL, TRAINING, cut, resume=True, machine=QUIET)
    assert place() == ("cut-2", True)
    shutil.rmtree(cut.with_name("cut-2"))
    assert place() == ("cut-2", False)
    shutil.rmtree(cut)
    assert place() == ("cut", False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_the_step(
    tmp_path: Path, finished: tuple[Path, Recorder], number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    run, handler = tmp_path / "run", signal.getsignal(number)
    callback = Recorder(step=3, act=lambda: os.kill(os.getpid(), number))
    config = replace(TRAINING, validate_every=100, save_every=100)
    with pytest.raises(KeyboardInterrupt):
        train(MODEL, config, run, machine=QUIET, callbacks=[callback])
    assert caplog.messages == [f"{number.name}: stopping after this step; repeat the signal to stop at once"]
    assert signal.getsignal(number) == handler
    assert steps_done(run) == 3
    assert equal(saved(run / "model_plain.safetensors"), finished[1].weights[3])
    train(MODEL, config, run, resume=True, machine=QUIET)
    assert (run / "model.safetensors").read_bytes() == (finished[0] / "model.safetensors").read_bytes()


def test_a_signal_ends_a_validation_too(tmp_path: Path, finished: tuple[Path, Recorder]) -> None:
    class Stop(Recorder):
        def on_validation_batch_start(self, *arguments: Any) -> None:
            super().on_validation_batch_start(*arguments)
            os.kill(os.getpid(), signal.SIGTERM)

    run, recorder = tmp_path / "run", Stop()
    with pytest.raises(KeyboardInterrupt):
        train(MODEL, TRAINING, run, machine=QUIET, callbacks=[recorder])
    assert len(recorder.validated) == 1  # of two batches
    assert steps_done(run) == 3
    train(MODEL, TRAINING, run, resume=True, machine=QUIET)
    assert (run / "model.safetensors").read_bytes() == (finished[0] / "model.safetensors").read_bytes()


def test_a_signal_between_two_steps_waits_for_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's own handler of SIGTERM would end training here without saving."""

    def interrupted(self: Learner, *_: Any) -> None:  # called after all callbacks
        if self.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Learner, "on_train_batch_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(MODEL, replace(TRAINING, validate_every=100, save_every=100), tmp_path / "run", machine=QUIET)
    assert steps_done(tmp_path / "run") == 4


def test_a_second_signal_ends_training_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    run, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(MODEL, TRAINING, run, machine=QUIET, callbacks=[Recorder(step=3, act=twice)])
    assert steps_done(run) == 2  # the step saved before
    assert signal.getsignal(signal.SIGINT) == handler


def test_training_ends_when_its_time_is_up(
    tmp_path: Path, finished: tuple[Path, Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    config = replace(TRAINING, validate_every=100, save_every=100)
    train(MODEL, config, run, machine=replace(QUIET, time_limit_s=1e-3))
    assert caplog.messages == ["time limit: stopped after step 1 of 6; continue with --resume"]
    assert steps_done(run) == 1
    assert equal(saved(run / "model_plain.safetensors"), finished[1].weights[1])
    train(MODEL, config, run, resume=True, machine=replace(QUIET, time_limit_s=1000))
    assert (run / "model.safetensors").read_bytes() == (finished[0] / "model.safetensors").read_bytes()


class Poison(Callback):
    """Callback that makes the loss of one step NaN, and records the files that were saved before it."""

    def __init__(self, run: Path, step: int) -> None:
        self.run, self.step = run, step
        self.before: dict[str, bytes] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int) -> None:
        if trainer.global_step + 1 == self.step and batch_idx % trainer.accumulate_grad_batches == 0:
            self.before = {name: content for name, content in contents(self.run).items() if "logs" not in name}
            batch[0, 1, 0, 5, 5] = torch.nan


@pytest.mark.parametrize(
    ("changes", "found"), [({"log_every": 1}, 3), ({"log_every": 100}, 4), ({"log_every": 1, "accumulate": 2}, 3)]
)
def test_a_loss_that_is_not_finite_ends_training(tmp_path: Path, changes: dict[str, Any], found: int) -> None:
    run = tmp_path / "run"
    poison = Poison(run, step=3)
    with pytest.raises(TrainingError, match=f"not finite at step {found}; the state of step 2 is kept"):
        train(MODEL, replace(TRAINING, validate_every=4, **changes), run, machine=QUIET, callbacks=[poison])
    after = {name: content for name, content in contents(run).items() if "logs" not in name}
    assert after == poison.before
    assert {"last.ckpt", "model.safetensors"} < set(after)
    assert all(weight.isfinite().all() for weight in saved(run / "model.safetensors").values())


def test_a_loss_that_is_never_finite_saves_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    remedy = r"Begin a new run with a lower --learning-rate or a --gradient-clip$"
    with pytest.raises(TrainingError, match=rf"at step 2; nothing was saved yet\. {remedy}"):
        train(MODEL, TRAINING, run, machine=QUIET, callbacks=[Poison(run, step=1)])
    assert not list(run.glob("*.safetensors"))


def test_a_loss_that_overflows_ends_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of such a loss may be finite, and so may the weights."""
    plain = Learner.loss

    def overflown(self: Learner, difference: Tensor) -> Tensor:
        return plain(self, difference) + (torch.inf if self.global_step == 2 else 0.0)

    monkeypatch.setattr(Learner, "loss", overflown)
    config = replace(TRAINING, log_every=100, save_every=4, validate_every=100)
    with pytest.raises(TrainingError, match="not finite at step 4"):
        train(MODEL, config, tmp_path / "run", machine=QUIET)


def test_an_average_that_is_not_finite_ends_training(cut: Path) -> None:
    """The average is saved as the model, and the weights may be finite nevertheless."""
    state = torch.load(cut / "last.ckpt", weights_only=True)
    next(iter(state["state_dict"].values())).view(-1)[0] = torch.nan
    torch.save(state, cut / "last.ckpt")
    with pytest.raises(TrainingError, match="averaged weight is not finite at step 6; the state of step 4"):
        train(MODEL, TRAINING, cut, resume=True, machine=QUIET)
    assert all(weight.isfinite().all() for weight in saved(cut / "model.safetensors").values())


def test_a_resumed_run_names_the_state_that_remains(cut: Path) -> None:
    with pytest.raises(TrainingError, match="at step 6; the state of step 4 is kept"):
        train(MODEL, TRAINING, cut, resume=True, machine=QUIET, callbacks=[Poison(cut, step=5)])


def test_states_are_saved_without_a_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder for temporary files may be small, and on another disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    train(MODEL, TRAINING, tmp_path / "run", machine=QUIET)
    assert steps_done(tmp_path / "run") == 6


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["last.ckpt", "model.safetensors", "model_plain.safetensors"])
def test_a_full_disk_leaves_the_saved_files(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a file is written before the disk is full."""
    run = tmp_path / "run"
    full = False
    write_bytes = Path.write_bytes

    def write(self: Path, content: bytes) -> int:
        if full and self.parent.name.startswith(f".{what}."):  # the folder in which a file is prepared
            write_bytes(self, content[: len(content) // 2])
            raise FULL
        return write_bytes(self, content)

    def fill() -> None:
        nonlocal full
        full = True
        before.update(contents(run))

    before: dict[str, bytes] = {}
    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match="No space left on device") as caught:
        train(MODEL, TRAINING, run, machine=QUIET, callbacks=[Recorder(step=4, act=fill)])
    assert caught.value.filename == str(run / what)
    after = contents(run)
    assert after[what] == before[what]
    assert [name for name in after if name.startswith(".")] == []
    full = False
    resumed = train(MODEL, TRAINING, run, resume=True, machine=QUIET)
    assert steps_done(run) == 6
    assert checkpoint.load(resumed).config == MODEL


OPTIONS = [
    "--image-size",
    "32x32",
    "--patch-size",
    "8",
    "--hidden",
    "4",
    "--kernel-size",
    "3",
    "--context",
    "3",
    "--horizon",
    "2",
    "--batch-size",
    "4",
    "--ema-decay",
    "0.5",
    "--schedule",
    "constant",
    "--learning-rate",
    "0.01",
    "--sampling-start",
    "0.5",
    "--sampling-stop-step",
    "5",
    "--validation-clips",
    "3",
    "--log-every",
    "1",
]
"""Options of a tiny run, except for its folder and its steps."""


def test_a_full_disk_is_exit_7(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: Any) -> None:
        raise FULL

    monkeypatch.setattr(Keeper, "save", save)
    done = CliRunner().invoke(main, ["train", "-o", str(tmp_path / "run"), "--steps", "1", *OPTIONS])
    assert done.exit_code == 7
    assert "No space left on device" in done.stderr


def test_a_signal_is_exit_130_and_the_error_shows_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Learner.training_step

    def interrupted(self: Learner, frames: Tensor, batch_idx: int) -> Tensor:
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, frames, batch_idx)

    monkeypatch.setattr(Learner, "training_step", interrupted)
    run = tmp_path / "run"
    done = CliRunner().invoke(main, ["train", "-o", str(run), "--steps", "9", *OPTIONS])
    assert done.exit_code == 130
    assert done.stdout == ""
    assert "SIGINT: stopping after this step; repeat the signal to stop at once" in done.stderr
    assert f"next: e3d train -o {run} --resume\ninterrupted\n" in done.stderr
    assert steps_done(run) == 3


def test_a_time_limit_is_reported_and_is_not_a_failure(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = CliRunner().invoke(main, ["train", "-o", str(run), "--steps", "9", "--time-limit", "1e-6", *OPTIONS])
    assert done.exit_code == 0
    assert "time limit: stopped after step 1 of 9; continue with --resume" in done.stderr
    assert steps_done(run) == 1


def arguments(run: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "e3d_deploy", "train", "-o", str(run), *OPTIONS, *more]


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + 300
    while not path.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)


@pytest.mark.slow
def test_sigterm_from_outside_is_exit_143_and_can_be_resumed(tmp_path: Path) -> None:
    """A run of the command line is stopped as by a scheduler that needs the machine."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        arguments(run, "--steps", "100000", "--save-every", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        wait_for(run / "last.ckpt", process)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 143, stderr
    assert stdout == ""
    assert "SIGTERM: stopping after this step; repeat the signal to stop at once" in stderr
    assert "interrupted" in stderr
    assert f"next: e3d train -o {run} --resume" in stderr
    done = steps_done(run)
    assert 1 <= done < 100_000
    steps = ["--steps", str(done + 3), "--save-every", "1"]
    for folder, more in ((run, ["--resume"]), (tmp_path / "straight", [])):
        found = CliRunner().invoke(main, ["train", "-o", str(folder), *OPTIONS, *steps, *more], catch_exceptions=False)
        assert found.exit_code == 0, found.stderr
        assert found.stdout == f"{folder / 'model.safetensors'}\n"
    for model in ("model.safetensors", "model_plain.safetensors"):
        assert (run / model).read_bytes() == (tmp_path / "straight" / model).read_bytes()


# Schedules that follow time

BY_TIME = replace(
    TRAINING, schedule_by="time", steps=1000, validate_every=1000, save_every=1000, log_every=1, sampling_start=0.8
)


class Seconds(Recorder):
    """Recorder with a clock: a step takes 1 s, the first step 20 s as if it compiled, and a validation 3 s."""

    def __init__(self, clock: Clock, step: int | None = None, act: Callable[[], None] = power_cut) -> None:
        super().__init__(step, act)
        self.clock, self.warm = clock, False

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.clock.now += 1 if self.warm else 20
        self.warm = True
        super().on_train_batch_end(*arguments)

    def on_validation_start(self, *_: Any) -> None:
        self.clock.now += 3


def timed(run: Path, config: TrainConfig, *, limit_s: float, cut: int | None = None, **call: Any) -> Seconds:
    clock = Clock()
    seconds = Seconds(clock, cut)
    machine = replace(QUIET, time_limit_s=limit_s, **call.pop("machine", {}))
    train(MODEL, config, run, machine=machine, callbacks=[seconds], clock=clock, **call)
    return seconds


def test_schedules_end_with_the_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first step ends at 20 s; the remaining 20 s are enough for 20 steps."""
    run = tmp_path / "run"
    seconds = timed(run, BY_TIME, limit_s=40)
    assert caplog.messages == []
    rates, chances = logged(run, "learning_rate"), logged(run, "sampling")
    assert list(rates) == list(range(21))
    # A step uses the share at the end of the step before it: 0, 0, 1/20, 2/20 …
    shares = [0.0, *(step / 20 for step in range(20))]
    cosine = [0.01 * (1 + math.cos(math.pi * share)) / 2 for share in shares]
    assert list(rates.values()) == pytest.approx([cosine[0] / 2, *cosine[1:]], abs=1e-5)  # one step of warm-up
    expected = [0.8 - 0.8 / 500 * (1000 * share + 1) if share < 0.499 else 0 for share in shares]
    assert list(chances.values()) == pytest.approx(expected, abs=2e-3)
    assert logged(run, "elapsed_s")[20] == pytest.approx(39)
    assert list(logged(run, "valid_mse")) == [20]
    assert steps_done(run) == 21
    average = by_hand(seconds.weights, TRAINING.ema_decay)
    assert largest(saved(run / "model.safetensors"), average) < AVERAGE
    assert equal(saved(run / "model_plain.safetensors"), seconds.weights[-1])


def test_one_cycle_ends_with_the_time(tmp_path: Path) -> None:
    betas: list[float] = []

    class Betas(Seconds):
        def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
            betas.append(optimizer.param_groups[0]["betas"][0])

    clock, run = Clock(), tmp_path / "run"
    machine = replace(QUIET, time_limit_s=40)
    config = replace(BY_TIME, schedule="onecycle", accumulate=2)  # each part takes a second
    train(MODEL, config, run, machine=machine, callbacks=[Betas(clock)], clock=clock)
    rates = list(logged(run, "learning_rate").values())
    top = int(np.argmax(rates))
    assert rates[0] == pytest.approx(0.01 / 25)
    assert rates[top] == pytest.approx(0.01, rel=0.05)
    assert (np.diff(rates[1 : top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert rates[-1] < 0.01 / 20
    assert top / len(rates) == pytest.approx(0.3, abs=0.1)
    assert betas[top] == min(betas) == pytest.approx(0.85, abs=0.01)


def test_validations_count_and_steps_may_end_a_run_by_time(tmp_path: Path) -> None:
    timed(tmp_path / "looks", replace(BY_TIME, validate_every=2), limit_s=40)
    assert (
        steps_done(tmp_path / "looks") == 9
    )  # the fourth validation ends at 40 s, which is noticed after the ninth step
    assert list(logged(tmp_path / "looks", "valid_mse")) == [1, 3, 5, 7, 8]
    timed(tmp_path / "few", replace(BY_TIME, steps=5), limit_s=1000)
    assert steps_done(tmp_path / "few") == 5
    assert list(logged(tmp_path / "few", "valid_mse")) == [4]
    assert logged(tmp_path / "few", "learning_rate")[4] == pytest.approx(0.01 * (1 + math.cos(0.8 * math.pi)) / 2)


def test_a_resumed_run_by_time_keeps_its_share_and_ends_at_the_total_limit(tmp_path: Path) -> None:
    run, config = tmp_path / "run", replace(BY_TIME, save_every=10)
    with pytest.raises(InterruptedError):
        timed(run, config, limit_s=60, cut=11)
    state = torch.load(run / "last.ckpt", weights_only=True)["callbacks"]["Keeper"]
    assert state == {"elapsed_s": 29, "share": pytest.approx(9 / 40)}
    timed(run, config, limit_s=60, resume=True)  # 31 s remain, 20 of them for the first step
    rates = logged(run, "learning_rate", version=1)
    assert steps_done(run) == 10 + 1 + 11
    for step, share in ((10, 9 / 40), (11, 9 / 40), (21, 9 / 40 + 31 / 40 * 10 / 11)):
        assert rates[step] == pytest.approx(0.01 * (1 + math.cos(math.pi * share)) / 2, abs=1e-5)
    before = contents(run)
    timed(run, config, limit_s=60, resume=True)  # the run is finished
    assert contents(run) == before
    timed(run, config, limit_s=90, resume=True)  # the share falls from 1 to 60/90, and the first step takes 20 s
    rates = logged(run, "learning_rate", version=2)
    assert steps_done(run) == 22 + 1 + 10
    shares = [2 / 3, *(2 / 3 + step / 30 for step in range(10))]
    expected = [0.01 * (1 + math.cos(math.pi * share)) / 2 for share in shares]
    assert list(rates.values()) == pytest.approx(expected, abs=1e-5)


def test_a_schedule_by_time_without_a_limit_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = CliRunner().invoke(main, ["train", "-o", str(run), "--schedule-by", "time", *OPTIONS])
    assert done.exit_code == 2
    assert "got time, but there is no time limit; give --time-limit MINUTES" in done.stderr
    assert not run.exists()


def test_time_between_parts_needs_a_folder_for_them(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["train", "-o", str(tmp_path / "run"), "--parts-every", "0.5"])
    assert (done.exit_code, "give both, or neither" in done.stderr) == (2, True)


def test_a_run_by_time_from_the_command_line_ends_normally(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "parts"
    limit = ["--schedule-by", "time", "--time-limit", "0.02", "--parts", str(folder), "--parts-every", "0.005"]
    done = CliRunner().invoke(main, ["train", "-o", str(run), *OPTIONS, *limit], catch_exceptions=False)
    assert done.exit_code == 0
    assert "resume" not in done.stderr
    assert logged(run, "valid_mse")
    assert (folder / "metrics.csv").read_bytes() == (run / "logs/version_0/metrics.csv").read_bytes()


def test_a_run_of_an_older_version_is_resumed(cut: Path) -> None:
    settings = json.loads((cut / "config.json").read_text())
    del settings["digits"], settings["time_limit_s"]
    (cut / "config.json").write_text(json.dumps(settings))
    train(MODEL, TRAINING, cut, resume=True, machine=QUIET)
    assert steps_done(cut) == 6


def test_newer_settings_with_their_defaults_are_not_written(cut: Path) -> None:
    settings = json.loads((cut / "config.json").read_text())
    assert not {"schedule_by", "burn_in_steps", "cuda_graph"} & settings["train"].keys()
    settings["train"] |= {
        "schedule_by": "steps",
        "burn_in_steps": None,
        "cuda_graph": False,
    }  # as written by earlier versions
    (cut / "config.json").write_text(json.dumps(settings))
    train(MODEL, TRAINING, cut, resume=True, machine=QUIET)
    assert steps_done(cut) == 6


def test_a_run_with_a_setting_of_a_newer_version_is_refused(cut: Path) -> None:
    settings = json.loads((cut / "config.json").read_text())
    settings["train"]["heat"] = 1
    (cut / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="unknown field heat, written by a newer e3d_deploy; update e3d_deploy"):
        train(MODEL, TRAINING, cut, resume=True, machine=QUIET)


# Burn-in


def test_the_last_steps_of_a_run_have_a_burn_in(tmp_path: Path) -> None:
    recorder = Recorder()
    config = replace(TRAINING, burn_in=9, burn_in_steps=4, log_every=1)
    train(MODEL, config, tmp_path / "run", machine=QUIET, callbacks=[recorder])
    drawn = [0, 0, *(draw_burn_in(config, step) for step in range(2, 6))]
    assert max(drawn) > 0
    assert [batch.shape[1] for batch in recorder.batches] == [burn_in + TRAINING.clip_length for burn_in in drawn]
    assert list(logged(tmp_path / "run", "burn_in").values()) == drawn
    assert {batch.shape[1] for batch in recorder.validated} == {TRAINING.clip_length}
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert (settings["burn_in"], settings["burn_in_steps"]) == (9, 4)


def test_steps_before_the_burn_in_are_those_of_a_run_without(tmp_path: Path, finished: tuple[Path, Recorder]) -> None:
    recorder = Recorder()
    config = replace(TRAINING, burn_in_steps=2)
    train(MODEL, config, tmp_path / "run", machine=QUIET, callbacks=[recorder])
    assert [draw_burn_in(config, step) > 0 for step in (4, 5)] == [False, True]
    for ours, theirs in zip(recorder.weights[:6], finished[1].weights[:6], strict=True):
        assert equal(ours, theirs)
    assert not equal(recorder.weights[6], finished[1].weights[6])


def test_the_last_tenth_of_the_time_has_a_burn_in(tmp_path: Path) -> None:
    """The first step ends at 20 s, so step 37 begins at 0.9 of the time; batches are read two steps ahead."""
    config = replace(BY_TIME, burn_in=3)
    timed(tmp_path / "run", config, limit_s=60)
    found = list(logged(tmp_path / "run", "burn_in").values())
    drawn = [draw_burn_in(config, step) for step in range(41)]
    assert not any(found[:37])
    assert any(drawn[:37])
    assert found[39:] == drawn[39:]
    assert any(drawn[39:])


def test_clips_without_spare_frames_train_without_a_burn_in_and_are_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_clips(tmp_path / "clips.npz", noise(5, TRAINING.clip_length, 32, 32, 1))
    recorder = Recorder()
    config = replace(TRAINING, burn_in_steps=6)
    train(MODEL, config, tmp_path / "run", data=[(source, 1.0)], machine=QUIET, callbacks=[recorder])
    assert {batch.shape[1] for batch in recorder.batches} == {TRAINING.clip_length}
    assert len(caplog.messages) == 1
    assert (
        "so optimizer steps with one of its windows train without a burn-in; give longer clips, or --burn-in 0"
        in caplog.messages[0]
    )


def test_a_run_that_is_older_than_the_burn_in_is_resumed_without_it(tmp_path: Path) -> None:
    config = replace(TRAINING, steps=20, burn_in=0)
    with pytest.raises(InterruptedError):
        train(MODEL, config, tmp_path / "run", machine=QUIET, callbacks=[Recorder(step=5)])
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    del settings["train"]["burn_in"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    default = replace(config, burn_in=TrainConfig.burn_in)
    found = resume_or_next(MODEL, default, tmp_path / "run", data=[("moving-mnist", 1.0)], machine=QUIET)
    assert found == (tmp_path / "run", True)
    with pytest.raises(ConfigError, match=r"was begun with different options \(burn_in\)"):
        train(MODEL, replace(config, burn_in=7), tmp_path / "run", machine=QUIET, resume=True)
    recorder = Recorder()
    train(MODEL, default, tmp_path / "run", machine=QUIET, resume=True, callbacks=[recorder])
    assert draw_burn_in(default, 18) + draw_burn_in(default, 19) > 0
    assert {batch.shape[1] for batch in recorder.batches} == {TRAINING.clip_length}


# Parts


def test_sets_of_parts_are_written_alternately_and_at_the_end(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "parts"
    seconds = timed(run, BY_TIME, limit_s=40, machine={"parts": folder, "parts_every_s": 8})
    names = ["model-a.part-1-of-1.safetensors", "model-b.part-1-of-1.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.csv", *names]
    steps = [parts.join([folder / name]).step for name in names]
    assert steps == [17, 21]  # the last two of steps 1 (20 s), 9, 17 and 21
    found = parts.join(parts.find_parts([folder]))
    (tmp_path / "joined.safetensors").write_bytes(found.content)
    for name, weight in saved(run / "model.safetensors").items():
        assert torch.equal(saved(tmp_path / "joined.safetensors")[name], weight.half().float())
    older = tmp_path / "older.safetensors"
    older.write_bytes(parts.join([folder / names[0]]).content)
    average = by_hand(seconds.weights[:18], TRAINING.ema_decay)
    assert largest(saved(older), average) < HALF
    assert list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))[-1]["valid_mse"]


def test_parts_of_a_resumed_run_belong_to_the_same_run(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "parts"
    machine = replace(QUIET, parts=folder, parts_every_s=0)
    with pytest.raises(InterruptedError):
        train(MODEL, TRAINING, run, machine=machine, callbacks=[Recorder(step=5)])
    train(MODEL, TRAINING, run, machine=machine, resume=True)
    assert parts.join(parts.find_parts([folder])).step == 6
    with pytest.raises(ConfigError, match=r"parts: holds parts of another run; give an empty folder, or --resume"):
        train(MODEL, TRAINING, tmp_path / "other", machine=machine)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("saved_with_parts", [False, True])
def test_parts_of_another_run_are_not_mixed_into_a_resumed_one(tmp_path: Path, saved_with_parts: bool) -> None:
    machine = replace(QUIET, parts=tmp_path / "parts")
    train(MODEL, replace(TRAINING, steps=1), tmp_path / "other", machine=machine)
    begun = replace(QUIET, parts=tmp_path / "elsewhere") if saved_with_parts else QUIET
    with pytest.raises(InterruptedError):
        train(MODEL, TRAINING, tmp_path / "run", machine=begun, callbacks=[Recorder(step=5)])
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"parts: holds parts of another run; give an empty folder"):
        train(MODEL, TRAINING, tmp_path / "run", machine=machine, resume=True)
    assert contents(tmp_path) == before


def test_parts_of_repeated_steps_are_replaced(tmp_path: Path) -> None:
    """When the run is interrupted, its state is that of step 4, and its parts are those of steps 8 and 9."""
    run, folder = tmp_path / "run", tmp_path / "parts"
    machine = replace(QUIET, parts=folder, parts_every_s=0)
    config = replace(TRAINING, steps=20, validate_every=20, save_every=4)
    with pytest.raises(InterruptedError):
        train(MODEL, config, run, machine=machine, callbacks=[Recorder(step=5)])
    state = (run / "last.ckpt").read_bytes()
    with pytest.raises(InterruptedError):
        train(MODEL, config, run, machine=machine, resume=True, callbacks=[Recorder(step=10)])
    assert parts.join(parts.find_parts([folder])).left_out == ("step 8 is older",)
    (run / "last.ckpt").write_bytes(state)
    with pytest.raises(InterruptedError):
        train(MODEL, config, run, machine=machine, resume=True, callbacks=[Recorder(step=6)])
    assert parts.join(parts.find_parts([folder])).step == 5


def test_parts_that_cannot_be_written_do_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, tries = tmp_path / "parts", []

    def save(*arguments: Any, step: int, **options: Any) -> list[Path]:
        tries.append(step)
        if step < 5:
            raise FULL
        return plain(*arguments, step=step, **options)

    plain = parts.save_parts
    monkeypatch.setattr("e3d_deploy.training.callbacks.save_parts", save)
    train(MODEL, TRAINING, tmp_path / "run", machine=replace(QUIET, parts=folder, parts_every_s=0))
    assert tries == [1, 2, 3, 4, 5, 6]
    assert [text for text in caplog.messages if "parts" in text] == [
        f"parts of step 1 could not be written ({FULL}); training continues"
    ]
    assert parts.join(parts.find_parts([folder])).step == 6


@pytest.mark.parametrize("parts_folder", ["file", "/proc", "/proc/below"])
def test_an_unwritable_folder_for_parts_is_refused_before_anything_is_created(
    tmp_path: Path, parts_folder: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written to \(.+\); give another folder"):
        train(MODEL, TRAINING, tmp_path / "run", machine=replace(QUIET, parts=tmp_path / parts_folder))
    assert not (tmp_path / "run").exists()


def test_the_last_parts_that_cannot_be_written_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: Any, **__: Any) -> list[Path]:
        raise FULL

    monkeypatch.setattr("e3d_deploy.training.callbacks.save_parts", save)
    with pytest.raises(OSError, match="No space left on device"):
        train(MODEL, TRAINING, tmp_path / "run", machine=replace(QUIET, parts=tmp_path / "parts"))
    assert steps_done(tmp_path / "run") == 6
    assert list(logged(tmp_path / "run", "valid_mse")) == [2, 5]


def test_the_last_parts_are_written_before_the_last_validation(tmp_path: Path) -> None:
    steps: list[int] = []

    class Looker(Recorder):
        def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            found = list((tmp_path / "parts").glob(parts.PATTERN))
            steps.append(parts.join(found).step if found else 0)

    machine = replace(QUIET, parts=tmp_path / "parts", parts_every_s=1000)
    train(MODEL, TRAINING, tmp_path / "run", machine=machine, callbacks=[Looker()])
    assert steps == [0, 6]


def test_parts_are_written_when_a_run_is_stopped(tmp_path: Path) -> None:
    callback = Recorder(step=3, act=lambda: os.kill(os.getpid(), signal.SIGTERM))
    machine = replace(QUIET, parts=tmp_path / "parts", parts_every_s=1000)
    with pytest.raises(KeyboardInterrupt):
        train(MODEL, ENDLESS, tmp_path / "run", machine=machine, callbacks=[callback])
    assert parts.join(parts.find_parts([tmp_path / "parts"])).step == 3


# Settings of a GPU


def test_gradients_are_clipped_in_bf16_with_a_fused_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning refuses this combination, which is used on a GPU."""
    fused: list[bool] = []
    for name in ("Adam", "AdamW"):
        plain = getattr(torch.optim, name)

        def make(*arguments: Any, plain: Any = plain, **options: Any) -> Any:
            fused.append(options.get("fused", False))
            return plain(*arguments, **options)

        monkeypatch.setattr(f"e3d_deploy.training.module.{name}", make)
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True, raising=False)
    for optimizer in ("adam", "adamw"):
        config = replace(TRAINING, steps=1, precision="bf16", gradient_clip=0.01, optimizer=optimizer)
        assert train(MODEL, config, tmp_path / optimizer, machine=QUIET).exists()
    assert fused == [True, True]


def test_optimizers_on_a_cpu_are_not_fused(tiny_model: E3DLSTM) -> None:
    assert not Learner(tiny_model, TRAINING)._optimizer().defaults["fused"]


@pytest.mark.parametrize(("precision", "inside"), [("bf16", "high"), ("auto", "high"), ("fp32", "highest")])
def test_a_gpu_uses_tf32_only_with_bf16(precision: Any, inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    with _tf32_where_bf16(replace(TRAINING, precision=precision)):
        assert torch.get_float32_matmul_precision() == inside
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.slow
def test_training_accepts_tf32_that_was_set_by_the_new_names() -> None:
    """This runs in its own process, because PyTorch's two sets of names then disagree in the whole process."""
    code = """
import torch
from e3d_deploy.config import TrainConfig
from e3d_deploy.training.train import _tf32_where_bf16

torch.cuda.is_available = torch.cuda.is_bf16_supported = lambda: True
torch.backends.fp32_precision = "tf32"
before = torch.backends.cudnn.benchmark
with _tf32_where_bf16(TrainConfig(precision="bf16")):
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.benchmark
assert torch.backends.cudnn.benchmark == before
print(torch.backends.fp32_precision)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "tf32\n"


def test_cells_are_compiled_only_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations and previews have different batch sizes, and each size would be compiled."""
    calls: list[int] = []

    def compile_(plain: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        assert options == {"dynamic": False}

        def compiled(*tensors: Tensor) -> Any:
            calls.append(len(tensors[0]))
            return plain(*tensors)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    said: list[str] = []
    config = replace(TRAINING, compile=True)
    model = train(MODEL, config, tmp_path / "run", machine=QUIET, progress=said.append)
    assert said[0] == "compiling the cells: the first step takes a minute or more"
    assert calls == [2] * (config.steps * 2 * (config.clip_length - 1))
    assert checkpoint.load(model).config == MODEL


@pytest.mark.filterwarnings("ignore")  # PyTorch's own
def test_everything_is_compiled_in_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds for any length of the history; the graphs do not depend on the backend."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda part, **options: plain(part, backend="eager", **options))
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = E3DLSTM(ModelConfig(image_size=(16, 16), hidden=(4, 4, 4), kernel_size=3, history_length=5))
    compile_cells(model)
    stats = torch._dynamo.utils.counters["stats"]
    stats.clear()
    graphs = []
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            predictions = model(torch.rand(2, 9, 1, 16, 16), 4, torch.ones(2, 7))
        predictions.float().square().mean().backward()
        with torch.no_grad():
            model(torch.rand(1, 3, 1, 16, 16), 2)  # another batch size
        graphs.append(stats["unique_graphs"])
    torch._dynamo.reset()
    assert graphs[0] == graphs[2] == 4 + 1  # variants of gates and states; equal layers share them


def test_all_processes_use_the_share_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks differ, so the learning rates and then the weights of the processes would diverge."""
    plain = SingleDeviceStrategy.broadcast

    def broadcast(self: SingleDeviceStrategy, value: Any, src: int = 0) -> Any:
        return 0.5 if isinstance(value, float) else plain(self, value, src)

    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", broadcast)
    timed(tmp_path / "run", replace(BY_TIME, steps=4, warmup_steps=0), limit_s=1000)
    assert list(logged(tmp_path / "run", "learning_rate").values()) == pytest.approx([0.005] * 4)


# Training from the weights of the demo model


def test_a_run_begins_with_the_demo_model(tmp_path: Path) -> None:
    network = ["--patch-size", "8", "--hidden", "64,64", "--kernel-size", "3"]
    short = ["--context", "2", "--horizon", "2", "--batch-size", "1", "--steps", "1", "--validation-clips", "1"]
    run = tmp_path / "run"
    options = ["--init", str(DEMO), *network, *short, "--learning-rate", "1e-9", "--no-average"]
    done = CliRunner().invoke(main, ["train", "-o", str(run), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert largest(saved(run / "model.safetensors"), saved(DEMO)) < 1e-7
    checkpoint.save(checkpoint.load(DEMO), tmp_path / "low.safetensors", dtype=torch.float16)
    options[1] = str(tmp_path / "low.safetensors")
    done = CliRunner().invoke(main, ["train", "-o", str(tmp_path / "low"), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert largest(saved(tmp_path / "low" / "model.safetensors"), saved(DEMO)) < HALF


# Several processes


def run_two(run: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        arguments(run, "--devices", "2", *more),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run_one(run: Path, *more: str) -> Path:
    done = CliRunner().invoke(main, ["train", "-o", str(run), *OPTIONS, *more], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return run / "model.safetensors"


def test_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    """Each process gets half of each accumulated batch, with the draws of its clips and the same burn-in."""
    steps = ["--steps", "6", "--accumulate", "2", "--burn-in", "9", "--burn-in-steps", "4"]
    done = run_two(tmp_path / "two", *steps)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'two' / 'model.safetensors'}\n"
    one = run_one(tmp_path / "one", *steps)
    for model in ("model.safetensors", "model_plain.safetensors"):
        assert largest(saved(tmp_path / "two" / model), saved(one.with_name(model))) < SHARED
    assert logged(tmp_path / "two", "burn_in") == logged(tmp_path / "one", "burn_in")
    assert max(logged(tmp_path / "one", "burn_in").values()) > 0


@pytest.mark.slow
def test_two_processes_agree_on_the_share_of_the_time(tmp_path: Path) -> None:
    """The share of the steps is larger than the share of the time here, so a single process has the same share."""
    options = ["--schedule-by", "time", "--time-limit", "1e6", "--schedule", "cosine", "--steps", "4"]
    done = run_two(tmp_path / "two", *options)
    assert done.returncode == 0, done.stderr
    one = run_one(tmp_path / "one", *options)
    assert largest(saved(tmp_path / "two" / "model.safetensors"), saved(one)) < SHARED
    assert list(logged(tmp_path / "two", "valid_mse")) == [3]


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        arguments(run, "--devices", "2", "--steps", "100000", "--save-every", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        wait_for(run / "last.ckpt", process)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=300)  # returns when the last process has closed the pipes
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 143, stderr
    assert stdout == ""
    assert stderr.count("interrupted") == stderr.count("next: e3d train") == 1
    assert "time limit" not in stderr
    done = steps_done(run)
    assert run_one(run, "--resume", "--steps", str(done + 1), "--save-every", "1").exists()
    assert steps_done(run) == done + 1


# TensorBoard and samples


def test_tensorboard_logs_are_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Otherwise it would import TensorFlow if installed, which takes seconds.
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", ModuleType("notf"))
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    train(MODEL, TRAINING, run, machine=replace(QUIET, tensorboard=True))
    read = events.EventAccumulator(str(run / "tensorboard" / "version_0")).Reload()
    for name in ("train_mse", "valid_mse", "train_loss", "sampling"):
        found = {event.step: event.value for event in read.Scalars(name)}
        assert found == pytest.approx(logged(run, name))


def test_tensorboard_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lightning.fabric.loggers.tensorboard, lightning.pytorch.loggers.tensorboard):
        for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, False)
    with pytest.raises(BackendUnavailable, match=r"pip install 'e3d_deploy\[tensorboard\]'") as caught:
        train(MODEL, TRAINING, tmp_path / "run", machine=replace(QUIET, tensorboard=True))
    assert caught.value.exit_code == 4
    assert not (tmp_path / "run").exists()


def test_samples_are_written_like_those_of_the_original(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    train(MODEL, TRAINING, tmp_path / "run", machine=replace(QUIET, samples=folder, sample_count=1))
    truth, forecast = [f"gt0{t}.png" for t in range(1, 6)], ["pd04.png", "pd05.png"]
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    assert found == [f"{step}/1/{name}" for step in (3, 6) for name in (*truth, *forecast)]
    held_out = evaluation_data("moving-mnist", FORM, split="valid", length=5, most=3)[0]
    for number, name in enumerate(truth):
        expected = metrics.eight_bits(held_out[number, 0].numpy())
        assert np.array_equal(np.asarray(Image.open(folder / "6" / "1" / name)), expected)
    model = checkpoint.load(tmp_path / "run" / "model.safetensors")
    predicted = metrics.eight_bits(model(held_out[None, :3], 2)[0, -1, 0].numpy()).astype(int)
    # Values are truncated, so the last bit of a float may change a value by 1 of 255.
    assert np.abs(np.asarray(Image.open(folder / "6" / "1" / "pd05.png")) - predicted).max() <= 1


def test_samples_of_another_run_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "samples"
    machine = replace(QUIET, samples=folder, sample_count=2)
    train(MODEL, TRAINING, tmp_path / "first", machine=machine)
    before = contents(folder)
    train(MODEL, replace(TRAINING, seed=1), tmp_path / "second", machine=machine)
    assert contents(folder) == before
    kept = "exists and is not overwritten, so its pictures are not from this run"
    assert caplog.messages == [f"{folder / str(step)}: {kept}" for step in (3, 6)]


# Initial weights


def test_a_run_begins_with_the_weights_of_a_model(tmp_path: Path, finished: tuple[Path, Recorder]) -> None:
    first, recorder = finished[0] / "model.safetensors", Recorder()
    larger = replace(MODEL, image_size=(48, 32), history_length=3)
    train(larger, TRAINING, tmp_path / "second", initial=first, machine=QUIET, callbacks=[recorder])
    assert equal(recorder.weights[0], saved(first))
    assert equal(recorder.averages[0], saved(first))
    assert json.loads((tmp_path / "second" / "config.json").read_text())["initial"]["name"] == "model.safetensors"
    assert checkpoint.load(tmp_path / "second" / "model.safetensors").config == larger


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": (5,)}, r"contains a different network \(hidden \[4\]\)"),
        ({"semantics": "google"}, r"contains a different network \(semantics paper\)"),
        ({"norm_eps": 1e-12, "kernel_size": 5}, r"\(kernel_size 3, norm_eps 1e-05\); give the options that it was"),
    ],
)
def test_initial_weights_of_another_network_are_refused(
    tmp_path: Path, finished: tuple[Path, Recorder], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(
            replace(MODEL, **changes),
            TRAINING,
            tmp_path / "run",
            initial=finished[0] / "model.safetensors",
            machine=QUIET,
        )
    assert not (tmp_path / "run").exists()


OPENSTL = GOLDEN / "openstl" / "a_plain.pth"


def test_a_run_begins_with_the_weights_of_an_imported_checkpoint(tmp_path: Path) -> None:
    model = import_checkpoint(OPENSTL).model
    data = [(write_clips(tmp_path / "clips.npz", noise(3, 8, 16, 16, 1)), 1.0)]
    for stride in (1, 2):  # the weights do not show the stride
        config, recorder = replace(model.config, history_length=3, stride=stride), Recorder()
        run, call = tmp_path / str(stride), {"data": data, "machine": QUIET, "callbacks": [recorder]}
        train(config, replace(TRAINING, steps=1), run, initial=OPENSTL, **call)  # type: ignore[arg-type]
        assert equal(recorder.weights[0], dict(model.state_dict()))
        assert checkpoint.load(run / "model.safetensors").config == config


def test_norms_of_openstl_fit_one_picture_size(tmp_path: Path) -> None:
    model = import_checkpoint(OPENSTL).model
    checkpoint.save(model, tmp_path / "model.safetensors")
    larger = replace(model.config, image_size=(32, 32))
    with pytest.raises(ConfigError, match=r"contains a different network \(image_size \[16, 16\]\)"):
        train(larger, TRAINING, tmp_path / "run", initial=tmp_path / "model.safetensors", machine=QUIET)
    with pytest.raises(ConfigError, match="image_size: got"):
        train(larger, TRAINING, tmp_path / "run", initial=OPENSTL, machine=QUIET)
    assert not (tmp_path / "run").exists()


def test_missing_initial_weights_are_refused(tmp_path: Path) -> None:
    for name in ("absent.safetensors", "absent.ckpt"):
        with pytest.raises(CheckpointError, match="no such"):
            train(MODEL, TRAINING, tmp_path / "run", initial=tmp_path / name, machine=QUIET)
    assert not (tmp_path / "run").exists()


# Sources


def write_clips(path: Path, array: np.ndarray[Any, Any]) -> str:
    np.savez(path, frames=array)
    return str(path)


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_validation_uses_the_held_out_clips_of_the_first_source(tmp_path: Path) -> None:
    first = write_clips(tmp_path / "first.npz", noise(5, 8, 32, 32, 1))
    second = write_clips(tmp_path / "second.npz", 255 - noise(5, 9, 32, 32, 1))
    recorder = Recorder()
    config = replace(TRAINING, steps=3)
    data = [(first, 1.0), (second, 1.0)]
    model = train(MODEL, config, tmp_path / "run", data=data, machine=QUIET, callbacks=[recorder])
    held_out = evaluation_data(first, FORM, split="valid", length=5, most=3)
    expected = torch.stack([held_out[index] for index in range(len(held_out))])
    assert torch.equal(torch.cat(recorder.validated), expected)
    assert logged(tmp_path / "run", "valid_mse")[2] == pytest.approx(valid_mse(model, config, first), rel=VALIDATION)
    shown = torch.cat(recorder.batches).flatten(0, 1)
    assert not any(torch.equal(frame, seen) for frame in expected.flatten(0, 1) for seen in shown)


@pytest.mark.parametrize(("valid", "source"), [(None, "moving-mnist"), ("clips.npz", "clips.npz")])
def test_validation_uses_the_given_source(tmp_path: Path, valid: str | None, source: str) -> None:
    clips = write_clips(tmp_path / "clips.npz", noise(5, 8, 32, 32, 1))
    names = {"clips.npz": clips, "moving-mnist": "moving-mnist", None: None}
    recorder = Recorder()
    data = [(clips, 1.0), ("moving-mnist", 1.0)]
    train(
        MODEL,
        replace(TRAINING, steps=3),
        tmp_path / "run",
        data=data,
        valid=names[valid],
        machine=QUIET,
        callbacks=[recorder],
    )
    held_out = evaluation_data(str(names[source]), FORM, split="valid", length=5, most=3)
    assert torch.equal(torch.cat(recorder.validated), torch.stack([held_out[i] for i in range(len(held_out))]))


def test_a_run_on_small_colour_clips(tmp_path: Path) -> None:
    model = ModelConfig(image_size=(16, 24), channels=3, patch_size=8, hidden=(4,), kernel_size=3)
    source = write_clips(tmp_path / "clips.npz", np.random.default_rng(0).random((3, 8, 16, 24, 3), np.float32))
    recorder = Recorder()
    path = train(model, TRAINING, tmp_path / "run", data=[(source, 1.0)], machine=QUIET, callbacks=[recorder])
    assert checkpoint.load(path).config == model
    assert recorder.batches[0].shape == (2, 5, 3, 16, 24)


@pytest.mark.parametrize(
    ("source", "changes", "error", "message"),
    [
        ("moving-mnist", {"channels": 3}, ConfigError, "Moving MNIST is gray, the model takes 3 colours"),
        ("absent.mp4", {}, ClipError, r"absent\.mp4: no such file"),
        ("short.npz", {}, ClipError, "5 frames"),
        ("short.npz", {"channels": 3}, ShapeError, r"expected \[32, 32, 3\]"),
    ],
)
def test_sources_that_cannot_be_learned_from_leave_no_run(
    tmp_path: Path, source: str, changes: dict[str, Any], error: type[E3DError], message: str
) -> None:
    write_clips(tmp_path / "short.npz", np.zeros((4, 32, 32, 1), np.uint8))
    name = source if source == "moving-mnist" else str(tmp_path / source)
    with pytest.raises(error, match=message):
        train(replace(MODEL, **changes), TRAINING, tmp_path / "run", data=[(name, 1.0)], machine=QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("share", [0.0, -1.0])
def test_an_invalid_share_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigError, match="expected more than 0"):
        train(MODEL, TRAINING, tmp_path / "run", data=[("moving-mnist", share)], machine=QUIET)


def test_a_batch_that_cannot_be_shared_evenly_leaves_no_run(tmp_path: Path) -> None:
    config = replace(TRAINING, batch_size=6, accumulate=2)
    with pytest.raises(
        ConfigError, match="6 clips cannot be shared evenly by 2 processes in 2 accumulated batches; choose a mult"
    ):
        train(MODEL, config, tmp_path / "run", machine=replace(QUIET, devices=2))
    assert not (tmp_path / "run").exists()


# Digits


def test_digits_of_a_file_are_used_and_belong_to_the_settings(tmp_path: Path) -> None:
    digits = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    np.savez(tmp_path / "digits.npz", images=digits)
    run, recorder = tmp_path / "run", Recorder(step=3)
    call: dict[str, Any] = {"digits": tmp_path / "digits.npz", "machine": QUIET}
    with pytest.raises(InterruptedError):
        train(MODEL, TRAINING, run, callbacks=[recorder], **call)
    expected = MovingMNIST("train", length=5, image_size=(32, 32), digits=digits)
    assert torch.equal(recorder.batches[0], torch.stack([expected[0], expected[1]]))
    assert json.loads((run / "config.json").read_text())["digits"]["name"] == "digits.npz"
    with pytest.raises(ConfigError, match=r"was begun with different options \(digits\)"):
        train(MODEL, TRAINING, run, resume=True, machine=QUIET)
    assert train(MODEL, TRAINING, run, resume=True, **call).exists()


@pytest.mark.parametrize("split", ["valid", "test"])
def test_digits_that_are_held_out_are_refused(tmp_path: Path, split: Any) -> None:
    digits = np.concatenate([load_digits("train")[:5], load_digits(split)[-1:]])
    np.savez(tmp_path / "digits.npz", images=digits)
    run = tmp_path / "run"
    options = ["train", "-o", str(run), "--digits", str(tmp_path / "digits.npz"), *OPTIONS]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 2
    assert "1 of its 6 digits are held out for validation and tests, the first is number 5; remove them" in done.stderr
    assert not run.exists()


def test_digits_without_moving_mnist_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "digits.npz", images=load_digits("train"))
    clips = write_clips(tmp_path / "clips.npz", noise(5, 8, 32, 32, 1))
    with pytest.raises(ConfigError, match="is only for moving-mnist"):
        train(MODEL, TRAINING, tmp_path / "run", data=[(clips, 1.0)], digits=tmp_path / "digits.npz", machine=QUIET)
