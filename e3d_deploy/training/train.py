"""Train a network with Lightning, into a run folder that can be resumed."""

import json
import logging
import pickle
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from e3d_deploy import checkpoint, frames
from e3d_deploy.config import ModelConfig, TrainConfig
from e3d_deploy.data.clips import read_clips
from e3d_deploy.data.datasets import EpochSampler, Mixture, MovingMNIST, Windows
from e3d_deploy.errors import CheckpointError, ConfigError
from e3d_deploy.files import sha256, write_file
from e3d_deploy.model import E3DLSTM
from e3d_deploy.training.module import Learner

VALIDATION_CLIPS, VALIDATION_SEED = 64, 2**31


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    run: Path,
    *,
    data: Sequence[tuple[str, float]] = (("moving-mnist", 1.0),),
    initial: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train into the folder `run`; return the path of the model, `run/model.safetensors`.

    The folder also gets `last.ckpt` (to resume from), `config.json` and `logs/version_N/metrics.csv`,
    one for each start.

    Args:
        data: sources and their shares of the samples: `moving-mnist`, or a file or folder of clips.
        initial: model whose weights to begin with, of the same config; else they are drawn by the seed.
        resume: go on from `run/last.ckpt`; else `run` must not hold a run yet.

    Raises:
        ConfigError: `run` holds a run and `resume` is off, or the other way round, or it was begun with other
            options; steps that are no whole number of epochs.
        CheckpointError: what is to be resumed is damaged.
        KeyboardInterrupt: Ctrl-C; `run` can be resumed from the last whole epoch.
        ClipError, ShapeError: a source that cannot be learned from.
    """
    last, path = run / "last.ckpt", run / "model.safetensors"
    if resume and not last.exists():
        raise ConfigError(f"{run}: nothing to resume, {last.name} is not there; train without --resume")
    if not resume and (last.exists() or path.exists()):
        raise ConfigError(f"{run}: holds a run already; give --resume to go on with it, or another folder")
    per_epoch = min(config.steps_per_epoch, config.steps)
    if config.steps % per_epoch:
        raise ConfigError(
            f"steps: {config.steps} is not a whole number of epochs of {per_epoch} steps, at whose end a run is "
            "saved; choose a multiple, or another steps_per_epoch"
        )
    config = replace(config, steps_per_epoch=per_epoch)
    weights = None if initial is None else _weights_of(initial, model_config)
    begin = None if initial is None else {"file": initial.name, "sha256": sha256(initial)}
    settings = json.loads(
        json.dumps({"model": model_config.to_dict(), "train": asdict(config), "data": list(data), "initial": begin})
    )
    if resume and _check_resumable(run, settings) >= config.steps:
        checkpoint.save(_finished(last, model_config), path)
        return path
    train_set = open_data(data, model_config, config)
    valid_set = Subset(_validation_data(data, model_config, config), range(VALIDATION_CLIPS))
    run.mkdir(parents=True, exist_ok=True)
    write_file(run / "config.json", (json.dumps(settings, indent=2) + "\n").encode())

    seed_everything(config.seed, verbose=False)
    model = E3DLSTM(model_config)
    if weights is not None:
        model.load_state_dict(weights)
    averaging = EMAWeightAveraging(decay=config.ema_decay)
    saver = ModelCheckpoint(run, filename="last", enable_version_counter=False)
    bars: list[Callback] = [RichProgressBar(console_kwargs={"stderr": True})] if progress else []
    train_loader = _loader(train_set, config, EpochSampler(per_epoch * config.batch_size))
    valid_loader = _loader(valid_set, config, None)
    with _quiet():
        trainer = Trainer(
            accelerator="auto",
            max_epochs=config.steps // per_epoch,
            gradient_clip_val=config.gradient_clip or None,
            logger=CSVLogger(run, name="logs"),
            callbacks=[averaging, saver, *bars, *callbacks],
            enable_progress_bar=progress,
            enable_model_summary=False,
            log_every_n_steps=min(50, per_epoch),
        )
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(
                Learner(model, config),
                train_loader,
                valid_loader,
                ckpt_path=last if resume else None,
                weights_only=True,
            )
        except SystemExit as error:  # what Lightning makes of Ctrl-C, and it ignores the next ones
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from error
    checkpoint.save(model, path)
    return path


def _check_resumable(run: Path, settings: dict[str, Any]) -> int:
    """The optimiser steps done in a run, after its settings were compared with those to go on with."""
    try:
        stored = json.loads((run / "config.json").read_text())
        stored["train"]["steps"] = settings["train"]["steps"]  # a run may be made longer
        done = int(torch.load(run / "last.ckpt", map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run}: cannot be resumed, its last.ckpt or config.json is damaged ({error})") from error
    if stored != settings:
        changed = [
            name
            for part in ("model", "train")
            for name, value in settings[part].items()
            if stored.get(part, {}).get(name) != value
        ]
        raise ConfigError(
            f"{run}: was begun with other options ({', '.join(changed) or 'data'}); give the same, or a new folder"
        )
    return done


def _weights_of(initial: Path, config: ModelConfig) -> dict[str, Tensor]:
    model = checkpoint.load(initial)
    if model.config != config:
        raise ConfigError(f"{initial}: is another network ({model.config}); give the options that it was made with")
    return model.state_dict()


def _finished(last: Path, config: ModelConfig) -> E3DLSTM:
    """The moving average of a run that is over, as its checkpoint has it."""
    weights = torch.load(last, map_location="cpu", weights_only=True)["state_dict"]
    model = E3DLSTM(config)
    model.load_state_dict({name.removeprefix("model."): weight for name, weight in weights.items()})
    return model


def _validation_data(data: Sequence[tuple[str, float]], model: ModelConfig, config: TrainConfig) -> Dataset[Tensor]:
    """Moving MNIST of other digits where it is a source; else other windows of the same clips, not held out."""
    if any(source == "moving-mnist" for source, _ in data):
        return MovingMNIST("valid", length=config.clip_length, image_size=model.image_size, seed=VALIDATION_SEED)
    return open_data(data, model, replace(config, seed=VALIDATION_SEED))


def open_data(data: Sequence[tuple[str, float]], model: ModelConfig, config: TrainConfig) -> Dataset[Tensor]:
    """The sources of `train` as one data set.

    Raises:
        ClipError, ShapeError: a source that cannot be learned from.
        ConfigError: a share that is not above 0, or Moving MNIST for a model that takes colours.
    """
    for source, share in data:
        if not share > 0:
            raise ConfigError(f"data: {source} has the share {share:g}, expected more than 0")
    parts: list[Dataset[Tensor]] = []
    for source, _ in data:
        if source == "moving-mnist":
            if model.channels != 1:
                raise ConfigError(f"channels: Moving MNIST is gray, the model takes {model.channels} colours")
            part: Dataset[Tensor] = MovingMNIST(
                "train", length=config.clip_length, image_size=model.image_size, seed=config.seed
            )
        else:
            clips = read_clips(Path(source), image_size=model.image_size, channels=model.channels).frames
            checked = frames.to_frames(clips, image_size=model.image_size, channels=model.channels, name=source)
            part = Windows(list(frames.to_pictures(checked)), length=config.clip_length, seed=config.seed)
        parts.append(part)
    return parts[0] if len(parts) == 1 else Mixture(parts, [share for _, share in data], seed=config.seed)


def _loader(data: Dataset[Tensor], config: TrainConfig, sampler: EpochSampler | None) -> DataLoader[Tensor]:
    return DataLoader(data, batch_size=config.batch_size, sampler=sampler, pin_memory=torch.cuda.is_available())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's banner, advertisement and hints about loader workers out of the log."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)
