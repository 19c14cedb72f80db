"""Base class of backends that enforces their lifetime: they are open until closed, and refuse calls afterwards."""

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


def exclusive(method: Callable[Concatenate[B, P], T]) -> Callable[Concatenate[B, P], T]:
    """Make a method hold the lock of its backend while it runs.

    Calls from other threads wait for the lock. A call from within the method, by a finalizer or a signal handler,
    raises StreamError.

    Ctrl-C leaves nothing locked, because Python runs no signal handler between taking a lock in a `with` statement and
    entering its block, or during a plain assignment. The wrapper does not use a generator-based context manager: if
    Ctrl-C interrupted it, the generator could stay suspended, with the lock held, as long as a traceback refers to it.
    """

    @wraps(method)
    def call(self: B, /, *args: P.args, **kwargs: P.kwargs) -> T:
        # In a forked process, the lock may stay locked forever, because its holder exists only in the parent.
        self.check_open()
        with self.lock:
            self.check_open()
            if self.running:
                raise StreamError(
                    f"{self.name}: a finalizer or a signal handler called the backend during another call in the same "
                    "thread; call it after that call returns"
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
                if self.closed:  # `close` was called while the method ran.
                    self._close()

    return call


class Lifetime:
    """Base class of backends: a context manager that may be closed twice and refuses calls once it is closed.

    A subclass calls `check_open` in each method before it uses the backend's memory, and frees that memory in `free`.
    Methods that run a graph are decorated with `exclusive`, so that only one thread runs graphs at a time.

    Args:
        lock: lock held while the backend runs, and during `close`. The lock must be reentrant, because garbage
            collection may close the backend during a call. None for a new lock that no other backend uses.
    """

    name: str

    def __init__(self, lock: Lock | None = None) -> None:
        self.lock: Lock = threading.RLock() if lock is None else lock
        self.closed = self.running = self._freed = False
        self.pid = os.getpid()
        wait_at_exit(self, partial(_wait, self.lock))

    def check_open(self) -> None:
        """Check that the backend is open and usable in this process.

        Raises:
            StreamError: the backend is closed; or this process was forked after the backend was opened; or Python is
                shutting down, and the call does not come from an exit handler.
        """
        check_usable(self.pid)
        if self.closed:
            raise StreamError(f"{self.name}: the backend was closed; load the bundle again")

    def free(self) -> None:
        """Free the memory of the backend; called once, with the lock held."""
        raise NotImplementedError

    def close(self) -> None:
        """Wait for calls in other threads, then free the memory of the backend; closing it again does nothing.

        A finalizer or a signal handler may call `close` inside another call in the same thread:

        - Inside a call to this backend, the memory is freed when that call returns.
        - Inside a call to another backend, `close` does not wait for other threads. If one of them holds the lock of
          this backend, the memory is freed when its call to this backend returns, or at the next `close`.

        In a forked process, `close` does nothing.
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
    """Wait until the running call returns."""
    with lock:
        pass
