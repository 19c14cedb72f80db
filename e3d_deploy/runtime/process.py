"""Checks of the process and the thread that use the runtime.

Objects of the runtime work only in the process that created them, not in a forked copy. A thread that is inside a
library when the interpreter is destroyed would abort the process. During interpreter shutdown, new calls are therefore
refused, and Python waits for calls in progress.
"""

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

MIN_STACK_BYTES = 128 << 10
"""Smallest thread stack with which every backend was tested (bytes).

With half of this size, ONNX Runtime ends the process.
"""
_waits: "WeakKeyDictionary[object, tuple[int, Callable[[], None]]]" = WeakKeyDictionary()
"""Objects whose calls in progress must return before the interpreter is destroyed.

Each object has the id of the process that created it, and a function that waits for the calls.
"""
_stack_size = threading.RLock()  # reentrant, because a finalizer may interrupt the holder and take the lock again
_exit_threads: list[int] = []
"""Id of the thread that runs the exit handlers; empty until Python shuts down."""
SERVING: set[int] = set()
"""Ids of the threads that step streams; during shutdown they may still work for exit handlers."""
IN_BACKEND: dict[int, object] = {}
"""Ids of threads that hold the lock of a backend, each with the backend whose lock the thread took last.

Code that runs in such a thread in the middle of a step, such as a finalizer or a signal handler, must not wait for
another thread, because that thread may be waiting for the lock.
"""


def in_backend() -> bool:
    """Return True if this thread is inside a step, and therefore must not wait for another thread."""
    return threading.get_ident() in IN_BACKEND


def check_usable(pid: int) -> None:
    """Check that this thread may use an object that was created in the process `pid`.

    Raises:
        StreamError: this process was forked from the process `pid`; or Python is shutting down, and this thread neither
            runs the exit handlers nor steps streams.
    """
    if os.getpid() != pid:
        raise StreamError("this process was forked from the one that loaded the bundle; load the bundle again here")
    if _exit_threads and threading.get_ident() not in _exit_threads and threading.get_ident() not in SERVING:
        raise StreamError(
            "Python is shutting down, and only exit handlers may use streams; stop this thread before Python exits"
        )


def check_stack(*, starts_thread: bool = False) -> None:
    """Check that the stack of this thread is large enough for a step, because an overflow ends the process silently.

    The stack is assumed to have the current value of `threading.stack_size`. The main thread is not checked, because
    the system sets the size of its stack.

    Args:
        starts_thread: check the stack of a thread that is about to start, instead of the stack of this thread.

    Raises:
        ResourceLimit: the stack is smaller than `MIN_STACK_BYTES`.
    """
    if not starts_thread and threading.current_thread() is threading.main_thread():
        return
    with _stack_size:
        sizes: list[int] = []
        try:
            # Reading the size also sets it, to the system's default. `extend` reads and stores the size in one call to
            # C, so that Ctrl-C cannot interrupt between the two and lose the size.
            sizes.extend(map(threading.stack_size, (0,)))
        finally:
            for size in sizes:
                threading.stack_size(size)
    [size] = sizes
    if 0 < size < MIN_STACK_BYTES:
        raise ResourceLimit(
            f"threading.stack_size: got {size >> 10} KiB, a step needs {MIN_STACK_BYTES >> 10} KiB; call "
            f"threading.stack_size({2 * MIN_STACK_BYTES}) before threads are started"
        )


def is_ending() -> bool:
    """Return True once Python is shutting down and runs its exit handlers, which may still use streams."""
    return bool(_exit_threads)


def wait_at_exit(owner: object, wait: Callable[[], None]) -> None:
    """Register a function that waits for calls in other threads; it is called during interpreter shutdown.

    New calls from other threads are already refused at that time. A thread that is still inside a library when the
    interpreter is destroyed would abort the process.

    Args:
        owner: object whose calls the function waits for. The function is dropped together with the object, so `wait`
            must not hold a strong reference to the object.
    """
    _waits[owner] = os.getpid(), wait


def listed(items: Callable[[], Iterable[T]]) -> list[T]:
    """Return the items of a weak collection as a list, although other threads may add or drop items concurrently.

    Args:
        items: function that returns the collection; called again if the collection changes during the iteration.
    """
    while True:
        with suppress(RuntimeError):  # The number of items changed during the iteration.
            return list(items())


def _at_exit() -> None:
    """Refuse new calls from other threads, and wait for their calls in progress; runs during interpreter shutdown."""
    _exit_threads.append(threading.get_ident())
    for pid, wait in listed(_waits.values):
        if pid == os.getpid():
            try:
                wait()
            except Exception:  # Continue, because calls to other objects may be in progress too.
                log.exception("runtime: waiting for calls in progress failed, so the process may abort")


def _after_fork() -> None:
    """Make the parent's objects immortal in a forked process, and forget the parent's threads.

    Freeing such an object would wait for threads that exist only in the parent.
    """
    for owner in list(_waits):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))
    here = threading.get_ident()
    for thread in IN_BACKEND.keys() - {here}:  # New threads may receive the ids of these threads.
        del IN_BACKEND[thread]
    SERVING.clear()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
