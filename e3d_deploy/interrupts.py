"""Signals that end the program before a command begins and after it has ended, and code in which they wait.

It imports little: Python answers a signal with a traceback until `end_on_signals` is called.
"""

import os
import signal
from contextlib import suppress
from types import CodeType, FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that end a command as Ctrl-C does; Windows has no SIGHUP."""
DEFAULT = (signal.SIG_DFL, signal.default_int_handler)
"""Handlers that Python has for these signals; a program's own stays, and so does a signal that it ignores."""
INDIVISIBLE: set[CodeType] = set()
"""Code of functions in which a signal waits while a command runs.

They would leave a folder behind, or under another name, if one ended them in the middle, or are called by a library
that swallows errors.
"""


def end_at_once(number: int, frame: FrameType | None) -> None:
    """End the program with 128 and the number of the signal; no command runs, so nothing is half-written."""
    with suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(128 + number)


def end_on_signals() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end the program in one way while it starts and ends."""
    for number in (signal.SIGINT, *ENDING):
        if signal.getsignal(number) in DEFAULT:
            signal.signal(number, end_at_once)
