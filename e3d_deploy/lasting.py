"""Text stream that survives write errors, so that a command continues when its terminal or reader is gone."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO


class LastingStream:
    """Text stream that discards its output after the first write error.

    The stream has no attribute `buffer`, because click would use it to bypass an ASCII encoding and write UTF-8.
    """

    def __init__(self, stream: TextIO) -> None:
        self.wrapped = stream
        self.lost: OSError | None = None
        """First write error; output after it was discarded."""

    def write(self, text: str) -> int:
        """Write text; after an error, discard it."""
        if not isinstance(text, str):
            raise TypeError(f"got {type(text).__name__}, expected text")
        self._attempt(lambda: self.wrapped.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream; after an error, do nothing."""
        self._attempt(self.wrapped.flush)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def _attempt(self, act: Callable[[], object]) -> None:
        if self.lost is None:
            try:
                act()
            except OSError as error:
                self.lost = error
                with suppress(OSError, ValueError):
                    _drain(self.wrapped)


def _drain(stream: TextIO) -> None:
    """Discard the buffer of a stream that cannot be written; otherwise Python could not flush the buffer at exit."""
    descriptor = stream.fileno()
    kept = os.dup(descriptor)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, descriptor)
        stream.flush()
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(nowhere)
