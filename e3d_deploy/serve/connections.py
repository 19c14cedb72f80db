"""Protocols for uvicorn that abort connections whose client stalls or floods the server."""

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from e3d_deploy.serve.security import Rate
from e3d_deploy.serve.websocket import STUCK_S

HEAD_S = 10.0
"""Maximum time for a client to send the head of a request (s)."""
PIECE_BYTES = 16 * 1024
"""Number of bytes that are parsed at a time. Small pieces reveal a flood of tiny WebSocket frames early."""
CUT_S = 1.0
"""Maximum time for a WebSocket to close when the server stops (s)."""
FRAMES_PER_SECOND, BURST_FRAMES = 1000, 2000
"""Maximum rate and maximum burst of pings, pongs and continuation frames on a WebSocket. Frames are those of the
WebSocket protocol."""


class Deadline:
    """Aborts a connection whose client reads nothing for `STUCK_S`, because a regular close would block."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the timer, because the write buffer is full."""
        self.stop()
        left = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(STUCK_S, self._check, left)

    def stop(self) -> None:
        """Stop the timer, because the client reads again or the connection is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, left: int) -> None:
        if self._transport.get_write_buffer_size() < left:
            self.start()
        else:
            self._transport.abort()


class HttpProtocol(H11Protocol):
    """HTTP connection that is aborted if its client is too slow.

    A client has `HEAD_S` to send the head of a request, and may not stop reading a response for `STUCK_S`.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request."""
        super().connection_made(transport)
        self._read_deadline = Deadline(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Parse a part of a request, and start or stop the timer for its head."""
        super().data_received(data)
        self._await_head()

    def pause_writing(self) -> None:
        """Stop writing, and start the timer for the client to read."""
        super().pause_writing()
        self._read_deadline.start()

    def resume_writing(self) -> None:
        """Continue writing, and stop the timer."""
        super().resume_writing()
        self._read_deadline.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._stop_head_timer()
        self._read_deadline.stop()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        # uvicorn limits only the idle time between two requests.
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """WebSocket that is aborted if its client reads nothing, or floods it with control and continuation frames."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Prepare the limits of a new connection."""
        super().connection_made(transport)
        self._read_deadline = Deadline(cast(asyncio.Transport, transport))
        self._frames = Rate(FRAMES_PER_SECOND, BURST_FRAMES)

    def data_received(self, data: bytes) -> None:
        """Parse frames in pieces of `PIECE_BYTES`."""
        for start in range(0, len(data), PIECE_BYTES):
            if not self.transport.is_closing():
                super().data_received(data[start : start + PIECE_BYTES])

    def handle_ping(self) -> None:
        """Count and answer a ping."""
        self._count_frame()
        super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        """Count and handle a pong, solicited or not."""
        self._count_frame()
        super().handle_pong(event)

    def handle_cont(self, event: Frame) -> None:
        """Count and handle a continuation frame."""
        self._count_frame()
        super().handle_cont(event)

    def pause_writing(self) -> None:
        """Stop writing, and start the timer for the client to read."""
        super().pause_writing()
        self._read_deadline.start()

    def resume_writing(self) -> None:
        """Continue writing, and stop the timer."""
        super().resume_writing()
        self._read_deadline.stop()

    def shutdown(self) -> None:
        """Close the connection because the server stops, and abort it if the client does not close within `CUT_S`."""
        super().shutdown()
        self.loop.call_later(CUT_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._read_deadline.stop()
        super().connection_lost(exc)

    def _count_frame(self) -> None:
        if not self._frames.allows():
            self.transport.abort()
