"""Train a network with Lightning, into a run folder that can be resumed."""

import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from e3d_deploy import checkpoint
from e3d_deploy.card import Card, Window
from e3d_deploy.config import ModelConfig, TrainConfig
from e3d_deploy.data.datasets import Extendable, FixedWindows, check_read, evaluation_data, training_data
from e3d_deploy.data.folders import share_files, some
from e3d_deploy.data.form import Form
from e3d_deploy.errors import BackendUnavailable, ConfigError, TrainingError
from e3d_deploy.files import locked, remove_left, write_file
from e3d_deploy.libraries import is_importable, pip_install
from e3d_deploy.model import E3DLSTM
from e3d_deploy.parts import PATTERN, read_card
from e3d_deploy.progress import Notify, is_animated, silent
from e3d_deploy.tensors import is_foreign
from e3d_deploy.tf32 import arithmetic
from e3d_deploy.training.batches import StepBatches
from e3d_deploy.training.callbacks import (
    Averaging,
    Bar,
    Interrupted,
    Keeper,
    Parts,
    Previews,
    Samples,
    StateFile,
    Stopped,
    lightning_quiet,
    signals,
)
from e3d_deploy.training.copying import RESULT, Comparison, Validated, measure
from e3d_deploy.training.decay import record_decay_of_run
from e3d_deploy.training.module import Learner
from e3d_deploy.training.pace import Pace
from e3d_deploy.training.settings import COMMAND, SETTINGS, STATE, Command, as_begun, check_resumable, settings_of
from e3d_deploy.training.telling import Telling

log = logging.getLogger(__name__)

