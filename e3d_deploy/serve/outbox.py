"""Messages on their way to one viewer."""

import asyncio
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Closing:
    """End of the connection, behind all messages."""

    code: int


class Outbox:
    """Bounded queue of the messages to one viewer, filled by any thread and emptied on the event loop.

    Of pictures at most `length` wait: the oldest gives way to the next, so that a viewer who reads slowly, or never,
    holds up nobody. Text messages are never dropped; their number is bounded by the rate of those that ask for them.

    Args:
        loop: event loop of the connection.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, length: int = 2) -> None:
        self.dropped = 0
        """Pictures that gave way."""
        self._loop, self._length = loop, length
        self._messages: deque[str | bytes | Closing] = deque()
        self._lock = threading.Lock()
        self._filled = asyncio.Event()
        self._closed = False

    def put(self, message: str | bytes) -> None:
        """Add a message. Nothing follows a `close`."""
        with self._lock:
            if self._closed:
                return
            if isinstance(message, bytes):
                waiting = [number for number, one in enumerate(self._messages) if isinstance(one, bytes)]
                if len(waiting) >= self._length:
                    del self._messages[waiting[0]]
                    self.dropped += 1
            self._messages.append(message)
        self._wake()

    def close(self, code: int, *messages: str) -> None:
        """Send what waits, then these messages, and close the connection. Only the first call counts."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._messages.extend((*messages, Closing(code)))
        self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed, and with it the connection
            self._loop.call_soon_threadsafe(self._filled.set)

    async def take(self) -> str | bytes | Closing:
        """Wait for the next message, and return it."""
        while True:
            with self._lock:
                if self._messages:
                    return self._messages.popleft()
                self._filled.clear()
            await self._filled.wait()
