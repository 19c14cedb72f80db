"""Training of a network with Lightning. The run folder can be resumed."""

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
from e3d_deploy.parts import PATTERN, read_metadata
from e3d_deploy.paths import check_path, check_source
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
from e3d_deploy.training.progress_lines import ProgressLines
from e3d_deploy.training.settings import COMMAND, SETTINGS, STATE, Command, as_begun, check_resumable, settings_of

log = logging.getLogger(__name__)

MOVING_MNIST = "moving-mnist"
SEED_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
"""Environment variables by which Lightning passes the seed to its processes."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Hardware and output of a run.

    These settings do not affect what is learned, except for a time limit that the schedule follows.
    """

    devices: int | None = None
    """Number of processes per machine, each on its own device; None for 1, or for the number that the launcher set."""
    nodes: int = 1
    """Number of machines."""
    workers: int | None = None
    """Number of processes that load data, per device; None for 0 on a CPU and up to 8 for a GPU."""
    time_limit_s: float | None = None
    """Time after which everything is saved and training ends (seconds). If the schedule follows time
    (`TrainConfig.schedule_by`), the schedule ends at this limit, and earlier launches of a resumed run count too."""
    parts: Path | None = None
    """Folder to which the weights are written repeatedly, as float16 parts of at most 16 MiB; see `parts.py`."""
    parts_every_s: float = 60.0
    """Time between two sets of parts (seconds)."""
    tensorboard: bool = False
    """Also log for TensorBoard."""
    samples: Path | None = None
    """Folder for pictures of each validation, named like those of google/e3d_lstm; None for no pictures."""
    sample_count: int = 10
    """Maximum number of batches per validation whose pictures are written to `samples`."""
    measure_decay: bool = True
    """Measure the decay of the state at the end, and store it in the model file; see `training/decay.py`."""
    progress: bool = True
    """Show a progress bar on stderr, or occasional lines if stderr is not a terminal."""


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    run: str | Path,
    *,
    data: Sequence[tuple[str | Path, float]] = ((MOVING_MNIST, 1.0),),
    valid: str | Path | None = None,
    skip_bad: bool = False,
    initial: str | Path | None = None,
    digits: str | Path | None = None,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
    machine: Machine | None = None,
    callbacks: Sequence[Callback] = (),
    clock: Callable[[], float] = time.monotonic,
    progress: Notify = silent,
) -> Path:
    """Train a network in the folder `run`; return the path of the model, `run/model.safetensors`.

    The model contains the moving average of the weights if `TrainConfig.average` is set, otherwise the weights
    themselves. The folder also contains:

    - `model_plain.safetensors` (the weights themselves) or `model_ema.safetensors` (the average): the network that is
      not the model;
    - `last.ckpt`: the state to resume from;
    - `config.json`: the settings that determine the results;
    - `command.json`: `options` and the working folder;
    - `result.json`: the comparison with copying the last frame, written at the end;
    - `previews/`: pictures of a forecast;
    - `logs/version_N/metrics.csv`: logged values, one file per launch.

    Args:
        data: sources and their shares of the samples; a source is `moving-mnist`, or a name that
            `data.sources.open_source` accepts.
        valid: source to validate on; None for Moving MNIST with held-out digits if it is one of the sources,
            otherwise for the held-out clips of the first source.
        skip_bad: skip pictures and videos that cannot be read; if False, the first of them raises an error.
        initial: model file or importable checkpoint whose weights to begin with; None to draw the weights from the
            seed.
        digits: `.npz` of digits from which Moving MNIST is made for training; None for the 4,500 of the package.
        resume: continue from `run/last.ckpt`; `initial` may then be None. If False, `run` must not contain a run.
        options: options of the command line, as JSON values; stored in `command.json` and read when the run is resumed.
        clock: monotonic clock for the time limit (seconds).
        progress: called with lines about long operations and results.

    Raises:
        ConfigError: `resume` is False and `run` contains a run. `resume` is True and `run` has no saved state. `resume`
            is True and the run was begun with different options. Another process is training in `run`. The processes
            cannot share a batch evenly.
            The schedule follows time and there is no time limit. `digits` contains held-out digits, or Moving MNIST is
            not a source. Options for reading files are given, but no file is read. The folder for parts contains parts
            of another run.
        CheckpointError: the run to resume is damaged.
        TrainingError: the loss or a weight is not finite.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP arrived; everything is saved and `run` can be resumed. After a second
            signal `run` contains the last saved state, if there is one. Before the first step Ctrl-C raises a plain
            KeyboardInterrupt.
        ClipError, ShapeError: a source cannot be used for training or validation.
        BackendUnavailable: TensorBoard logs are requested and TensorBoard is not installed.
    """
    for name, given, kind in (("model_config", model_config, ModelConfig), ("config", config, TrainConfig)):
        if not isinstance(given, kind):
            raise ConfigError(f"{name}: got {given!r}, expected {kind.__name__}")
    data, valid = _sources(data), None if valid is None else check_source("valid", valid)
    machine, run = machine or Machine(), check_path("run", run)
    initial = None if initial is None else check_path("initial", initial)
    digits = None if digits is None else check_path("digits", digits)
    if config.schedule_by == "time" and machine.time_limit_s is None:
        raise ConfigError("schedule_by: got time, but there is no time limit; give --time-limit MINUTES")
    if not resume:  # older versions accepted such options, and their runs can still be resumed
        sources = [text for text, _ in data]
        check_read(sources if valid is None else [*sources, valid], layout=config.layout, skip_bad=skip_bad)
    last, path = _files(run, resume=resume)
    config = as_begun(run, config) if resume else config
    pace = Pace(config, limit_s=machine.time_limit_s, clock=clock)
    weights = None if initial is None else weights_of(initial, model_config)
    settings = settings_of(model_config, config, data, valid, initial, digits, machine.time_limit_s)
    command = Command.read(run) if resume else Command(folder=Path.cwd(), options=options or {})
    if resume and check_resumable(run, settings, same_weights=initial is None):
        progress(f"{run}: the run is finished, so nothing was trained; give more --steps to continue")
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
            # All options have been checked, so files may be written from here on.
            _make_folders(run, machine)
            if trainer.is_global_zero:
                held.enter_context(locked(run, partial(_refuse_second, run)))
                _files(run, resume=resume)  # another process may have finished a run here
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


