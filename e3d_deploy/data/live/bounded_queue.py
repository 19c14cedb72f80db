"""Bounded queue between the thread that reads a source and whoever takes its pictures."""

import time
from collections import deque
from collections.abc import Iterator
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class Ended(Exception):
    """End of a source; there is no next picture."""


class BoundedQueue(Generic[T]):
    """Items that wait to be taken, in order.

    Args:
        length: number of items that may wait.
        drop_oldest: drop the item that has waited longest instead of blocking where the queue is full.
    """

    def __init__(self, length: int, *, drop_oldest: bool) -> None:
        self.length, self.drop_oldest = length, drop_oldest
        self.dropped = 0
        self._items: deque[T] = deque()
        self._changed = Condition()
        self._closed = self._finished = False
        self._error: Exception | None = None

    @property
    def is_closed(self) -> bool:
        """True if nobody takes items any more."""
        return self._closed

    def put(self, item: T) -> bool:
        """Add an item, which blocks while the queue is full unless it drops; return False once it is closed."""
        with self._changed:
            if self.drop_oldest and len(self._items) == self.length:
                self._items.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: self._closed or len(self._items) < self.length)
            if self._closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def finish(self, error: Exception | None = None) -> None:
        """Let `take` end, or raise an error, after the items that wait."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def take(self, timeout_s: float | None = None) -> T | None:
        """Return the next item; None if none has come after the timeout.

        Raises:
            Ended: there is none any more, or the queue is closed.
            Exception: error that the queue was finished with.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._items or self._closed:
                if self._closed:
                    raise Ended
                if self._finished:
                    # Without the traceback of the time before, which would grow with each call.
                    raise Ended if self._error is None else self._error.with_traceback(None)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def __iter__(self) -> Iterator[T]:
        """Yield the items until there is none any more.

        Raises:
            Exception: error that the queue was finished with.
        """
        while True:
            try:
                item = self.take()
            except Ended:
                return
            if item is not None:
                yield item

    def close(self) -> None:
        """Drop what waits, and wake whoever puts or takes."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
