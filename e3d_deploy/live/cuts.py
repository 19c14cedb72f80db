"""Detect cuts: pictures that begin a new scene."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

MIN_CHANGE = 0.08
"""Lower limit of the mean absolute difference, in [0, 1], between the frames before and after a cut."""
FACTOR = 4.0
"""Lower limit of the difference at a cut, as a multiple of the usual difference."""
USUAL, KNOWN = 30, 3
"""Maximum and minimum number of recent differences in the median, which is the usual difference."""


class CutDetector:
    """Detects cuts by one rule: d > max(MIN_CHANGE, FACTOR · median of the last `USUAL` differences).

    d is the mean absolute difference between a frame and the previous frame, in [0, 1]. After a start or a cut, the
    first `KNOWN` differences only fill the median and are never cuts.
    """

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None
        self._changes: deque[float] = deque(maxlen=USUAL)

    def is_cut(self, frame: NDArray[np.float32]) -> bool:
        """Return True if a frame begins a new scene, and remember the frame.

        Args:
            frame: next frame of the stream, [C, H, W] in [0, 1].
        """
        before, self._before = self._before, frame
        if before is None:
            return False
        change = float(np.abs(frame - before).mean())
        if len(self._changes) >= KNOWN and change > max(MIN_CHANGE, FACTOR * float(np.median(self._changes))):
            self._changes.clear()
            return True
        self._changes.append(change)
        return False

    def reset(self) -> None:
        """Forget all previous frames."""
        self._before = None
        self._changes.clear()