def _sources(data: Sequence[tuple[str | Path, float]]) -> list[tuple[str, float]]:
    """Return the sources as texts, with their shares.

    Raises:
        ConfigError: `data` is not a list of such pairs, or is empty.
    """
    pairs = [] if isinstance(data, str | Path) else list(data)
    if not pairs or not all(
        isinstance(one, list | tuple) and len(one) == 2 and isinstance(one[1], int | float) for one in pairs
    ):
        raise ConfigError(f"data: got {data!r}, expected a list of sources and their shares, such as [('clips/', 1.0)]")
    return [(check_source("data", source), share) for source, share in pairs]


def _files(run: Path, *, resume: bool) -> tuple[Path, Path]:
    """Return the paths of the state and the model of a run.

    Raises:
        ConfigError: there is no state to resume from, or the folder of a new run contains a run.
    """
    last, path = run / STATE, run / "model.safetensors"
    if resume and not last.exists():
        raise ConfigError(f"{run}: nothing to resume, {last.name} does not exist; train without --resume")
    if not resume and (last.exists() or path.exists()):
        raise ConfigError(f"{run}: holds a run already; give --resume to continue it, or another folder")
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
    """Open the clips for training and for validation."""
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
    """Report whether the model beats copying the last frame, and which files were skipped; write `result.json`."""
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
        progress(f"skipped {len(skipped)} files that cannot be read ({some(skipped)})")


def _callbacks(
    config: TrainConfig, machine: Machine, averaging: Averaging, keeper: Keeper, say: Notify
) -> list[Callback]:
    """Return the callbacks that run last; `keeper` runs after the callbacks whose state it saves."""
    ours: list[Callback] = [keeper]
    if machine.parts is not None:
        parts = Parts(
            machine.parts, config, averaging, every_s=machine.parts_every_s, pace=keeper.pace, card=keeper.card
        )
        ours.insert(0, parts)
    bar = machine.progress and is_animated(sys.stderr)
    if bar:
        ours.append(Bar(float("inf") if keeper.pace.by_time else config.steps * config.accumulate))
    # Before the keeper, which may end training in its own callback.
    ours.insert(0, ProgressLines(config, keeper.pace, say if machine.progress and not bar else None))
    return ours


def _refuse_second(run: Path) -> None:
    raise ConfigError(f"{run}: another process is training in this folder; wait until it ends, or give another folder")


def _make_folders(run: Path, machine: Machine) -> None:
    """Create the folders of a run, and check that files can be written to the folder for parts.

    Raises:
        ConfigError: the folder for parts cannot be written to.
    """
    if machine.parts is not None:
        try:
            machine.parts.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=machine.parts):
                pass
        except OSError as error:
            raise ConfigError(
                f"{machine.parts}: cannot be written to ({error.strerror}); give another folder"
            ) from error
    run.mkdir(parents=True, exist_ok=True)


