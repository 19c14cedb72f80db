"""Standard output and error of a command: they work in every locale, and the command survives a closed pipe."""

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
"""ASCII replacements of the characters that messages and tables use, most of them of the same width."""
READABLE, EXACT = "e3d_deploy.readable", "e3d_deploy.exact"
"""Names of two error handlers for characters that an encoding lacks.

`READABLE` writes a replacement or an escape. `EXACT` also keeps the bytes of file names that are not text."""
LENIENT = ("strict", "surrogateescape", "backslashreplace")
"""Error handlers that Python chooses by default. Any other handler was set by the user in PYTHONIOENCODING and is
kept."""

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
    """Standard stream that the running commands share."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.users = 0
        """Number of running commands that use the stream."""
        self.restoring = ExitStack()
        """Exit stack that restores the original stream of the program."""


@contextmanager
def lasting() -> Iterator[Output]:
    """Yield standard output; while the block runs, printing on stdout and stderr raises no errors.

    A closed stream is replaced by the null device. Without this, the next file that is opened would get the descriptor
    of the closed stream, and text that a library prints would go into that file. Blocks in several threads share both
    streams; the last block restores the streams.
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
    """Return the shared standard stream; the first command replaces the program's stream by the shared one."""
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
    """Flush a shared stream; the last command restores the program's stream."""
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
    """Yield a binary standard output, which raises an error if its reader has closed the pipe.

    It is unbuffered, because Python cannot exit while a thread that is blocked on a full pipe holds the lock of a
    buffer.
    """
    sys.stdout.flush()
    out = sys.stdout.wrapped if isinstance(sys.stdout, Output) else sys.stdout
    try:
        descriptor = out.fileno()
    except OSError:  # stdout was replaced by an object without a descriptor
        yield cast(BinaryIO, out.buffer)
        return
    with open(os.dup(descriptor), "wb", buffering=0) as raw:
        yield raw


def _fill_descriptors() -> None:
    """Open the null device on each of the descriptors 0 to 2 that is closed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


@contextmanager
def _encoding_all(stream: TextIO | None, errors: str) -> Iterator[TextIO]:
    """Make a stream encode every character while the block runs; yield the null device if the stream is closed."""
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
