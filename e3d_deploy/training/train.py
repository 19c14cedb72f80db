"""Train a network with Lightning, into a run folder that can be resumed."""

import json
import logging
import math
import pickle
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

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
from e3d_deploy.model import E3DLSTM
from e3d_deploy.training.module import Learner

VALIDATION_CLIPS, VALIDATION_SEED = 64, 2**31


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    run: Path,
    *,
    data: Sequence[tuple[str, float]] = (("moving-mnist", 1.0),),
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train into the folder `run`; return the path of the model, `run/model.safetensors`.

    The folder also gets `last.ckpt` (to resume from), `config.json` and `logs/version_N/metrics.csv`,
    one for each start.

    Args:
        data: sources and their shares of the samples: `moving-mnist`, or a file or folder of clips.
        resume: go on from `run/last.ckpt`; else `run` must not hold a run yet.

    Raises:
        ConfigError: `run` holds a run and `resume` is off, or the other way round, or it is of another model.
        CheckpointError: what is to be resumed is damaged.
        KeyboardInterrupt: Ctrl-C; `run` can be resumed from the last whole epoch.
        ClipError, ShapeError: a source that cannot be learned from.
    """
    last = run / "last.ckpt"
    if resume and not last.exists():
        raise ConfigError(f"{run}: nothing to resume, {last.name} is not there; train without --resume")
    if not resume and (run / "config.json").exists():
        raise ConfigError(f"{run}: holds a run already; give --resume to go on with it, or another folder")
    train_set = open_data(data, model_config, config)
    valid_set = Subset(
        MovingMNIST("valid", length=config.clip_length, image_size=model_config.image_size, seed=VALIDATION_SEED),
        range(VALIDATION_CLIPS),
    )
    if resume:
        _check_resumable(run, model_config)
    run.mkdir(parents=True, exist_ok=True)
    settings = {"model": model_config.to_dict(), "train": asdict(config), "data": list(data)}
    (run / "config.json").write_text(json.dumps(settings, indent=2) + "\n")

    seed_everything(config.seed, verbose=False)
    model = E3DLSTM(model_config)
    averaging = EMAWeightAveraging(decay=config.ema_decay)
    saver = ModelCheckpoint(run, filename="last", enable_version_counter=False)
    bars: list[Callback] = [RichProgressBar(console_kwargs={"stderr": True})] if progress else []
    train_loader = _loader(train_set, config, EpochSampler(config.steps_per_epoch * config.batch_size))
    valid_loader = _loader(valid_set, config, None)
    with _quiet():
        trainer = Trainer(
            accelerator="auto",
            max_epochs=math.ceil(config.steps / config.steps_per_epoch),
            gradient_clip_val=config.gradient_clip or None,
            logger=CSVLogger(run, name="logs"),
            callbacks=[averaging, saver, *bars, *callbacks],
            enable_progress_bar=progress,
            enable_model_summary=False,
            log_every_n_steps=min(50, config.steps_per_epoch),
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
    path = run / "model.safetensors"
    checkpoint.save(model, path)
    return path


def _check_resumable(run: Path, model: ModelConfig) -> None:
    try:
        torch.load(run / "last.ckpt", map_location="cpu", weights_only=True, mmap=True)
        stored = ModelConfig.from_dict(json.loads((run / "config.json").read_text())["model"])
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise CheckpointError(f"{run}: cannot be resumed, its last.ckpt or config.json is damaged ({error})") from error
    if stored != model:
        raise ConfigError(f"{run}: was begun with another model ({stored}); give the same options, or a new folder")


def open_data(data: Sequence[tuple[str, float]], model: ModelConfig, config: TrainConfig) -> Dataset[Tensor]:
    """The sources of `train` as one data set.

    Raises:
        ClipError, ShapeError: a source that cannot be learned from.
    """
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