MOVING_MNIST = "moving-mnist"
SEED_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
"""Environment variables by which Lightning hands the seed to its processes."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Hardware and output of a run. Nothing here changes what is learned, except a time limit that the schedule
    follows."""

    devices: int | None = None
    """Processes, each on a device of its own; None: one, or as many as a launcher started."""
    nodes: int = 1
    """Machines."""
    workers: int | None = None
    """Processes that load data, per device; None: none on a CPU, up to 8 for a GPU."""
    time_limit_s: float | None = None
    """Time after which everything is saved and training ends (seconds). With `TrainConfig.schedule_by` `time` earlier
    starts of a resumed run count, and the schedule ends then."""
    parts: Path | None = None
    """Folder for the weights as float16 in parts of at most 16 MiB, written again and again; see `parts.py`."""
    parts_every_s: float = 60.0
    """Time between two such sets of parts (seconds)."""
    tensorboard: bool = False
    """Log for TensorBoard too."""
    samples: Path | None = None
    """Folder for the pictures that the released code writes at each test."""
    sample_count: int = 10
    """Batches of a validation that get such pictures."""
    measure_decay: bool = True
    """Measure at the end how a stream's state ages, and keep it in the model file; see `training/decay.py`."""
    progress: bool = True
    """Show a bar on stderr, or where that is no terminal, a line now and then."""


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    run: Path,
    *,
    data: Sequence[tuple[str, float]] = ((MOVING_MNIST, 1.0),),
    valid: str | None = None,
    skip_bad: bool = False,
    initial: Path | None = None,
    digits: Path | None = None,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
    machine: Machine | None = None,
    callbacks: Sequence[Callback] = (),
    clock: Callable[[], float] = time.monotonic,
    progress: Notify = silent,
) -> Path:
    """Train into the folder `run`; return the path of the model, `run/model.safetensors`.

    The folder also gets `last.ckpt` (to resume from), `config.json` (settings that determine the results),
    `command.json` (`options` and the working folder), `result.json` (the comparison with copying the last frame, at
    the end), `previews/`, `logs/version_N/metrics.csv`, one for each start, and the weights that the model does not
    have: `model_plain.safetensors` where it is the moving average, else `model_ema.safetensors`.

    Args:
        data: sources and their shares of the samples: `moving-mnist`, or what `data.sources.open_source` reads.
        valid: source to validate on; None: Moving MNIST of other digits where it is a source, else what the
            first source holds out.
        skip_bad: leave out pictures and videos that cannot be read.
        initial: model whose weights to begin with, one of ours or one that can be imported; else they are
            drawn by the seed.
        digits: `.npz` of digits that Moving MNIST is made of for training, in the place of the package's 4,500.
        resume: go on from `run/last.ckpt`; else `run` must not hold a run yet. Its initial weights need not be given.
        options: options of a command line, JSON values, kept in `command.json` for one that resumes the run.
        clock: that of the time limit, monotonic (seconds).
        progress: called with a line on what takes long.

    Raises:
        ConfigError: `run` holds a run and `resume` is off, or the other way round, or it was begun with other options,
            or another process trains into it; processes that cannot share a batch; a schedule by time without a time
            limit; digits that are held out, or without Moving MNIST; options for reading files without a file; a folder
            that holds parts of another run.
        CheckpointError: what is to be resumed is damaged.
        TrainingError: the loss is no finite number any more.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; everything is saved and `run` can be resumed. After a second signal
            `run` holds the last saved state, if there is one. Before the first step Ctrl-C is a plain
            KeyboardInterrupt.
        ClipError, ShapeError: a source that cannot be learned from.
        BackendUnavailable: TensorBoard logs without TensorBoard.
    """
    machine = machine or Machine()
    if config.schedule_by == "time" and machine.time_limit_s is None:
        raise ConfigError("schedule_by: time without a time limit has no end; give --time-limit MINUTES")
    if not resume:  # a run that an older version began with such options goes on
        sources = [text for text, _ in data]
        check_read(sources if valid is None else [*sources, valid], layout=config.layout, skip_bad=skip_bad)
    last, path = _files(run, resume=resume)
    config = as_begun(run, config) if resume else config
    pace = Pace(config, limit_s=machine.time_limit_s, clock=clock)
    weights = None if initial is None else weights_of(initial, model_config)
    settings = settings_of(model_config, config, data, valid, initial, digits, machine.time_limit_s)
    command = Command.read(run) if resume else Command(folder=Path.cwd(), options=options or {})
    if resume and check_resumable(run, settings, same_weights=initial is None):
        progress(f"{run}: the run is finished, so nothing was trained; give more --steps to go on")
        return path
    if machine.parts is not None:
        _check_parts(machine.parts, _parts_name(run) if resume else None)
    found = [(command.located(text), share) for text, share in data]
    valid = None if valid is None else command.located(valid)
    sets = _data(model_config, config, found, valid, digits, skip_bad=skip_bad)
    with _seeded(config.seed), _room_to_compile(model_config, config), ExitStack() as held:
        model = E3DLSTM(model_config)
        if weights is not None:
            model.load_state_dict(weights)
        averaging = Averaging(config.ema_decay, warmup=config.ema_warmup, used=config.average)
        window = Window.of_rates(config.context_length, config.horizon, sets[0].rates)
        validated = Validated()
        keeper = Keeper(run, config, averaging, pace, card=Card(window=window, fit=config.fit))
        pictures = _pictures(run, sets[1][0], config, machine)
        ours = [*_callbacks(config, machine, averaging, keeper, progress), validated]
        with lightning_quiet(), _tf32_where_bf16(config):
            trainer = _trainer(run, config, machine, [*pictures, averaging, *callbacks, *ours])
            _check_cuda_graph(config, trainer)
            batches = _batches(config, trainer, sets[0], pace)
            # From here on all options are known to work.
            _make_folders(run, machine)
            if trainer.is_global_zero:
                held.enter_context(locked(run, partial(_refuse_second, run)))
                _files(run, resume=resume)  # another process may have begun and ended meanwhile
                _begin(run, machine, None if resume else (settings, command))
            if config.compile:
                progress("compiling the cells: the first step takes a minute or more")
            learner = Learner(model, config, batches.first_clip, pace)
            loaders = _loaders(*sets, batches, trainer, machine)
            finished = _fit(trainer, learner, keeper, loaders, last if resume else None)
        if finished and trainer.is_global_zero:
            _compare_with_copying(run, sets, config, trainer, validated, progress)
        if finished and machine.measure_decay and trainer.is_global_zero:
            clips = sets[1].source if isinstance(sets[1], FixedWindows) else MOVING_MNIST
            device = trainer.strategy.root_device
            record_decay_of_run(path, clips, config, steps=trainer.global_step, device=device, progress=progress)
    return path


def _files(run: Path, *, resume: bool) -> tuple[Path, Path]:
    """Return the paths of a run's state and model, if there is one to resume or room for a new one."""
    last, path = run / STATE, run / "model.safetensors"
    if resume and not last.exists():
        raise ConfigError(f"{run}: nothing to resume, {last.name} is not there; train without --resume")
    if not resume and (last.exists() or path.exists()):
        raise ConfigError(f"{run}: holds a run already; give --resume to go on with it, or another folder")
    return last, path


