"""Queue of the messages to one viewer."""

import asyncio
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Closing:
    """Marker that follows the last message: the connection is then closed with this close code."""

    code: int


class Outbox:
    """Bounded queue of the messages to one viewer, filled by any thread and emptied on the event loop.

    When `length` pictures are queued, a new picture replaces the oldest one, so a slow viewer never blocks a session.
    Text messages are never dropped; their number is bounded by the rate limit of the requests that cause them.

    Args:
        loop: event loop of the connection.
        length: maximum number of queued pictures.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, length: int = 2) -> None:
        self.dropped = 0
        """Number of pictures that were replaced before they were sent."""
        self._loop, self._length = loop, length
        self._messages: deque[str | bytes | Closing] = deque()
        self._lock = threading.Lock()
        self._filled = asyncio.Event()
        self._closed = False

    def put(self, message: str | bytes) -> None:
        """Add a message; after `close`, do nothing."""
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
        """Queue final messages and the end of the connection. Later calls do nothing.

        Args:
            code: close code of the WebSocket.
            messages: text messages to send before the connection is closed.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._messages.extend((*messages, Closing(code)))
        self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the event loop is closed, so the connection is closed too
            self._loop.call_soon_threadsafe(self._filled.set)

    async def take(self) -> str | bytes | Closing:
        """Wait for the next message; remove and return it."""
        while True:
            with self._lock:
                if self._messages:
                    return self._messages.popleft()
                self._filled.clear()
            await self._filled.wait()
