"""Remarks about a source, each logged once. Needs no PyTorch."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

LEAST_SPAN = 25.5
"""Least span of values in a source (gray levels), a tenth of the range, that is taken without a remark."""


class Remarks:
    """Logs what is done to the frames of a source, each kind of remark once.

    Args:
        silent: log nothing.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self._said: set[str] = set()

    def say(self, kind: str, text: str, *values: object) -> None:
        """Log a remark unless one of its kind has been logged."""
        if not self.silent and kind not in self._said:
            self._said.add(kind)
            log.warning(text, *values)


class Span:
    """Keeps the span of the values in a source until it is wide enough."""

    def __init__(self) -> None:
        self.low, self.high = 255, 0

    @property
    def is_wide(self) -> bool:
        """True if the values use a tenth of the range."""
        return self.high - self.low >= LEAST_SPAN

    def add(self, picture: NDArray[np.uint8]) -> None:
        """Widen the span by the values of a picture."""
        self.low, self.high = min(self.low, int(picture.min())), max(self.high, int(picture.max()))

    def say(self, name: str, remarks: Remarks) -> None:
        """Log that the values use less than a tenth of the range."""
        if self.low <= self.high and not self.is_wide:
            remarks.say("span", "%s: its values span %d to %d of 0 to 255, less than a tenth of the range; scale "
                        "masks of 0 and 1, and 10 or 12 bits in 16, to 255", name, self.low, self.high)  # fmt: skip


def watch_span(name: str, pictures: Iterator[NDArray[Any]], remarks: Remarks) -> Iterator[NDArray[Any]]:
    """Yield pictures, and log at the end, or where the reader stops, if they use less than a tenth of the range."""
    span = Span()
    try:
        for picture in pictures:
            if not span.is_wide:
                span.add(picture)
            yield picture
    except GeneratorExit:
        span.say(name, remarks)
        raise
    span.say(name, remarks)
