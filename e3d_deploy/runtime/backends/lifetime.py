"""Lifetime of a backend: open until it is closed, and then of no more use."""

import os
import threading
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from e3d_deploy.errors import StreamError
from e3d_deploy.runtime.process import IN_BACKEND, check_usable, in_backend, wait_at_exit

P = ParamSpec("P")
T = TypeVar("T")
B = TypeVar("B", bound="Lifetime")


class Lock(Protocol):
    """Reentrant lock."""

    def acquire(self, blocking: bool = True) -> bool: ...

    def release(self) -> None: ...

    def __enter__(self) -> object: ...

    def __exit__(self, *_: Any) -> object: ...


def in_turn(method: Callable[Concatenate[B, P], T]) -> Callable[Concatenate[B, P], T]:
    """Let a method have its backend to itself: other threads wait, and another call inside it raises StreamError.

    A signal handler runs neither between a lock and its block nor in a plain assignment, so that Ctrl-C leaves nothing
    locked, whoever keeps the traceback; a context manager written as a generator would.
    """

    @wraps(method)
    def call(self: B, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.check_open()  # before the lock, which a thread of the parent may have held when this process was forked
        with self.lock:
            self.check_open()
            if self.running:
                raise StreamError(
                    f"{self.name}: was called inside its own call, by a finalizer or a signal handler; call it later"
                )
            thread = threading.get_ident()
            outer = IN_BACKEND.get(thread)
            self.running, IN_BACKEND[thread] = True, self
            try:
                return method(self, *args, **kwargs)
            finally:
                self.running = False
                if outer is None:
                    del IN_BACKEND[thread]
                else:
                    IN_BACKEND[thread] = outer
                if self.closed:  # meanwhile
                    self._close()

    return call


class Lifetime:
    """A backend that can be closed twice, refuses every call after that, and is a context manager.

    A subclass calls `check_open` in each method before it touches what the backend holds, and frees that in `free`.
    What runs something, one thread at a time, is a method that is marked `in_turn`.

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
