"""Progress of a training run, and learning rates that follow it."""

import math
import time
from collections.abc import Callable

from e3d_deploy.config import TrainConfig

RISE = 0.3
"""Share of the cycle in which the learning rate rises."""


class Pace:
    """Time that a run has used, and share of the run that is done, from 0 to 1.

    The time counts from the start of the run, like the bill of a rented machine. It includes data, compilation,
    validations and saves.

    If the schedule follows time (`TrainConfig.schedule_by`), the share does not change during the first step after each
    launch, and then grows linearly to 1 at the limit. The first step compiles; if its duration counted, the schedule
    would skip most of the warm-up of the learning rate.

    Args:
        limit_s: maximum time of the run (seconds). If the schedule follows time, earlier launches of a resumed run
            count too.
        clock: monotonic clock (seconds).
    """

    def __init__(
        self, config: TrainConfig, *, limit_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.by_time = config.schedule_by == "time"
        self.steps, self.limit_s, self.clock = config.steps, limit_s, clock
        self.started = clock()
        self.earlier_s = 0.0
        """Time used by earlier launches (seconds)."""
        self.warm: tuple[float, float] | None = None
        """Time used and share at the end of the first step of this launch; None until this step ends."""
        self.resumed_share = 0.0
        """Share at the start of this launch."""
        self.agreed_share = 0.0
        """Share at the start of the current step, the same in all processes; 0 if the schedule follows steps."""

    @property
    def elapsed_s(self) -> float:
        """Time that the run has used, including earlier launches (seconds)."""
        return self.earlier_s + self.clock() - self.started

    @property
    def late(self) -> bool:
        """True once the time limit is reached."""
        return self.limit_s is not None and self.elapsed_s >= self.limit_s

    def end_step(self) -> None:
        """Record the end of a step; after the first step the share begins to grow."""
        if self.warm is None:
            self.warm = (self.elapsed_s, self.resumed_share)

    def share(self, step: int) -> float:
        """Return the share of the run that is done after `step` optimizer steps.

        If the schedule follows time, the result is the larger of two shares: of the steps and of the time.
        """
        by_steps = min(1.0, step / self.steps)
        return max(by_steps, self._share_of_time()) if self.by_time else by_steps

    def schedule_step(self, step: int) -> int:
        """Return the step for the schedules: `step`, or `agreed_share` of all steps if the schedules follow time."""
        return int(self.agreed_share * self.steps) if self.by_time else step

    def _share_of_time(self) -> float:
        if self.warm is None or self.limit_s is None:
            return self.resumed_share
        since, share = self.warm
        left = self.limit_s - since
        return 1.0 if left <= 0 else min(1.0, share + (1 - share) * (self.elapsed_s - since) / left)

    def state_dict(self) -> dict[str, float]:
        """Return the state to save; empty if the schedule follows steps, so that equal runs save equal states."""
        return {"elapsed_s": self.elapsed_s, "share": self._share_of_time()} if self.by_time else {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore a saved state.

        If the time limit was raised, the share is reduced to the time used divided by the new limit. Otherwise a
        finished run, whose saved share is 1, would learn nothing more.
        """
        self.earlier_s, self.resumed_share = state["elapsed_s"], state["share"]
        if self.limit_s is not None:
            self.resumed_share = min(self.resumed_share, self.earlier_s / self.limit_s)
        self.agreed_share = self.resumed_share


def cosine(share: float) -> float:
    """Return the factor of the learning rate in a cosine schedule: 1 at the start, 0 at the end."""
    return (1 + math.cos(math.pi * share)) / 2


def one_cycle(share: float) -> tuple[float, float]:
    """Return the factor of the learning rate and Adam's beta1 at a share of one cycle.

    Source: PyTorch, OneCycleLR with final_div_factor 1e4; checked by test_one_cycle_by_share_is_that_of_pytorch.
    """
    if share < RISE:
        up = cosine(share / RISE)
        return 1 + (1 / 25 - 1) * up, 0.85 + (0.95 - 0.85) * up
    down = cosine((share - RISE) / (1 - RISE))
    lowest = 1 / 25 / 1e4
    return lowest + (1 - lowest) * down, 0.95 + (0.85 - 0.95) * down
