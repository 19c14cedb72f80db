"""Work around the steps: the moving average, saved states, stops, pictures."""

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
from e3d_deploy.parts import PATTERN, read_card, save_parts
from e3d_deploy.progress import Notify
from e3d_deploy.quiet import quiet
from e3d_deploy.training.pace import Pace

log = logging.getLogger(__name__)

EARLY = (1, 10, 50, 100, 250)
"""Steps after which a picture shows whether anything is learned."""


class Averaging(WeightAveraging):
    """A moving average of the weights that begins with the initial ones, as TensorFlow's does.

    Args:
        warmup: begin with a smaller decay, as `TrainConfig.ema_warmup` says.
        used: let it stand in for the weights while they are validated; else it is only kept.
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
            # 1, or the first update would copy the weights; on the CPU, or reading it would wait for the GPU.
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
    """A signal ended training: the first one after the step at hand, with everything saved, the second one at once.

    After a second signal the last saved state is that of an earlier step, or there is none yet.

    Args:
        number: the signal that came first.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


class Stopped(Exception):
    """Training ended before its time, on request; everything is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Keeper(Callback):
    """Saves a run's state and model, whole or not at all, and stops it where it should stop.

    A run whose schedule follows time ends at its limit like one whose steps are done: with a validation, and normally.

    Args:
        card: facts about the model, saved with it.

    Raises (from within training):
        TrainingError: the loss or a weight is no finite number; what was saved before stays.
        Stopped: on a request, or when the time of a run by steps is up.
        OSError: the disk is full; what was saved before stays.
    """

    def __init__(
        self, run: Path, config: TrainConfig, averaging: Averaging, pace: Pace, *, card: Card | None = None
    ) -> None:
        self.run, self.config, self.averaging, self.pace, self.card = run, config, averaging, pace, card
        self.stop_requested = False
        self.signal: signal.Signals | None = None
        """Signal that this process got; None before, and where another process asks to stop."""
        self.handlers: dict[signal.Signals, Callable[[int, Any], None]] = {}
        self.broken: Tensor | None = None
        self.saved_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # By now Lightning has put its own SIGTERM in place of ours, and it ends training without saving.
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.saved_step = trainer.global_step  # of a resumed run

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
        if requested:  # of one process, and all stop
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
                begin = "with --init and its model.safetensors, and"
            raise TrainingError(
                f"{self.run}: the loss, a weight or an averaged weight is no finite number any more at step "
                f"{trainer.global_step}; {kept}. Begin a new run, {begin} a lower --learning-rate or a --gradient-clip"
            )

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt`, to resume from, and the models."""
        trainer.save_checkpoint(self.run / "last.ckpt", weights_only=False)
        if trainer.is_global_zero:
            weights, average = pl_module.model, self.averaging.average
            assert isinstance(weights, E3DLSTM)
            model, other = (average, weights) if self.config.average else (weights, average)
            checkpoint.save(model, self.run / "model.safetensors", card=self.card)
            name = f"model_{'plain' if self.config.average else 'ema'}.safetensors"
            checkpoint.save(other, self.run / name, card=self.card)
        trainer.strategy.barrier()  # a process that ends before the first one has written all would end it too
        self.saved_step = trainer.global_step


class Parts(Callback):
    """Writes the weights of the model as float16 every few minutes and at the end, in parts, with `metrics.csv`.

    Two sets in turn, so that one is whole at any time. Comes after the averaging, whose weights it writes. A set that
    cannot be written is told and does not end training, except for the last one.

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
        """The last set could not be written, which was told."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % self.config.accumulate == 0
        if trainer.is_global_zero and stepped and self.clock() - self.written >= self.every_s:
            self._try_to_write(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before the last validation, which takes time and in which the average has the place of the weights.
        if trainer.is_global_zero and (trainer.should_stop or trainer.global_step == self.config.steps):
            self._try_to_write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.write(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # In a validation the average has the place of the weights.
        if trainer.is_global_zero and isinstance(exception, Stopped) and not trainer.validating:
            self.write(trainer, pl_module)

    def _try_to_write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            self.write(trainer, pl_module)
            self.failing = False
        except (OSError, CheckpointError) as error:
            if not self.failing:
                log.warning("parts of step %d were not written (%s); training goes on", trainer.global_step, error)
            self.failing, self.written = True, self.clock()

    def write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the set that is not the last one, unless a weight is no finite number, which `Keeper` will tell."""
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
        """Delete the other set if it is of a later step, from before this run was resumed at an earlier one."""
        for path in self.folder.glob(PATTERN):
            if not path.name.startswith(f"{name}.") and read_card(path).step >= step:
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
    """Writes a state whole or not at all, and not by way of TMPDIR as Lightning does, which may be small."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = BytesIO()  # a file that cannot be written to would be a RuntimeError of torch.save
        torch.save(checkpoint, content)
        write_file(Path(path), content.getbuffer())


@contextmanager
def signals(keeper: Keeper, say: Notify) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end training after the step; the second one ends it at once.

    A SIGHUP that is ignored, as under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    process = os.getpid()

    def stop(number: int, _: Any) -> None:
        if os.getpid() != process:  # one that loads data, forked from it, and ended by it
            return
        again, received = keeper.stop_requested, signal.Signals(number)
        keeper.stop_requested, keeper.signal = True, keeper.signal or received
        if again:
            raise Interrupted(keeper.signal)
        say(f"{received.name}: stopping after this step; once more to stop at once")

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
    """Pictures of a validation clip above its forecast, `previews/step_000500.png`."""

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
    """The pictures that the released code writes at each test, of each batch's first clip: `STEP/BATCH/gt01.png`."""

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
            log.warning("%s: is there already and kept, so its pictures are not of this run", folder.parent)


class Bar(RichProgressBar):
    """A bar that knows how long training is, which its endless data does not tell.

    Updated once a second, as reading its values waits for the GPU.
    """

    def __init__(self, batches: float) -> None:
        # Not looked up at each write: rich puts a stream that writes to the bar's console in the place of stderr.
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
        """Return the loss and the error of the last validation; all that is logged does not fit 80 columns."""
        found = super().get_metrics(trainer, pl_module)
        shown = {"loss": "train_loss", "valid_mse": "valid_mse"}
        return {label: found[name] for label, name in shown.items() if name in found}

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"  # there is one epoch, without end


def lightning_quiet() -> AbstractContextManager[None]:
    """Keep Lightning's banner, advertisement and hints about loader workers out of the log."""
    ignore = partial(warnings.filterwarnings, "ignore", module="lightning")
    return quiet(ignore, loggers=("lightning.fabric", "lightning.pytorch"))
