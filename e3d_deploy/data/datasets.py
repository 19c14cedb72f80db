"""What a network learns from: endless samples, each fixed by its index alone."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from e3d_deploy.data.moving_mnist import load_digits, moving_mnist
from e3d_deploy.errors import ClipError


class MovingMNIST(Dataset[Tensor]):
    """Moving MNIST made on the fly; sample i is the same in every run with the same seed.

    Samples are frames, float32 [T, 1, H, W] in [0, 1].
    """

    def __init__(
        self,
        split: Literal["train", "valid", "test"],
        *,
        length: int,
        image_size: tuple[int, int] = (64, 64),
        count: int = 2,
        seed: int = 0,
    ) -> None:
        self.digits = load_digits(split)
        self.length, self.image_size, self.count, self.seed = length, image_size, count, seed

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self.seed, index))
        clip = moving_mnist(self.digits, rng, length=self.length, image_size=self.image_size, count=self.count)
        return _frames(clip)


class Windows(Dataset[Tensor]):
    """Windows cut anywhere out of longer clips.

    Args:
        clips: each uint8 [T, H, W, C].
        length: frames of a window.

    Raises:
        ClipError: no clip is as long as a window.
    """

    def __init__(self, clips: Sequence[NDArray[np.uint8]], *, length: int, seed: int = 0) -> None:
        self.clips = [clip for clip in clips if len(clip) >= length]
        if not self.clips:
            raise ClipError(f"no clip has {length} frames; give longer clips, or a shorter context or horizon")
        self.length, self.seed = length, seed
        self.shares = np.array([len(clip) - length + 1.0 for clip in self.clips])
        self.shares /= self.shares.sum()

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self.seed, index))
        clip = self.clips[rng.choice(len(self.clips), p=self.shares)]
        start = rng.integers(len(clip) - self.length + 1)
        return _frames(clip[start : start + self.length])


class Mixture(Dataset[Tensor]):
    """Several data sets as one: each sample comes from one of them, drawn by their shares."""

    def __init__(self, parts: Sequence[Dataset[Tensor]], shares: Sequence[float], seed: int = 0) -> None:
        self.parts, self.seed = parts, seed
        self.shares = np.array(shares) / sum(shares)

    def __getitem__(self, index: int) -> Tensor:
        # Not the numbers that the part will draw from: it would see only those that chose it.
        rng = np.random.default_rng((self.seed, index, 1))
        return self.parts[rng.choice(len(self.parts), p=self.shares)][index]


class EpochSampler(Sampler[int]):
    """Indices that go on from epoch to epoch, so that an epoch's data does not depend on earlier runs."""

    def __init__(self, size: int) -> None:
        self.size, self.epoch = size, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, and after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.size, (self.epoch + 1) * self.size))


def _frames(clip: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(clip).permute(0, 3, 1, 2).float().div(255)
