"""Suppression of warnings and log messages of libraries, usable by several threads at once."""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
"""Number of running `quiet` blocks in all threads."""
_filters = warnings.catch_warnings()
_levels: dict[str, int] = {}
"""Levels of loggers to restore."""


@contextmanager
def quiet(ignore: Callable[[], object] = lambda: None, *, loggers: tuple[str, ...] = ()) -> Iterator[None]:
    """Ignore some warnings, and log only errors, while the block runs.

    Warning filters and logger levels belong to the whole process. If each thread restored them at the end of its own
    block, the thread would undo the settings of other threads. The block that ends last therefore restores them.

    Args:
        ignore: function that adds warning filters.
        loggers: names of loggers that log only errors.
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
