"""Remarks about a source, each logged once. Needs no PyTorch."""

import logging
import os

Look = tuple[tuple[int, int], str]
"""Height and width (pixels) of a picture, and its format."""
log = logging.getLogger(__name__)


class Remarks:
    """Logs what is done to the frames of a source, each kind of remark once.

    Copies in worker processes, each of which would say it again, log nothing.

    Args:
        silent: keep remarks, and log nothing.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self._process = os.getpid()
        self.texts: list[str] = []
        self._said: set[str] = set()
        self._looks: dict[str, dict[Look, None]] = {}

    def say(self, kind: str, text: str, *values: object) -> None:
        """Log a remark unless one of its kind has been logged."""
        if kind in self._said:
            return
        self._said.add(kind)
        self.texts.append(text % values)
        if not self.silent and os.getpid() == self._process:
            log.warning(text, *values)

    def is_new(self, clip: str, look: Look) -> bool:
        """Return True if no picture of a clip has had this look before."""
        looks = self._looks.setdefault(clip, {})
        if look in looks:
            return False
        looks[look] = None
        return True

    def first(self, clip: str) -> Look:
        """Return the look of the first picture of a clip."""
        return next(iter(self._looks[clip]))
