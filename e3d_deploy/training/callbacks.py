"""Callbacks of a training run: moving average, saved states, early stops, pictures and progress bar."""

import logging
import math
import os
import secrets
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from e3d_deploy import checkpoint
from e3d_deploy.card import Card
from e3d_deploy.config import TrainConfig
from e3d_deploy.errors import CheckpointError, TrainingError
from e3d_deploy.files import write_file
from e3d_deploy.lasting import LastingStream
from e3d_deploy.model import E3DLSTM
from e3d_deploy.parts import PATTERN, read_metadata, save_parts
from e3d_deploy.progress import Notify
from e3d_deploy.quiet import quiet
from e3d_deploy.training.pace import Pace

log = logging.getLogger(__name__)

EARLY = (1, 10, 50, 100, 250)
"""Optimizer steps after which an early preview is drawn, to show whether anything is learned."""


class Averaging(WeightAveraging):
    """Moving average of the weights that begins with the initial weights, like TensorFlow's.

    Args:
        decay: factor of the old average in each update of the average.
        warmup: begin with a smaller decay; see `TrainConfig.ema_warmup`.
        used: validate the average in place of the weights; if False, the average is only updated and saved.
    """

    def __init__(self, decay: float, *, warmup: bool, used: bool) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
            assert self._average_model is not None
            step = int(self._average_model.n_averaged)
            share = 1 - (min(decay, (1 + step) / (10 + step)) if warmup else decay)
            torch._foreach_lerp_(averaged, current, share)

        super().__init__(multi_avg_fn=torch.no_grad()(average))
        self.used = used

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            # The counter begins at 1, because the first update would copy the weights if it were 0. The counter is on
            # the CPU, because reading a value on the GPU waits for the GPU.
            self._average_model.n_averaged = torch.ones((), dtype=torch.long)

    @property
    def average(self) -> E3DLSTM:
        """The network with averaged weights."""
        assert self._average_model is not None
        model = self._average_model.module.model
        assert isinstance(model, E3DLSTM)
        return model

    def _swap_models(self, pl_module: LightningModule) -> None:
        if self.used:
            super()._swap_models(pl_module)

    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        if self.used:
            super()._copy_average_to_current(pl_module)


class Interrupted(KeyboardInterrupt):
    """Training was ended by a signal.

    After the first signal the current step is finished and everything is saved. A second signal ends training at once;
    the run can then be resumed only from the state of an earlier step, if such a state was saved.

    Args:
        number: the first signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


class Stopped(Exception):
    """Training ended early, by a signal or a time limit; everything is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Keeper(Callback):
    """Callback that saves the state and the model of a run, each file atomically, and ends the run.

    A run whose schedule follows time is finished when it reaches its time limit; training then ends normally, with a
    validation, as it does after the last step of a run whose schedule follows steps.

    Args:
        card: facts about the model, saved with it.

    Raises (from within training):
        TrainingError: the loss or a weight is not finite; earlier saved states remain.
        Stopped: a signal arrived, or a run whose schedule follows steps has reached its time limit.
        OSError: a file cannot be written, for example because the disk is full; earlier saved states remain.
    """

    def __init__(
        self, run: Path, config: TrainConfig, averaging: Averaging, pace: Pace, *, card: Card | None = None
    ) -> None:
        self.run, self.config, self.averaging, self.pace, self.card = run, config, averaging, pace, card
        self.stop_requested = False
        self.signal: signal.Signals | None = None
        """First signal that this process received; None if only another process has received one."""
        self.handlers: dict[signal.Signals, Callable[[int, Any], None]] = {}
        self.broken: Tensor | None = None
        """True once a loss was not finite; a tensor, because reading its value would wait for the GPU."""
        self.saved_step = 0
        """Step of the last saved state; 0 if there is none."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning has replaced our handler of SIGTERM by its own, which ends training without saving.
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.saved_step = trainer.global_step  # above 0 in a resumed run

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        broken = ~outputs["loss"].detach().isfinite()
        self.broken = broken if self.broken is None else self.broken | broken
        if (batch_idx + 1) % self.config.accumulate:
            return
        self.pace.end_step()
        step = trainer.global_step
        due = (self.config.save_every, self.config.validate_every)
        requested, late = self._stop_requested(trainer), self._late(trainer)
        finished = step == self.config.steps or (late and self.pace.by_time)
        stop = requested or (late and not finished)
        saving = stop or finished or any(step % every == 0 for every in due)
        if saving or step % self.config.log_every == 0:
            self._check(trainer, pl_module)
        if saving:
            self.save(trainer, pl_module)
        if stop and step < self.config.steps:
            raise Stopped(step)
        if finished and self.pace.by_time:
            trainer.should_stop = True  # after a validation

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._stop_requested(trainer):  # the state was saved before the validation
            raise Stopped(self.saved_step)

    def _stop_requested(self, trainer: Trainer) -> bool:
        requested = bool(trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False))
        if requested:  # if one process asks to stop, all processes stop
            self.stop_requested = True
        return requested

    def _late(self, trainer: Trainer) -> bool:
        return bool(trainer.strategy.reduce_boolean_decision(self.pace.late, all=False))

    def state_dict(self) -> dict[str, Any]:
        return self.pace.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pace.load_state_dict(state_dict)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = (*pl_module.parameters(), *self.averaging.average.parameters())
        finite = not bool(self.broken) and all(bool(weight.isfinite().all()) for weight in weights)
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            kept, begin = "nothing was saved yet", "with"
            if self.saved_step:
                kept = f"the state of step {self.saved_step} is kept"
                begin = "with --init and the saved model.safetensors, and with"
            raise TrainingError(
                f"{self.run}: the loss, a weight or an averaged weight is not finite at step "
                f"{trainer.global_step}; {kept}. Begin a new run {begin} a lower --learning-rate or a --gradient-clip"
            )

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt`, to resume from, and two model files.

        One of the model files contains the weights, and one their moving average; `TrainConfig.average` selects which
        of the two is `model.safetensors`.
        """
        trainer.save_checkpoint(self.run / "last.ckpt", weights_only=False)
        if trainer.is_global_zero:
            weights, average = pl_module.model, self.averaging.average
            assert isinstance(weights, E3DLSTM)
            model, other = (average, weights) if self.config.average else (weights, average)
            checkpoint.save(model, self.run / "model.safetensors", card=self.card)
            name = f"model_{'plain' if self.config.average else 'ema'}.safetensors"
            checkpoint.save(other, self.run / name, card=self.card)
        # A process that ended while the first one still writes would end the first one too.
        trainer.strategy.barrier()
        self.saved_step = trainer.global_step


