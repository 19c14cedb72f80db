"""Choice of the clips that a step learns from, a function of the step's number alone."""

from collections.abc import Callable, Iterator
from itertools import count

from torch.utils.data import Sampler

from e3d_deploy.config import TrainConfig


class StepBatches(Sampler[list[int]]):
    """Clip numbers of one batch after the other, without end, from the step that training is at.

    So a run that was broken off goes on with the clips that were next, on as many processes as there are then.

    Args:
        position: the optimizer steps done, asked for when the first batch is.
        rank, processes: which of how many processes this is.

    Raises:
        ConfigError: the processes cannot share a batch evenly.
    """

    def __init__(self, config: TrainConfig, position: Callable[[], int], *, rank: int = 0, processes: int = 1) -> None:
        self.config, self.position = config, position
        self.rank, self.processes = rank, processes
        self.share = config.batch_size // (config.accumulate * processes)
        """Clips of a batch."""

    def first_clip(self, batch_idx: int) -> int:
        """Number of a batch's first clip within its step's clips."""
        part = batch_idx % self.config.accumulate
        return (part * self.processes + self.rank) * self.share

    def __iter__(self) -> Iterator[list[int]]:
        for step in count(self.position()):
            clips = step // 2 if self.config.reverse_input else step  # two steps on the same clips
            for part in range(self.config.accumulate):
                first = clips * self.config.batch_size + self.first_clip(part)
                yield list(range(first, first + self.share))
