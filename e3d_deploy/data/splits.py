"""Divide clips into splits, by clip or by time. Needs no PyTorch."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from e3d_deploy.data.storage import Clip, Part
from e3d_deploy.errors import ConfigError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SEED = 0
"""Seed of the only shuffle; a constant, so that every run holds out the same clips."""


def check_split(split: Split) -> None:
    """Check the name of a split.

    Raises:
        ConfigError: no split has this name.
    """
    if split not in SPLITS:
        raise ConfigError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")


def members_of(split: Split, count: int) -> list[int]:
    """Return the indices of a split of three or more files or clips.

    `valid` and `test` get a tenth each, but at least one. The result depends only on the count: neither the seed of
    a run nor the length of clips moves anything between the splits.
    """
    order = np.random.default_rng(SEED).permutation(count)
    held_out = max(1, round(count / 10))
    parts = {"test": order[:held_out], "valid": order[held_out : 2 * held_out], "train": order[2 * held_out :]}
    return sorted(parts[split].tolist())


def by_time(split: Split, clips: Sequence[Clip], *, length: int) -> list[Clip] | None:
    """Return the first 80 % of each clip for train, the next 10 % for valid or the rest for test.

    Return None if one of these parts of a clip is shorter than `length` frames.
    """
    parts: list[Clip] = []
    for clip in clips:
        T = len(clip)
        ends = [0, T * 8 // 10, T * 9 // 10, T]
        if min(np.diff(ends)) < length:
            return None
        number = SPLITS.index(split)
        parts.append(Part(clip, ends[number], ends[number + 1] - ends[number]))
    return parts
