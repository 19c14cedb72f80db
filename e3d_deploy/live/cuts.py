"""Cuts: pictures that do not continue the one before."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

LEAST_CHANGE = 0.08
"""Mean absolute difference of two pictures in [0, 1] below which there is no cut."""
FACTOR = 4.0
"""Times the usual difference that a cut exceeds."""
USUAL, KNOWN = 30, 3
"""Differences whose median is the usual one, and those it needs at least."""


class CutDetector:
    """Tells cuts by one formula: d > max(LEAST_CHANGE, FACTOR · median of the last `USUAL` differences).

    d is the mean absolute difference of a picture and the one before, in [0, 1]. The first `KNOWN` pictures after a
    cut are not judged.
    """

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None
        self._changes: deque[float] = deque(maxlen=USUAL)

    def is_cut(self, frame: NDArray[np.float32]) -> bool:
        """Return True if a frame [C, H, W] begins another scene than the frames before."""
        before, self._before = self._before, frame
        if before is None:
            return False
        change = float(np.abs(frame - before).mean())
        if len(self._changes) >= KNOWN and change > max(LEAST_CHANGE, FACTOR * float(np.median(self._changes))):
            self._changes.clear()
            return True
        self._changes.append(change)
        return False

    def reset(self) -> None:
        """Forget the pictures before."""
        self._before = None
        self._changes.clear()
