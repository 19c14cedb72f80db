"""Progress of a training run, and the schedules that follow it."""

import math
import time
from collections.abc import Callable

from e3d_deploy.config import TrainConfig

RISE = 0.3
"""Share of one cycle in which the learning rate rises."""


class Pace:
    """Tells how much time a run has used, and which share of it is done, from 0 to 1.

    The limit counts from the start of the run, as the time of a rented machine does, and everything counts: data,
    compilation, validations, saves. By time the share is that of the limit, but stands still in the first step of
    each start. That step compiles, which would otherwise use up the warm-up of the learning rate in one jump. From
    its end on the share goes evenly to 1 at the limit.

    Args:
        limit_s: time that the run may take (seconds). By time it includes earlier starts of a resumed run.
        clock: monotonic (seconds).
    """

    def __init__(
        self, config: TrainConfig, *, limit_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.by_time = config.schedule_by == "time"
        self.steps, self.limit_s, self.clock = config.steps, limit_s, clock
        self.started = clock()
        self.earlier_s = 0.0
        """Time of earlier starts (seconds)."""
        self.warm: tuple[float, float] | None = None
        """Time used and share at the end of this start's first step."""
        self.resumed_share = 0.0
        self.agreed_share = 0.0
        """Share at the start of the present step, the same in all processes; only kept by time."""

    @property
    def elapsed_s(self) -> float:
        """Time that the run has used, earlier starts included (seconds)."""
        return self.earlier_s + self.clock() - self.started

    @property
    def late(self) -> bool:
        """True once the time is up."""
        return self.limit_s is not None and self.elapsed_s >= self.limit_s

    def end_step(self) -> None:
        """Let the share begin to move, after the first step."""
        if self.warm is None:
            self.warm = (self.elapsed_s, self.resumed_share)

    def share(self, step: int) -> float:
        """Return the share of the run that is done after `step` optimizer steps, by whichever limit is nearer."""
        by_steps = min(1.0, step / self.steps)
        return max(by_steps, self._share_of_time()) if self.by_time else by_steps

    def schedule_step(self, step: int) -> int:
        """Return the step that the schedules are at: `step`, or by time the agreed share of all steps."""
        return int(self.agreed_share * self.steps) if self.by_time else step

    def _share_of_time(self) -> float:
        if self.warm is None or self.limit_s is None:
            return self.resumed_share
        since, share = self.warm
        left = self.limit_s - since
        return 1.0 if left <= 0 else min(1.0, share + (1 - share) * (self.elapsed_s - since) / left)

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run goes on with; nothing by steps, so that equal runs save equal states."""
        return {"elapsed_s": self.elapsed_s, "share": self._share_of_time()} if self.by_time else {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a saved state, at the share that its time has of the present limit if that is less.

        The limit may be longer than the one before: at the saved share of a finished run, 1, nothing would be learned.
        """
        self.earlier_s, self.resumed_share = state["elapsed_s"], state["share"]
        if self.limit_s is not None:
            self.resumed_share = min(self.resumed_share, self.earlier_s / self.limit_s)
        self.agreed_share = self.resumed_share


def cosine(share: float) -> float:
    """Factor of the learning rate: 1 at the start, 0 at the end."""
    return (1 + math.cos(math.pi * share)) / 2


def one_cycle(share: float) -> tuple[float, float]:
    """Factor of the learning rate and Adam's beta1 at a share of one cycle.

    Source: PyTorch, OneCycleLR with final_div_factor 1e4; held by test_one_cycle_by_share_is_that_of_pytorch.
    """
    if share < RISE:
        up = cosine(share / RISE)
        return 1 + (1 / 25 - 1) * up, 0.85 + (0.95 - 0.85) * up
    down = cosine((share - RISE) / (1 - RISE))
    lowest = 1 / 25 / 1e4
    return lowest + (1 - lowest) * down, 0.95 + (0.85 - 0.95) * down
