"""Division of clips into those for training, validation and testing. Needs no PyTorch."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from e3d_deploy.data.storage import Clip, Part

Split = Literal["train", "valid", "test"]
SEED = 0
"""Seed of the only shuffle; constant, so that every run holds out the same clips."""


def members_of(split: Split, count: int) -> list[int]:
    """Return the indices of a split among three or more files or clips: a tenth each, at least one, for valid and test.

    Fixed by the count alone: neither a run's seed nor its clips' length moves anything between the splits.
    """
    order = np.random.default_rng(SEED).permutation(count)
    held_out = max(1, round(count / 10))
    parts = {"test": order[:held_out], "valid": order[held_out : 2 * held_out], "train": order[2 * held_out :]}
    return sorted(parts[split].tolist())


def by_time(split: Split, clips: Sequence[Clip], *, length: int) -> list[Clip] | None:
    """The first 80 % of each clip to train, the next 10 % valid, the rest test; None where a part is below `length`."""
    parts: list[Clip] = []
    for clip in clips:
        T = len(clip)
        ends = [0, T * 8 // 10, T * 9 // 10, T]
        if min(np.diff(ends)) < length:
            return None
        number = ("train", "valid", "test").index(split)
        parts.append(Part(clip, ends[number], ends[number + 1] - ends[number]))
    return parts