def _data(
    model: ModelConfig,
    config: TrainConfig,
    data: Sequence[tuple[str, float]],
    valid: str | None,
    digits: Path | None,
    *,
    skip_bad: bool,
) -> tuple[Extendable, Dataset[Tensor]]:
    """Open the clips to train with and those to validate on."""
    form = Form.of(model, Card(fit=config.fit), config.layout)
    options: dict[str, Any] = {"length": config.clip_length, "skip_bad": skip_bad}
    burn_in = config.burn_in_start is not None
    train_set = training_data(data, form, seed=config.seed, digits=digits, burn_in=burn_in, **options)
    most = config.validation_clips or None
    held_out = _held_out(data) if valid is None else valid
    remarks = train_set.remarks.get(held_out)
    return train_set, evaluation_data(held_out, form, split="valid", most=most, remarks=remarks, **options)


def _compare_with_copying(
    run: Path,
    sets: tuple[Extendable, Dataset[Tensor]],
    config: TrainConfig,
    trainer: Trainer,
    validated: Validated,
    progress: Notify,
) -> None:
    """Tell whether the model beats copying the last frame, and what was left out of the data; write both down."""
    source = sets[1].source if isinstance(sets[1], FixedWindows) else None
    skipped = tuple(dict.fromkeys([*sets[0].skipped, *(() if source is None else source.skipped)]))
    is_trained_on = source is not None and any(share_files(source.name, name) for name in sets[0].remarks)
    if validated.last is not None and validated.last[0] == trainer.global_step:
        count = len(sets[1])  # type: ignore[arg-type]
        errors = (count - count % trainer.world_size if count > trainer.world_size else count, *validated.last[1:])
    else:
        device = trainer.strategy.root_device
        errors = measure(run / "model.safetensors", sets[1], config, steps=trainer.global_step, device=device)
    found = Comparison(
        step=trainer.global_step,
        clips=errors[0],
        mse=errors[1],
        copying_mse=errors[2],
        held_out=source is None or source.held_out or not is_trained_on,
        in_doubt=source is not None and source.is_in_doubt and is_trained_on,
        skipped=skipped,
    )
    found.write(run)
    progress(found.verdict)
    if skipped:
        progress(f"left out of the data, as they cannot be read: {len(skipped)} files ({some(skipped)})")


def _callbacks(
    config: TrainConfig, machine: Machine, averaging: Averaging, keeper: Keeper, say: Notify
) -> list[Callback]:
    """Return the callbacks that come last, `keeper` after all that should be in what it saves."""
    ours: list[Callback] = [keeper]
    if machine.parts is not None:
        parts = Parts(
            machine.parts, config, averaging, every_s=machine.parts_every_s, pace=keeper.pace, card=keeper.card
        )
        ours.insert(0, parts)
    bar = machine.progress and is_animated(sys.stderr)
    if bar:
        ours.append(Bar(float("inf") if keeper.pace.by_time else config.steps * config.accumulate))
    # Before the keeper, which may end training within a step.
    ours.insert(0, Telling(config, keeper.pace, say if machine.progress and not bar else None))
    return ours


def _refuse_second(run: Path) -> None:
    raise ConfigError(f"{run}: another process trains into it; wait for its end, or give another folder")


def _make_folders(run: Path, machine: Machine) -> None:
    """Make the folders of a run, after a trial of the one that was named for its parts."""
    if machine.parts is not None:
        try:
            machine.parts.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=machine.parts):
                pass
        except OSError as error:
            raise ConfigError(f"{machine.parts}: takes no files ({error.strerror}); give another folder") from error
    run.mkdir(parents=True, exist_ok=True)


