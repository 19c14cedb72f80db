"""Lifetime of a backend: open until it is closed, and then of no more use."""

import threading
from contextlib import AbstractContextManager
from typing import Self

from e3d_deploy.errors import StreamError


class Lifetime:
    """A backend that can be closed twice, refuses every call after that, and is a context manager.

    A subclass calls `check_open` in each method before it touches what the backend holds, and frees that in `free`.

    Args:
        lock: held while the backend is closed; the default is a lock of its own.
    """

    name: str

    def __init__(self, lock: AbstractContextManager[object] | None = None) -> None:
        self.lock = threading.Lock() if lock is None else lock
        self.closed = False

    def check_open(self) -> None:
        """Raise unless the backend is open.

        Raises:
            StreamError: it was closed.
        """
        if self.closed:
            raise StreamError(f"{self.name}: the backend was closed; load the bundle again")

    def free(self) -> None:
        """Free what the backend holds; called once, with the lock held."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the backend holds, once its lock is free; closing it again does nothing."""
        with self.lock:
            if not self.closed:
                self.closed = True
                self.free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
