"""Standard output and error of a command, which print whatever the locale is, and lose no work when they break."""

import codecs
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import RawIOBase, TextIOWrapper
from typing import BinaryIO, TextIO, cast

from e3d_deploy.lasting import LastingStream

PLAIN = {
    "×": "x",
    "·": "-",
    "•": "-",
    "–": "-",
    "—": "-",
    "−": "-",
    "Δ": "d",
    "‖": "|",
    "≤": "<=",
    "≥": ">=",
    "±": "+-",
    "…": "...",
    "→": "->",
    "µ": "u",
    "’": "'",
}
"""Forms in ASCII of characters that messages and tables use; those of tables keep the width where they can."""
READABLE, EXACT = "e3d_deploy.readable", "e3d_deploy.exact"
"""Names of two ways to encode what an encoding lacks: for a person to read, and with the bytes of file names kept."""
LENIENT = ("strict", "surrogateescape", "backslashreplace")
"""Ways that Python chooses by itself; another one is a user's choice in PYTHONIOENCODING, and stays."""

_lock = threading.Lock()


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    plain = PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode()
    return plain, error.start + 1


def _exact(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError) and "\udc80" <= error.object[error.start] <= "\udcff":
        return bytes([ord(error.object[error.start]) - 0xDC00]), error.start + 1
    return _readable(error)


codecs.register_error(READABLE, _readable)
codecs.register_error(EXACT, _exact)


class Output(LastingStream):
    """A standard stream that commands share."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.users = 0
        """Commands that run with it."""
        self.restoring = ExitStack()
        """Restores the program's stream when it is closed."""


@contextmanager
def lasting() -> Iterator[Output]:
    """Give standard output; while the block runs, it and standard error survive what breaks them.

    A closed one leads nowhere: the next file to be opened would have its descriptor, and what a library prints would go
    into that file. Blocks in several threads share both streams, and the last one puts them back.
    """
    with ExitStack() as stack:
        with _lock:
            if None in (sys.stdin, sys.stdout, sys.stderr):
                _fill_descriptors()
            out = _share("stdout", EXACT)
            stack.callback(_leave, out)
            err = _share("stderr", READABLE)
            stack.callback(_leave, err)
        yield out


def _share(name: str, errors: str) -> Output:
    """Return the standard stream that commands share, which the first of them puts in the place of the program's."""
    before = getattr(sys, name)
    if isinstance(before, Output) and before.users:
        before.users += 1
        return before
    restoring = ExitStack()
    out = Output(restoring.enter_context(_encoding_all(before, errors)))
    restoring.callback(_put_back, name, out, before)
    out.users, out.restoring = 1, restoring
    setattr(sys, name, out)
    return out


def _leave(out: Output) -> None:
    """Flush a stream that commands share; the last of them restores the program's."""
    out.flush()
    with _lock:
        out.users -= 1
        if not out.users:
            out.restoring.close()


def _put_back(name: str, out: Output, before: TextIO | None) -> None:
    if getattr(sys, name) is out:
        setattr(sys, name, before)


@contextmanager
def binary_stdout() -> "Iterator[BinaryIO | RawIOBase]":
    """Give standard output for bytes, which, unlike that for text, raises an error when its reader is gone.

    It has no buffer: Python could not end while a thread holds the lock of one, because a reader does not read.
    """
    sys.stdout.flush()
    out = sys.stdout.wrapped if isinstance(sys.stdout, Output) else sys.stdout
    try:
        descriptor = out.fileno()
    except OSError:  # a program has put something without a descriptor in its place
        yield cast(BinaryIO, out.buffer)
        return
    with open(os.dup(descriptor), "wb", buffering=0) as raw:
        yield raw


def _fill_descriptors() -> None:
    """Open the null device on those of the first three descriptors that are closed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


@contextmanager
def _encoding_all(stream: TextIO | None, errors: str) -> Iterator[TextIO]:
    """Let a stream encode every character while the block runs; give the null device in place of a closed one."""
    if stream is None or getattr(stream, "closed", False):
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            yield nowhere
        return
    before = stream.errors if isinstance(stream, TextIOWrapper) else None
    if before not in LENIENT:
        yield stream
        return
    assert isinstance(stream, TextIOWrapper)
    stream.reconfigure(errors=errors)
    try:
        yield stream
    finally:
        with suppress(OSError, ValueError):
            stream.reconfigure(errors=before)
