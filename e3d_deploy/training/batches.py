"""Choice of the clips that a step learns from, and of the frames before them, by the step's number."""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
from torch.utils.data import Sampler

from e3d_deploy.config import TrainConfig
from e3d_deploy.data.datasets import Key


class StepBatches(Sampler[list[Key]]):
    """Clip numbers of one batch after the other, without end, from the step that training is at.

    So a run that was broken off goes on with the clips that were next, on as many processes as there are then.
    A clip with a burn-in is its number and the frames before it, the same for all clips of a step.

    Args:
        position: the optimizer steps done, asked for when the first batch is.
        spare: the most frames that there are before a clip, given its number.
        schedule_step: the step that the schedules are at, given the number of the step.
        rank, processes: which of how many processes this is.

    Raises:
        ConfigError: the processes cannot share a batch evenly.
    """

    def __init__(
        self,
        config: TrainConfig,
        position: Callable[[], int],
        *,
        spare: Callable[[int], int] = lambda _: 0,
        schedule_step: Callable[[int], int] = lambda step: step,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.config, self.position, self.spare, self.schedule_step = config, position, spare, schedule_step
        self.rank, self.processes = rank, processes
        self.share = config.batch_size // (config.accumulate * processes)
        """Clips of a batch."""

    def first_clip(self, batch_idx: int) -> int:
        """Number of a batch's first clip within its step's clips."""
        part = batch_idx % self.config.accumulate
        return (part * self.processes + self.rank) * self.share

    def __iter__(self) -> Iterator[list[Key]]:
        start = self.config.burn_in_start
        for step in count(self.position()):
            again = step // 2 if self.config.reverse_input else step  # two steps on the same clips
            clips = range(again * self.config.batch_size, (again + 1) * self.config.batch_size)
            burn_in = 0
            if start is not None and self.schedule_step(step) >= start:
                burn_in = draw_burn_in(self.config, again)
            if burn_in:  # of all processes and parts, which so agree
                burn_in = min(burn_in, *map(self.spare, clips))
            for part in range(self.config.accumulate):
                first = self.first_clip(part)
                numbers = clips[first : first + self.share]
                yield [(number, burn_in) for number in numbers] if burn_in else list(numbers)


def draw_burn_in(config: TrainConfig, number: int) -> int:
    """Draw the frames of the burn-in for the clips of a step, from the seed and their number alone.

    None in half of the steps, else 1 to `burn_in`, each as likely; a quarter of `burn_in` in the mean.
    """
    # Not the numbers that scheduled sampling draws from, nor those that a data set does.
    rng = np.random.default_rng((config.seed, number, 2))
    return int(rng.integers(1, config.burn_in + 1)) if rng.random() < 0.5 else 0