class Parts(Callback):
    """Callback that writes the weights of the model as float16 parts, and a copy of `metrics.csv`.

    It writes at regular times and at the end. Two sets of parts are written alternately, so one set is complete at any
    time. The callback must run after the `averaging` callback, whose weights it writes. If a set cannot be written, a
    warning is logged and training continues; only an error in the last set ends the training.

    Args:
        every_s: time between two sets (seconds).
        card: facts about the model, written with it.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        averaging: Averaging,
        *,
        every_s: float,
        pace: Pace,
        card: Card | None = None,
    ) -> None:
        self.folder, self.config, self.averaging, self.card = folder, config, averaging, card
        self.every_s, self.clock = every_s, pace.clock
        self.run_name, self.sets = secrets.token_hex(8), 0
        self.written = self.clock()
        self.written_step = 0
        self.failing = False
        """True if the most recent set could not be written, so that the next failure logs no second warning."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % self.config.accumulate == 0
        if trainer.is_global_zero and stepped and self.clock() - self.written >= self.every_s:
            self._try_to_write(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The parts are written before the last validation, because the validation takes time, and because the average
        # replaces the weights during the validation.
        if trainer.is_global_zero and (trainer.should_stop or trainer.global_step == self.config.steps):
            self._try_to_write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.write(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Nothing is written during a validation, because the average then replaces the weights.
        if trainer.is_global_zero and isinstance(exception, Stopped) and not trainer.validating:
            self.write(trainer, pl_module)

    def _try_to_write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            self.write(trainer, pl_module)
            self.failing = False
        except (OSError, CheckpointError) as error:
            if not self.failing:
                log.warning(
                    "parts of step %d could not be written (%s); training continues", trainer.global_step, error
                )
            self.failing, self.written = True, self.clock()

    def write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the weights over the older set, and copy the metrics.

        Weights that are not finite are not written; `Keeper` will report them.
        """
        model = self.averaging.average if self.config.average else pl_module.model
        assert isinstance(model, E3DLSTM)
        if trainer.global_step > self.written_step and all(bool(one.isfinite().all()) for one in model.parameters()):
            name = f"model-{'ab'[self.sets % 2]}"
            save_parts(model, self.folder, name, run=self.run_name, step=trainer.global_step, model_card=self.card)
            if self.written_step == 0:
                self._delete_later(name, trainer.global_step)
            self.sets, self.written_step = self.sets + 1, trainer.global_step
        self._copy_metrics(trainer)
        self.written = self.clock()

    def _delete_later(self, name: str, step: int) -> None:
        """Delete the other set if its step is not before `step`.

        Such a set was written before the run was resumed from an earlier state.
        """
        for path in self.folder.glob(PATTERN):
            if not path.name.startswith(f"{name}.") and read_metadata(path).step >= step:
                path.unlink()

    def _copy_metrics(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
                metrics = Path(logger.log_dir) / "metrics.csv"
                if metrics.exists():
                    write_file(self.folder / "metrics.csv", metrics.read_bytes())

    def state_dict(self) -> dict[str, Any]:
        return {"run": self.run_name, "sets": self.sets}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.run_name, self.sets = state_dict["run"], state_dict["sets"]


class StateFile(TorchCheckpointIO):
    """Plugin that writes saved states atomically.

    Without it, Lightning first writes a state to the folder TMPDIR, which may be too small.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = BytesIO()  # in memory, because torch.save turns errors of a file into a RuntimeError
        torch.save(checkpoint, content)
        write_file(Path(path), content.getbuffer())


@contextmanager
def signals(keeper: Keeper, say: Notify) -> Iterator[None]:
    """Make Ctrl-C, SIGTERM and SIGHUP end training after the current step; a second signal ends it at once.

    The previous handlers are restored on exit. A SIGHUP that is ignored, as under nohup, stays ignored. Outside of the
    main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    process = os.getpid()

    def stop(number: int, _: Any) -> None:
        if os.getpid() != process:  # a forked data loader, which the main process ends
            return
        again, received = keeper.stop_requested, signal.Signals(number)
        keeper.stop_requested, keeper.signal = True, keeper.signal or received
        if again:
            raise Interrupted(keeper.signal)
        say(f"{received.name}: stopping after this step; repeat the signal to stop at once")

    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    keeper.handlers = dict.fromkeys(numbers, stop)
    before = {number: signal.signal(number, stop) for number in keeper.handlers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Previews(Callback):
    """Callback that draws a validation clip above its forecast, as `previews/step_000500.png`."""

    def __init__(self, folder: Path, clip: Tensor, config: TrainConfig) -> None:
        self.folder, self.clip, self.config = folder, clip, config

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step in EARLY and trainer.global_step != self.config.steps:
            self._draw(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    @torch.no_grad()
    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        from e3d_deploy import plots

        context_length = self.config.context_length
        context = self.clip[None, :context_length].to(pl_module.device)
        model: nn.Module = pl_module.model  # type: ignore[assignment]
        forecast = model(context, self.config.horizon)[0, -self.config.horizon :].float().cpu()
        shown = torch.cat([self.clip[:context_length], forecast])
        picture = plots.strips({"truth": self.clip.numpy(), "forecast": shown.numpy()})
        self.folder.mkdir(exist_ok=True)
        write_file(self.folder / f"step_{trainer.global_step:06}.png", picture)


class Samples(Callback):
    """Callback that writes the first clip of validation batches.

    The names of the pictures are those of google/e3d_lstm: `STEP/BATCH/gt01.png`.
    """

    def __init__(self, folder: Path, count: int, context_length: int) -> None:
        self.folder, self.count, self.context_length = folder, count, context_length

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Tensor, batch_idx: int, *_: Any
    ) -> None:
        from e3d_deploy.evaluation.samples import write_samples

        folder = self.folder / str(trainer.global_step) / str(batch_idx + 1)
        if not trainer.is_global_zero or batch_idx >= self.count:
            return
        if not folder.exists():
            write_samples(
                folder,
                batch[0].cpu().numpy(),
                outputs[0].float().cpu().numpy(),
                self.context_length,
            )
        elif batch_idx == 0:
            log.warning("%s: exists and is not overwritten, so its pictures are not from this run", folder.parent)


class Bar(RichProgressBar):
    """Progress bar that is given the number of batches of the run, because the training data have no end.

    It is updated at most once per second, because reading its values waits for the GPU.
    """

    def __init__(self, batches: float) -> None:
        # The current stderr is passed, because rich later replaces sys.stderr by a stream that writes to this bar.
        super().__init__(console_kwargs={"file": LastingStream(sys.stderr)})
        self.batches = batches
        self.updated = -math.inf

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        if time.monotonic() - self.updated >= 1 or batch_idx + 1 == self.batches:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self.updated = time.monotonic()

    @property
    def total_train_batches(self) -> float:
        return self.batches

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the loss and the error of the last validation; all logged values would not fit into 80 columns."""
        found = super().get_metrics(trainer, pl_module)
        shown = {"loss": "train_loss", "valid_mse": "valid_mse"}
        return {label: found[name] for label, name in shown.items() if name in found}

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"  # without the number of the epoch, because the only epoch has no end


def lightning_quiet() -> AbstractContextManager[None]:
    """Keep Lightning's banner, advertisement and hints about loader workers out of the log."""
    ignore = partial(warnings.filterwarnings, "ignore", module="lightning")
    return quiet(ignore, loggers=("lightning.fabric", "lightning.pytorch"))
