"""Remarks of libraries kept away from the user for a while, also by several threads at once."""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
"""Number of blocks that run now, in all threads."""
_filters = warnings.catch_warnings()
_levels: dict[str, int] = {}
"""Levels of loggers to put back."""


@contextmanager
def quiet(ignore: Callable[[], object] = lambda: None, *, loggers: tuple[str, ...] = ()) -> Iterator[None]:
    """Ignore warnings and log errors alone; the last of several threads puts filters and levels back.

    Python has both for the whole process only. Each thread for itself would put back what another one has set.

    Args:
        ignore: adds filters of warnings.
        loggers: log nothing below an error.
    """
    _enter(ignore, loggers)
    try:
        yield
    finally:
        _leave()


def _enter(ignore: Callable[[], object], loggers: tuple[str, ...]) -> None:
    global _inside, _filters  # noqa: PLW0603 (they belong to the process)
    with _lock:
        if _inside == 0:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
        _inside += 1
        ignore()
        for name in loggers:
            _levels.setdefault(name, logging.getLogger(name).level)
            logging.getLogger(name).setLevel(logging.ERROR)


def _leave() -> None:
    global _inside  # noqa: PLW0603
    with _lock:
        _inside -= 1
        if _inside == 0:
            _filters.__exit__(None, None, None)
            for name, level in _levels.items():
                logging.getLogger(name).setLevel(level)
            _levels.clear()
