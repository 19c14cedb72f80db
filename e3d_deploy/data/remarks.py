"""Remarks about a source, each logged once. Needs no PyTorch."""

import logging

log = logging.getLogger(__name__)


class Remarks:
    """Logs what is done to the frames of a source, each kind of remark once.

    Args:
        silent: log nothing.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.texts: list[str] = []
        self._said: set[str] = set()

    def say(self, kind: str, text: str, *values: object) -> None:
        """Log a remark unless one of its kind has been logged."""
        if not self.silent and kind not in self._said:
            self._said.add(kind)
            self.texts.append(text % values)
            log.warning(text, *values)
