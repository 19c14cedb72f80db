"""Bounded queue between the thread that reads a source and the thread that takes its pictures."""

import time
from collections import deque
from collections.abc import Iterator
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class Ended(Exception):
    """Raised when a queue is closed, or has ended and is empty."""


class BoundedQueue(Generic[T]):
    """Bounded first-in, first-out queue that can drop old items, report an error and be closed.

    Args:
        length: maximum number of items in the queue.
        drop_oldest: when the queue is full, drop its oldest item instead of blocking.
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
        """True after the first call to `close`."""
        return self._closed

    def put(self, item: T) -> bool:
        """Add an item, and return True; return False if the queue is closed.

        A full queue blocks the call until an item is taken, or drops its oldest item if `drop_oldest` is set.
        """
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
        """Mark the end of the items: after the queued items, `take` raises the error, or `Ended` without an error."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def take(self, timeout_s: float | None = None) -> T | None:
        """Remove and return the next item; return None if no item arrives before the timeout.

        Args:
            timeout_s: maximum time to wait (s); None waits without limit.

        Raises:
            Ended: the queue is closed, or it was finished without an error and no items are left.
            Exception: the queue was finished with this error and no items are left.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._items or self._closed:
                if self._closed:
                    raise Ended
                if self._finished:
                    # Each raise appends to the traceback of an error, so repeated calls would make the traceback grow.
                    raise Ended if self._error is None else self._error.with_traceback(None)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def __iter__(self) -> Iterator[T]:
        """Yield the items until the queue is closed, or finished and empty.

        Raises:
            Exception: the queue was finished with this error.
        """
        while True:
            try:
                item = self.take()
            except Ended:
                return
            if item is not None:
                yield item

    def close(self) -> None:
        """Drop all items, and wake the threads that wait in `put` or `take`."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