def _begin(run: Path, machine: Machine, new: tuple[dict[str, Any], Command] | None) -> None:
    """Remove what killed runs left in the folders of a run, and write settings and command of a new one."""
    _remove_leftovers(run, machine.parts)
    if new is not None:
        settings, command = new
        write_file(run / SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
        command.write(run)


def _remove_leftovers(run: Path, parts: Path | None) -> None:
    """Remove what killed runs left half-written of the files that a run writes; other programs' files stay."""
    for name in (STATE, SETTINGS, COMMAND, RESULT, "model.safetensors", "model_*.safetensors"):
        remove_left(run, name)
    remove_left(run / "previews", "step_*.png")
    if parts is not None:
        remove_left(parts, PATTERN)
        remove_left(parts, "metrics.csv")


def _loaders(
    train_set: Dataset[Tensor], valid_set: Dataset[Tensor], batches: StepBatches, trainer: Trainer, machine: Machine
) -> tuple[DataLoader[Tensor], DataLoader[Tensor]]:
    workers = _workers(machine)
    options: dict[str, Any] = {"pin_memory": torch.cuda.is_available(), "persistent_workers": workers > 0}
    few = min(2, workers)  # as they stay beside the others
    return (
        DataLoader(train_set, batch_sampler=batches, num_workers=workers, **options),
        DataLoader(_share(valid_set, trainer), batch_size=batches.share, num_workers=few, **options),
    )


def _fit(
    trainer: Trainer,
    learner: Learner,
    keeper: Keeper,
    loaders: tuple[DataLoader[Tensor], DataLoader[Tensor]],
    state: Path | None,
) -> bool:
    """Train from a saved state, or from the start, to the end or the time limit; return True at the end."""
    with signals(keeper, lambda text: log.warning("%s", text)):
        try:
            trainer.fit(learner, *loaders, ckpt_path=state, weights_only=True)
        except SystemExit as error:  # how Lightning ends training at a second signal
            raise Interrupted(keeper.signal or signal.SIGINT) from error
        except (Stopped, TrainingError) as end:
            if not trainer.is_global_zero:
                return False  # the first process tells, and a failure of another would end it before
            if isinstance(end, TrainingError):
                raise
            if keeper.stop_requested:
                raise Interrupted(keeper.signal or signal.SIGTERM) from end
            log.warning("time limit: stopped after step %d of %d; --resume goes on", end.step, keeper.config.steps)
            return False
    return True


def resume_or_next(
    model_config: ModelConfig,
    config: TrainConfig,
    run: Path,
    *,
    data: Sequence[tuple[str, float]],
    valid: str | None = None,
    initial: Path | None = None,
    digits: Path | None = None,
    machine: Machine | None = None,
    **_: Any,
) -> tuple[Path, bool]:
    """Find the folder in which a run of these options resumes or begins.

    It is the first of `run`, NAME-2, NAME-3 … that is free or holds an unfinished run of the same options.

    Returns:
        The folder, and whether to resume in it.

    Raises:
        CheckpointError: a run whose files are damaged.
    """
    settings = settings_of(
        model_config, config, data, valid, initial, digits, None if machine is None else machine.time_limit_s
    )
    for number in count(1):
        folder = run if number == 1 else run.with_name(f"{run.name}-{number}")
        if not (folder / STATE).exists() and not (folder / "model.safetensors").exists():
            return folder, False
        try:
            if not check_resumable(folder, {**settings, "train": as_begun(folder, config).to_dict()}):
                return folder, True
        except ConfigError:
            continue
    raise AssertionError("numbers do not end")


def weights_of(initial: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The weights of a model file, or of a checkpoint that can be imported, for a network of `config`.

    Raises:
        ConfigError: they are of another network; picture size and length of the history may differ.
        CheckpointError: no model.
    """
    if initial.suffix == ".safetensors" and not is_foreign(initial):
        model = checkpoint.load(initial)
    else:
        from e3d_deploy.importing import import_checkpoint

        model = import_checkpoint(
            initial,
            memory="paper" if config.semantics == "paper" else "released",
            image_size=config.image_size,
            patch_size=config.patch_size,
            channels=config.channels,
            stride=config.stride if config.semantics == "openstl" else None,
        ).model
    theirs = replace(model.config, history_length=config.history_length)
    if config.semantics != "openstl":  # whose norms have a weight for each place of the picture
        theirs = replace(theirs, image_size=config.image_size)
    if theirs != config:
        fields = [name for name, value in config.to_dict().items() if theirs.to_dict()[name] != value]
        raise ConfigError(
            f"{initial}: is another network ("
            + ", ".join(f"{name} {theirs.to_dict()[name]}" for name in fields)
            + "); give the options that it was made with"
        )
    return model.state_dict()


def _parts_name(run: Path) -> str | None:
    """Return the name in the parts of a run; None if its state was saved without parts."""
    state = torch.load(run / STATE, map_location="cpu", weights_only=True, mmap=True)
    name: str | None = state["callbacks"].get(Parts.__name__, {}).get("run")
    return name


def _check_parts(folder: Path, name: str | None) -> None:
    """Refuse a folder that holds the parts of another run."""
    for path in folder.glob(PATTERN):
        if name is None or read_card(path).run != name:
            raise ConfigError(f"{folder}: holds parts of another run; give an empty folder, or --resume that run")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all generators, and put them and Lightning's variables back; the GPU's only if the program has used it."""
    variables = {name: os.environ.get(name) for name in SEED_VARIABLES}
    python, numpy, processor = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        seed_everything(seed, verbose=False)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(processor)
        torch.cuda.set_rng_state_all(gpus)
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _room_to_compile(model: ModelConfig, config: TrainConfig) -> AbstractContextManager[object]:
    """Let PyTorch keep compiled forms of all layers.

    The first step meets each layer with and without gradients and low types: up to four variants a layer.
    """
    if not config.compile:
        return nullcontext()
    limit = torch._dynamo.config.recompile_limit
    patch: AbstractContextManager[object] = torch._dynamo.config.patch(
        recompile_limit=max(limit, 4 * len(model.hidden))
    )
    return patch


def _tf32_where_bf16(config: TrainConfig) -> AbstractContextManager[None]:
    """Let a GPU that computes in bf16 multiply what remains in float32 as TF32, which is more exact than bf16."""
    if torch.cuda.is_available() and _in_bf16(config):
        return arithmetic("tf32")
    return nullcontext()


def _in_bf16(config: TrainConfig) -> bool:
    available = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return config.precision == "bf16" or (config.precision == "auto" and available)


def _held_out(data: Sequence[tuple[str, float]]) -> str:
    sources = [source for source, _ in data]
    return MOVING_MNIST if MOVING_MNIST in sources else sources[0]


def _pictures(run: Path, clip: Tensor, config: TrainConfig, machine: Machine) -> list[Callback]:
    pictures: list[Callback] = []
    if clip.shape[1] in (1, 3) and is_importable("matplotlib"):
        pictures.append(Previews(run / "previews", clip, config))
    if machine.samples is not None:
        pictures.append(Samples(machine.samples, machine.sample_count, config.context_length))
    return pictures


def _trainer(run: Path, config: TrainConfig, machine: Machine, callbacks: list[Callback]) -> Trainer:
    # Under torchrun the launcher says how many processes there are.
    launched = int(os.environ["LOCAL_WORLD_SIZE"]) if TorchElasticEnvironment.detect() else 1
    devices = machine.devices or launched
    loggers: list[Logger] = [CSVLogger(run, name="logs", flush_logs_every_n_steps=config.log_every)]
    if machine.tensorboard:
        try:
            loggers.append(TensorBoardLogger(run, name="tensorboard"))
        except ModuleNotFoundError as error:
            raise BackendUnavailable(
                f"TensorBoard is not installed; {pip_install('tensorboard')}, or train without --tensorboard"
            ) from error
    return Trainer(
        accelerator="auto",
        devices=devices,
        num_nodes=machine.nodes,
        strategy="ddp" if devices * machine.nodes > 1 else "auto",
        precision="bf16-mixed" if _in_bf16(config) else "32-true",
        max_steps=config.steps,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.gradient_clip or None,
        val_check_interval=config.validate_every * config.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=loggers,
        callbacks=callbacks,
        plugins=[StateFile()],
        enable_checkpointing=False,
        enable_progress_bar=any(isinstance(one, Bar) for one in callbacks),
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=config.log_every,
    )


def _check_cuda_graph(config: TrainConfig, trainer: Trainer) -> None:
    kind = trainer.strategy.root_device.type
    if config.cuda_graph and (kind != "cuda" or trainer.world_size > 1):
        raise ConfigError(
            f"cuda_graph: got {trainer.world_size} x {kind}, expected one CUDA GPU; train without --cuda-graph"
        )


def _batches(config: TrainConfig, trainer: Trainer, clips: Extendable, pace: Pace) -> StepBatches:
    parts = config.accumulate * trainer.world_size
    if config.batch_size % parts:
        raise ConfigError(
            f"batch_size: {config.batch_size} clips cannot be shared evenly by {trainer.world_size} processes "
            f"in {config.accumulate} parts; choose a multiple of {parts}"
        )
    return StepBatches(
        config,
        lambda: trainer.global_step,
        spare=clips.spare,
        schedule_step=pace.schedule_step,
        rank=trainer.global_rank,
        processes=trainer.world_size,
    )


def _share(data: Dataset[Tensor], trainer: Trainer) -> Dataset[Tensor]:
    """A process's clips of a data set; of a few at the end that cannot be shared evenly, none."""
    size, processes = len(data), trainer.world_size  # type: ignore[arg-type]
    if processes == 1 or size < processes:
        return data
    return Subset(data, range(trainer.global_rank, size - size % processes, processes))


def _workers(machine: Machine) -> int:
    if machine.workers is not None:
        return machine.workers
    return min(8, (os.cpu_count() or 1) // 2) if torch.cuda.is_available() else 0
