"""Lifetime of a backend: open until it is closed, and then of no more use."""

import os
import threading
from functools import partial
from typing import Any, Protocol, Self

from e3d_deploy.errors import StreamError
from e3d_deploy.runtime.process import check_usable, in_backend, wait_at_exit


class Lock(Protocol):
    """Reentrant lock."""

    def acquire(self, blocking: bool = True) -> bool: ...

    def release(self) -> None: ...

    def __enter__(self) -> object: ...

    def __exit__(self, *_: Any) -> object: ...


class Lifetime:
    """A backend that can be closed twice, refuses every call after that, and is a context manager.

    A subclass calls `check_open` in each method before it touches what the backend holds, and frees that in `free`.
    A call that runs something is in `with self.lock:` and then between `check_turn`, which refuses a call inside
    another one of the same thread, as of a finalizer, and `end_turn`, which frees what was closed meanwhile.

    Args:
        lock: held while the backend runs and is closed; reentrant, as garbage collection may close it in a call. The
            default is a lock of its own.
    """

    name: str

    def __init__(self, lock: Lock | None = None) -> None:
        self.lock: Lock = threading.RLock() if lock is None else lock
        self.closed = self.running = self._freed = False
        self.pid = os.getpid()
        wait_at_exit(self, partial(_wait, self.lock))

    def check_open(self) -> None:
        """Raise unless the backend is open.

        Raises:
            StreamError: it was closed, or this process was forked, or Python ends.
        """
        check_usable(self.pid)
        if self.closed:
            raise StreamError(f"{self.name}: the backend was closed; load the bundle again")

    def check_turn(self) -> None:
        """Raise unless a call of this thread may begin, with the lock held.

        Raises:
            StreamError: as `check_open`; or this thread is in a call already.
        """
        self.check_open()
        if self.running:
            raise StreamError(
                f"{self.name}: was called inside its own call, by a finalizer or a signal handler; call it later"
            )

    def end_turn(self) -> None:
        """Free what was closed inside the call that ends, with the lock held."""
        if self.closed:
            self._close()

    def free(self) -> None:
        """Free what the backend holds; called once, with the lock held."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the backend holds, once its lock is free; closing it again does nothing.

        Inside a call of this thread it is freed at the end of that. Inside a call of another backend it waits for
        nobody: it is freed at the end of the call that holds its lock, or when it is closed again. A copy made by fork
        is left alone.
        """
        if os.getpid() != self.pid:
            return
        if not in_backend():
            with self.lock:
                self._close()
        elif self.lock.acquire(blocking=False):
            try:
                self._close()
            finally:
                self.lock.release()
        else:
            self.closed = True

    def _close(self) -> None:
        self.closed = True
        if not (self.running or self._freed):
            self._freed = True
            self.free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _wait(lock: Lock) -> None:
    """Wait for the call that is on its way."""
    with lock:
        pass
