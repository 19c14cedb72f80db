"""Remarks about a source, each logged once. Needs no PyTorch."""

import logging

log = logging.getLogger(__name__)


class Remarks:
    """Logs what is done to the frames of a source, each kind of remark once.

    Args:
        silent: keep remarks, and log nothing.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.texts: list[str] = []
        self._said: set[str] = set()

    def say(self, kind: str, text: str, *values: object) -> None:
        """Log a remark unless one of its kind has been logged."""
        if kind in self._said:
            return
        self._said.add(kind)
        self.texts.append(text % values)
        if not self.silent:
            log.warning(text, *values)
