"""Process in which objects of the runtime work: not in a copy made by fork, and not in a library while Python ends."""

import atexit
import ctypes
import logging
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar
from weakref import WeakKeyDictionary

from e3d_deploy.errors import ResourceLimit, StreamError

log = logging.getLogger(__name__)

T = TypeVar("T")

LEAST_STACK_BYTES = 128 << 10
"""Stack of a thread in which every backend opened and ran; with half of it ONNX Runtime ended the process."""
_quieted: "WeakKeyDictionary[object, tuple[int, Callable[[], None]]]" = WeakKeyDictionary()
"""Objects with calls to wait for at the end of Python, each with its process and the function that waits."""
_stack_size = threading.RLock()  # a finalizer may come in between
_exit_threads: list[int] = []
"""Thread that runs the exit handlers, once Python ends."""
SERVING: set[int] = set()
"""Threads of streams, which do what exit handlers ask for."""
IN_BACKEND: dict[int, object] = {}
"""Threads that hold the lock of a backend, each with the last one. Other threads may wait for that lock, so these must
wait for none of them: a finalizer or a signal handler that runs in the middle of a step."""


def in_backend() -> bool:
    """Return True if this thread is in a step, and so must not wait for another thread."""
    return threading.get_ident() in IN_BACKEND


def check_usable(pid: int) -> None:
    """Raise unless an object of the process `pid` may be used by this thread now.

    Raises:
        StreamError: this process was forked from that one; or Python ends, and this is neither the thread that runs
            its exit handlers nor one that serves it.
    """
    if os.getpid() != pid:
        raise StreamError("this process was forked from the one that loaded the bundle; load it again here")
    if _exit_threads and threading.get_ident() not in _exit_threads and threading.get_ident() not in SERVING:
        raise StreamError("Python ends, and only exit handlers may use streams now; stop the thread before the end")


def check_stack(*, starts_thread: bool = False) -> None:
    """Raise if the stack of this thread, or of one that is about to start, is too small for a step.

    It is taken to be as `threading.stack_size` says now, except for the main thread, whose stack the system gives.

    Raises:
        ResourceLimit: it is below `LEAST_STACK_BYTES`; a step would end the process without a word.
    """
    if not starts_thread and threading.current_thread() is threading.main_thread():
        return
    with _stack_size:
        sizes: list[int] = []
        try:
            # Reading sets it to 0, the system's own; in one call, as Ctrl-C may come after each.
            sizes.extend(map(threading.stack_size, (0,)))
        finally:
            for size in sizes:
                threading.stack_size(size)
    [size] = sizes
    if 0 < size < LEAST_STACK_BYTES:
        raise ResourceLimit(
            f"threading.stack_size: got {size >> 10} KiB, a step needs {LEAST_STACK_BYTES >> 10} KiB; call "
            f"threading.stack_size({2 * LEAST_STACK_BYTES}) before threads are started"
        )


def is_ending() -> bool:
    """Return True once Python runs its exit handlers, some of which may still use streams."""
    return bool(_exit_threads)


def wait_at_exit(owner: object, wait: Callable[[], None]) -> None:
    """Have `wait` called once Python ends, after calls of other threads are refused.

    It waits for the calls that those are in: a thread inside a library while Python goes away would abort the process.

    Args:
        owner: forgotten with it; `wait` must not refer to it strongly.
    """
    _quieted[owner] = os.getpid(), wait


def listed(items: Callable[[], Iterable[T]]) -> list[T]:
    """Return items that may be held weakly, while other threads add some."""
    while True:
        with suppress(RuntimeError):  # their number changed meanwhile
            return list(items())


def _end() -> None:
    _exit_threads.append(threading.get_ident())
    for pid, wait in listed(_quieted.values):
        if pid == os.getpid():
            try:
                wait()
            except Exception:  # the others are waited for all the same
                log.exception("a call was not waited for")


def _keep() -> None:
    """Keep what a forked copy has of the parent's libraries: freeing it would wait for threads that are not here."""
    for owner in list(_quieted):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))
    here = threading.get_ident()
    for thread in IN_BACKEND.keys() - {here}:  # whose numbers new threads may get
        del IN_BACKEND[thread]
    SERVING.clear()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep)
