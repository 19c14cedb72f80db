"""Remarks on a source, each logged once. Needs no PyTorch."""

import logging
import os

Look = tuple[tuple[int, int], str]
"""Look of a picture: height and width (pixels), and pixel format."""
log = logging.getLogger(__name__)


class Remarks:
    """Logs decisions about a source, such as how its pictures are converted; one remark of each kind.

    Copies of this object in worker processes log nothing, because each would repeat the remarks.

    Args:
        silent: collect remarks without logging them.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self._process = os.getpid()
        self.texts: list[str] = []
        self._said: set[str] = set()
        self._looks: dict[str, dict[Look, None]] = {}

    def say(self, kind: str, text: str, *values: object) -> None:
        """Record and log a remark, unless there is already one of its kind."""
        if kind in self._said:
            return
        self._said.add(kind)
        self.texts.append(text % values)
        if not self.silent and os.getpid() == self._process:
            log.warning(text, *values)

    def is_new(self, clip: str, look: Look) -> bool:
        """Record the look of a picture; return True if no earlier picture of the clip has the same look."""
        looks = self._looks.setdefault(clip, {})
        if look in looks:
            return False
        looks[look] = None
        return True

    def first(self, clip: str) -> Look:
        """Return the look of the first picture of a clip, as recorded by `is_new`."""
        return next(iter(self._looks[clip]))
