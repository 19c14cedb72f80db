"""Progress of a run: plain lines if there is no progress bar, and a warning if the run will take more than a day."""

import logging
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from e3d_deploy.config import TrainConfig
from e3d_deploy.progress import Notify, duration
from e3d_deploy.training.pace import Pace

log = logging.getLogger(__name__)

EVERY_S = 30.0
"""Minimum time between two lines (seconds)."""
SETTLED_S = 5.0
"""Minimum time after the first step before the duration of the run is estimated (seconds)."""
DAY_S = 86_400.0
"""Remaining duration above which a warning is logged (seconds)."""


class ProgressLines(Callback):
    """Callback that reports progress: a line at the first step, at the last step, and every 30 seconds in between.

    Args:
        say: called with each line; None if a bar is shown or no progress is wanted.
        clock: monotonic clock (seconds).
    """

    def __init__(
        self, config: TrainConfig, pace: Pace, say: Notify | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config, self.pace, self.say, self.clock = config, pace, say, clock
        self.began = self.told = (0, 0.0)
        """Step and time at the start of this launch, and at the most recent line."""
        self.warm: tuple[int, float] | None = None
        """Step and time after the first step of this launch; None until this step ends.

        The first step may compile, so its duration is not used for estimates.
        """
        self.settled = False
        """True once the duration of the run was estimated, and a warning logged if it is long."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = self.told = (trainer.global_step, self.clock())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.config.accumulate or not trainer.is_global_zero:
            return
        step, now = trainer.global_step, self.clock()
        first, last = self.warm is None, step == self.config.steps
        if self.warm is None:
            self.warm = (step, now)
        elif not self.settled and now - self.warm[1] >= SETTLED_S:
            self.settled = True
            self._warn_of_days(step, now, on_cpu=pl_module.device.type == "cpu")
        if self.say is not None and (first or last or now - self.told[1] >= EVERY_S):
            line = self._line(step, float(trainer.callback_metrics["train_loss"]))
            # The first step may compile, so its speed does not show the speed of later steps.
            self.say(line if first and not last else f"{line}, {self._speed(step, now)}")
            self.told = (step, now)

    def step_s(self, step: int, now: float) -> float:
        """Return the mean duration of a step so far (seconds)."""
        since = self.began if self.warm is None or step == self.warm[0] else self.warm
        return (now - since[1]) / max(1, step - since[0])

    def _left_s(self, step: int, now: float) -> float:
        """Return the remaining time, limited by the steps and the time limit (seconds)."""
        left = (self.config.steps - step) * self.step_s(step, now)
        if self.pace.limit_s is None:
            return left
        return max(0.0, min(left, self.pace.limit_s - self.pace.elapsed_s))

    def _line(self, step: int, loss: float) -> str:
        of = f"step {step}" if self.pace.by_time else f"step {step} of {self.config.steps}"
        return f"{of}: loss {loss:.4g}"

    def _speed(self, step: int, now: float) -> str:
        done, since = step - self.told[0], now - self.told[1]
        rate = done * self.config.batch_size / since if since > 0 else 0.0
        return f"{rate:.3g} sequences/s, {duration(self._left_s(step, now))} left"

    def _warn_of_days(self, step: int, now: float, *, on_cpu: bool) -> None:
        left = self._left_s(step, now)
        if left > DAY_S:
            log.warning(
                "at %.3g s per step the remaining %d steps take %s; end the run at any time with Ctrl-C or "
                "--time-limit MINUTES, or begin a smaller one with --preset tiny or small%s",
                self.step_s(step, now),
                self.config.steps - step,
                duration(left),
                ", or train on a GPU" if on_cpu else "",
            )