def _begin(run: Path, machine: Machine, new: tuple[dict[str, Any], Command] | None) -> None:
    """Remove leftovers of killed runs from the folders, and write the settings and the command of a new run."""
    _remove_leftovers(run, machine.parts)
    if new is not None:
        settings, command = new
        write_file(run / SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
        command.write(run)


def _remove_leftovers(run: Path, parts: Path | None) -> None:
    """Remove incomplete files that killed runs left; files of other programs are not removed."""
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
    few = min(2, workers)  # few, because they run in addition to the loaders of the training data
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
    """Train from a saved state or from the start.

    Returns:
        True if the run is finished; False if the time limit stopped it.

    Raises:
        Interrupted: a signal ended the training.
        TrainingError: the loss or a weight is not finite.
    """
    with signals(keeper, lambda text: log.warning("%s", text)):
        try:
            trainer.fit(learner, *loaders, ckpt_path=state, weights_only=True)
        except SystemExit as error:  # Lightning turns a second signal into SystemExit
            raise Interrupted(keeper.signal or signal.SIGINT) from error
        except (Stopped, TrainingError) as end:
            if not trainer.is_global_zero:
                return False  # only the first process reports; an error in this one could end the first one too early
            if isinstance(end, TrainingError):
                raise
            if keeper.stop_requested:
                raise Interrupted(keeper.signal or signal.SIGTERM) from end
            log.warning(
                "time limit: stopped after step %d of %d; continue with --resume", end.step, keeper.config.steps
            )
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
    """Return the folder in which a run with these options is resumed or begun.

    The folder is the first of `run`, NAME-2, NAME-3 … that contains no run, or an unfinished run with the same options.

    Returns:
        The folder, and True if it contains a run to resume.

    Raises:
        CheckpointError: the files of a run are damaged.
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
    """Return the weights of a model file or an importable checkpoint, for a network of `config`.

    Raises:
        ConfigError: the weights belong to a network with a different configuration. The length of the history may
            differ. The size of the frames may differ too, except with `openstl` semantics.
        CheckpointError: `initial` is not a model.
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
    if config.semantics != "openstl":  # norms of openstl have a weight per position of the grid
        theirs = replace(theirs, image_size=config.image_size)
    if theirs != config:
        fields = [name for name, value in config.to_dict().items() if theirs.to_dict()[name] != value]
        raise ConfigError(
            f"{initial}: contains a different network ("
            + ", ".join(f"{name} {theirs.to_dict()[name]}" for name in fields)
            + "); give the options that it was made with"
        )
    return model.state_dict()


def _parts_name(run: Path) -> str | None:
    """Return the identifier of a run that its parts contain; None if its state was saved without parts."""
    state = torch.load(run / STATE, map_location="cpu", weights_only=True, mmap=True)
    name: str | None = state["callbacks"].get(Parts.__name__, {}).get("run")
    return name


def _check_parts(folder: Path, name: str | None) -> None:
    """Check that a folder contains no parts of another run.

    Raises:
        ConfigError: the folder contains parts of another run.
    """
    for path in folder.glob(PATTERN):
        if name is None or read_metadata(path).run != name:
            raise ConfigError(f"{folder}: holds parts of another run; give an empty folder, or --resume that run")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all random generators; on exit restore them and the environment variables of Lightning.

    The generators of a GPU are restored only if the program has used the GPU before.
    """
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
    """Raise PyTorch's limit on compiled variants, so that it keeps the variants of all layers.

    The first step runs each layer with and without gradients and low types: up to four variants per layer.
    """
    if not config.compile:
        return nullcontext()
    limit = torch._dynamo.config.recompile_limit
    patch: AbstractContextManager[object] = torch._dynamo.config.patch(
        recompile_limit=max(limit, 4 * len(model.hidden))
    )
    return patch


def _tf32_where_bf16(config: TrainConfig) -> AbstractContextManager[None]:
    """Use TF32 for the remaining float32 products on a GPU that computes in bf16; TF32 is more exact than bf16."""
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
    # Under torchrun the launcher sets the number of processes.
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
            f"in {config.accumulate} accumulated batches; choose a multiple of {parts}"
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
    """Return the clips of this process; the last few clips are skipped if they cannot be shared evenly."""
    size, processes = len(data), trainer.world_size  # type: ignore[arg-type]
    if processes == 1 or size < processes:
        return data
    return Subset(data, range(trainer.global_rank, size - size % processes, processes))


def _workers(machine: Machine) -> int:
    if machine.workers is not None:
        return machine.workers
    return min(8, (os.cpu_count() or 1) // 2) if torch.cuda.is_available() else 0
