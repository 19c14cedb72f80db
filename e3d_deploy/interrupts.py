"""Signal handlers for the time before and after a command, and functions during which signals are deferred.

This module imports little, because Python answers a signal with a traceback until `end_on_signals` is called.
"""

import os
import signal
from contextlib import suppress
from types import CodeType, FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that end a command as Ctrl-C does; Windows has no SIGHUP."""
DEFAULT = (signal.SIG_DFL, signal.default_int_handler)
"""Default handlers of Python. Only these are replaced: handlers of the program and ignored signals do not change."""
INDIVISIBLE: set[CodeType] = set()
"""Code of functions during which signals are deferred while a command runs.

Some of these functions would leave a folder behind, or under a temporary name, if they were interrupted. Others are
called by a library that swallows exceptions.
"""


def end_at_once(number: int, frame: FrameType | None) -> None:
    """End the program with exit code 128 + signal number; no command runs, so no output is incomplete."""
    with suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(128 + number)


def end_on_signals() -> None:
    """Make Ctrl-C, SIGTERM and SIGHUP end the program at once while it starts or exits."""
    for number in (signal.SIGINT, *ENDING):
        if signal.getsignal(number) in DEFAULT:
            signal.signal(number, end_at_once)
