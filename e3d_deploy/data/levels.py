"""Check that the values of clips use enough of the range. Needs no PyTorch."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.remarks import Remarks
from e3d_deploy.data.storage import Clip

SAMPLED = 16
"""Number of frames whose range is examined."""
MIN_SPAN = 0.1
"""Smallest share of the range that a source should use."""


class Range:
    """Smallest and largest value in the frames of a source, in [0, 1]."""

    def __init__(self) -> None:
        self.least, self.most, self.frames = 1.0, 0.0, 0

    def add(self, frames: NDArray[Any]) -> None:
        """Widen the range to the values of a frame, uint8 or float in [0, 1]."""
        white = 255 if frames.dtype == np.uint8 else 1
        self.frames += 1
        self.least = min(self.least, float(frames.min()) / white)
        self.most = max(self.most, float(frames.max()) / white)

    @property
    def is_wide(self) -> bool:
        """True if the values use at least a tenth of the range."""
        return self.most - self.least >= MIN_SPAN

    def say(self, name: str, remarks: Remarks) -> None:
        """Log if a source uses less than a tenth of the range."""
        if self.frames and not self.is_wide:
            remarks.say("range", "%s: values from %.3g to %.3g of 1 in %d frames, less than a tenth of the range; "
                        "unless the scene is this flat, scale them so that white is 255 in uint8 or 1 in float",
                        name, self.least, self.most, self.frames)  # fmt: skip


def say_range(name: str, clips: Sequence[Clip], remarks: Remarks) -> None:
    """Log if clips use less than a tenth of the range, judging by some frames that are spread over all clips."""
    found = Range()
    numbers = [(number, number * len(clips) // SAMPLED) for number in range(SAMPLED)]
    for clip, place in dict.fromkeys((one, (len(clips[one]) - 1) * number // (SAMPLED - 1)) for number, one in numbers):
        found.add(clips[clip][place : place + 1])
    found.say(name, remarks)


def watch_range(name: str, pictures: Iterator[NDArray[Any]], remarks: Remarks) -> Iterator[NDArray[Any]]:
    """Yield pictures; after the last one, or when iteration stops, log if they use less than a tenth of the range."""
    found = Range()
    try:
        for picture in pictures:
            if not found.is_wide:
                found.add(picture)
            yield picture
    finally:
        found.say(name, remarks)
