"""Choice of the clips of an optimizer step and of their burn-in; both depend only on the number of the step."""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
from torch.utils.data import Sampler

from e3d_deploy.config import TrainConfig
from e3d_deploy.data.datasets import Key


class StepBatches(Sampler[list[Key]]):
    """Sampler that yields the clip numbers of each batch, without end, beginning at the current optimizer step.

    An interrupted run therefore resumes with the next clips, on any number of processes. A clip with a burn-in is
    yielded as a pair: the number of the clip, and its number of burn-in frames. All clips of a step have the same
    number of burn-in frames.

    Args:
        position: returns the number of optimizer steps done; called when the first batch is requested.
        spare: returns the number of frames available before a clip, given the number of the clip.
        schedule_step: returns the step at which the schedules are evaluated, given the number of the step.
        rank: number of this process, from 0.
        processes: number of processes.
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
        """Number of clips in a batch of one process."""

    def first_clip(self, batch_idx: int) -> int:
        """Return the index of the first clip of a batch among the clips of its step."""
        part = batch_idx % self.config.accumulate
        return (part * self.processes + self.rank) * self.share

    def __iter__(self) -> Iterator[list[Key]]:
        start = self.config.burn_in_start
        for step in count(self.position()):
            again = step // 2 if self.config.reverse_input else step  # two steps learn from the same clips
            clips = range(again * self.config.batch_size, (again + 1) * self.config.batch_size)
            burn_in = 0
            if start is not None and self.schedule_step(step) >= start:
                burn_in = draw_burn_in(self.config, again)
            if burn_in:  # the minimum over the whole batch, so that all processes and accumulated batches agree
                burn_in = min(burn_in, *map(self.spare, clips))
            for part in range(self.config.accumulate):
                first = self.first_clip(part)
                numbers = clips[first : first + self.share]
                yield [(number, burn_in) for number in numbers] if burn_in else list(numbers)


def draw_burn_in(config: TrainConfig, number: int) -> int:
    """Draw the number of burn-in frames of a step; it depends only on `config` and `number`.

    The result is 0 in half of the steps, otherwise 1 to `burn_in` with equal probability; its mean is about a quarter
    of `burn_in`.

    Args:
        number: number of the step; two steps that learn from the same clips share one number.
    """
    # The 2 separates these random numbers from those of scheduled sampling and of the data sets.
    rng = np.random.default_rng((config.seed, number, 2))
    return int(rng.integers(1, config.burn_in + 1)) if rng.random() < 0.5 else 0
