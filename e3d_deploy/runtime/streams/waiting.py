"""Bells, replies and coroutines, with which callers wait for another thread.

Finalizers, signal handlers and Ctrl-C may interrupt the wait anywhere. `threading.Condition`, `Event` and `Future` take
their locks in Python code, where Ctrl-C can leave the lock taken forever. The classes of this module hold no lock. They
sleep in a `SimpleQueue`, which is written in C and reentrant.
"""

import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from e3d_deploy.runtime.arguments import Timeout

T = TypeVar("T")
FOREVER = Timeout(None)


class Bell:
    """Wakes all callers that wait for a change."""

    __slots__ = ("_wakes",)

    def __init__(self) -> None:
        self._wakes: deque[Callable[[], object]] = deque()

    def add(self, wake: Callable[[], object]) -> None:
        """Register a function that the next ring calls once."""
        self._wakes.append(wake)

    def ring(self) -> None:
        """Call all registered functions; to be called after the change."""
        if not self._wakes:  # the usual case
            return
        for _ in range(len(self._wakes)):
            with suppress(IndexError):  # A waiting caller has just given up and removed its function.
                self._wakes.popleft()()

    def wait(self, is_so: Callable[[], bool], timeout: Timeout = FOREVER) -> bool:
        """Wait until `is_so` returns True; return False if `timeout` ends first."""
        while not is_so():
            woken: SimpleQueue[None] = SimpleQueue()
            wake = partial(woken.put, None)
            self.add(wake)
            try:
                # Check again, because the bell may have rung before the function was registered.
                if is_so():
                    return True
                if timeout.over:
                    return False
                sleep(woken, timeout.left())
            finally:
                if self._wakes:
                    with suppress(ValueError):  # The bell rang and removed the function.
                        self._wakes.remove(wake)
        return True


def sleep(queue: "SimpleQueue[T]", time_s: float | None) -> T | None:
    """Return the next item of a queue, or None if no item arrives in time.

    Args:
        time_s: maximum time to wait (s); None waits without a limit.
    """
    try:
        return queue.get(timeout=None if time_s is None else min(time_s, threading.TIMEOUT_MAX))
    except Empty:
        return None


class Reply(Generic[T]):
    """Result of a request, which the thread that steps the streams sets and one caller waits for."""

    __slots__ = ("_bell", "_error", "_result", "done", "unwanted")

    def __init__(self) -> None:
        self._bell = Bell()
        self._result: T | None = None
        self._error: BaseException | None = None
        self.done = False
        self.unwanted = False
        """True once the caller has stopped waiting."""

    def give(self, outcome: T | BaseException) -> None:
        """Set the result, or the exception that `result` will raise."""
        if isinstance(outcome, BaseException):
            self._error = outcome
        else:
            self._result = outcome
        self.done = True
        self._bell.ring()

    def when_done(self, wake: Callable[[], object]) -> None:
        """Register a function that is called once the result is set, by the thread that sets it.

        If the result is set before or during this call, this thread calls the function too, so it may be called twice.
        """
        self._bell.add(wake)
        if self.done:
            wake()

    def wait(self, timeout: Timeout = FOREVER) -> bool:
        """Wait for the result; return False if `timeout` ends first."""
        return self._bell.wait(lambda: self.done, timeout)

    def result(self) -> T:
        """Wait for the result and return it, or raise the exception that was set."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # None only if T includes None


class Answer(Coroutine[Any, Any, T]):
    """Coroutine that is already inside its body when it is created.

    Closing or dropping the coroutine therefore runs the `finally` blocks of the body, even before the first `await`.

    Args:
        steps: body, a generator. The constructor runs it to its first `yield`; awaiting continues from there.
        name: name that asyncio shows in descriptions of tasks.
    """

    def __init__(self, steps: Generator[Any, Any, T], name: str) -> None:
        self._steps = steps
        self._awaited = False
        self.__name__ = self.__qualname__ = name
        next(steps)

    def send(self, value: Any) -> Any:
        """Resume the body with a value; called by the event loop."""
        return self._steps.send(value)

    def throw(self, *error: Any) -> Any:
        """Resume the body by raising an exception in it, such as `CancelledError`."""
        return self._steps.throw(*error)

    def close(self) -> None:
        self._steps.close()

    def __await__(self) -> Generator[Any, Any, T]:
        if self._awaited:
            raise RuntimeError("cannot reuse already awaited coroutine")
        self._awaited = True
        return self._steps


def awaited(reply: Reply[T], timeout: Timeout, what: str) -> Generator[Any, Any, T]:
    """Wait for a reply, as the body of an `Answer`; the reply is marked as unwanted when the body ends.

    Args:
        what: name of the call, for the error.

    Raises:
        StreamError: there was no reply within `timeout`.
    """
    import asyncio  # imported here because only callers that use asyncio get here

    try:
        yield
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        def wake_from_elsewhere() -> None:
            with suppress(RuntimeError):  # The event loop was closed.
                loop.call_soon_threadsafe(wake)

        timer = None if (left := timeout.left()) is None else loop.call_later(left, wake)
        reply.when_done(wake_from_elsewhere)
        try:
            yield from waiter
        finally:
            if timer is not None:
                timer.cancel()
        if not reply.done:
            raise timeout.error(what)
        return reply.result()
    finally:
        reply.unwanted = True
