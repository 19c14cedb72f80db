"""Waits that a finalizer, a signal handler or Ctrl-C may interrupt anywhere.

Locks of `threading.Condition`, `Event` and `Future` are taken in Python code, where Ctrl-C can leave them locked for
ever. What is here holds no lock: it sleeps in a `SimpleQueue`, which is C code that may be entered again at any moment.
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
    """Wakes whoever waits for a change."""

    __slots__ = ("_wakes",)

    def __init__(self) -> None:
        self._wakes: deque[Callable[[], object]] = deque()

    def add(self, wake: Callable[[], object]) -> None:
        """Have a function called when it rings next."""
        self._wakes.append(wake)

    def ring(self) -> None:
        """Wake all; call it after the change."""
        if not self._wakes:  # as most times
            return
        for _ in range(len(self._wakes)):
            with suppress(IndexError):  # its owner gave up meanwhile
                self._wakes.popleft()()

    def wait(self, is_so: Callable[[], bool], timeout: Timeout = FOREVER) -> bool:
        """Wait until a condition holds; return False if the time is over before."""
        while not is_so():
            woken: SimpleQueue[None] = SimpleQueue()
            wake = partial(woken.put, None)
            self.add(wake)
            try:
                # Once more, as it may have rung before the line above.
                if is_so():
                    return True
                if timeout.over:
                    return False
                sleep(woken, timeout.left())
            finally:
                if self._wakes:
                    with suppress(ValueError):  # it rang
                        self._wakes.remove(wake)
        return True


def sleep(queue: "SimpleQueue[T]", time_s: float | None) -> T | None:
    """Return the next item of a queue; None if there is none for so long (s), without a limit for None."""
    try:
        return queue.get(timeout=None if time_s is None else min(time_s, threading.TIMEOUT_MAX))
    except Empty:
        return None


class Reply(Generic[T]):
    """Answer to a request: the thread of the streams gives it, one caller waits for it."""

    __slots__ = ("_bell", "_error", "_result", "done", "unwanted")

    def __init__(self) -> None:
        self._bell = Bell()
        self._result: T | None = None
        self._error: BaseException | None = None
        self.done = False
        self.unwanted = False
        """True once nobody waits for it any more."""

    def give(self, outcome: T | BaseException) -> None:
        """Set the result, or the exception to be raised."""
        if isinstance(outcome, BaseException):
            self._error = outcome
        else:
            self._result = outcome
        self.done = True
        self._bell.ring()

    def when_done(self, wake: Callable[[], object]) -> None:
        """Have a function called once the answer is there, by the thread that gives it; it may be called twice."""
        self._bell.add(wake)
        if self.done:
            wake()

    def wait(self, timeout: Timeout = FOREVER) -> bool:
        """Wait for the answer; return False if the time is over before."""
        return self._bell.wait(lambda: self.done, timeout)

    def result(self) -> T:
        """Return the answer once it is there, or raise it."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # None only where T is


class Answer(Coroutine[Any, Any, T]):
    """Coroutine that has begun already, so that whatever ends it runs its `finally`, even before it is awaited.

    Args:
        steps: its body; the first `yield` is where it begins.
    """

    def __init__(self, steps: Generator[Any, Any, T]) -> None:
        self._steps = steps
        self._awaited = False
        self.__name__ = self.__qualname__ = "predict_async"  # for asyncio's lists of tasks
        next(steps)

    def send(self, value: Any) -> Any:
        """Go on, as the event loop does."""
        return self._steps.send(value)

    def throw(self, *error: Any) -> Any:
        """Go on with an exception, such as that of a task that was cancelled."""
        return self._steps.throw(*error)

    def close(self) -> None:
        """End it."""
        self._steps.close()

    def __await__(self) -> Generator[Any, Any, T]:
        if self._awaited:
            raise RuntimeError("cannot reuse already awaited coroutine")
        self._awaited = True
        return self._steps


def awaited(reply: Reply[T], timeout: Timeout, what: str) -> Generator[Any, Any, T]:
    """Body of an `Answer` that waits for a reply; however it ends, nobody wants the reply any more.

    Raises:
        StreamError: the time is over.
    """
    import asyncio  # whoever awaits has it

    try:
        yield
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        def wake_from_elsewhere() -> None:
            with suppress(RuntimeError):  # the loop was closed
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
