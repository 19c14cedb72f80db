"""Connections of uvicorn that are cut when their peer stalls or floods them."""

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from e3d_deploy.serve.security import Rate
from e3d_deploy.serve.websocket import STUCK_S

HEAD_S = 10.0
"""Time in which a client has to send the head of a request (s)."""
PIECE_BYTES = 16 * 1024
"""Bytes that are parsed at a time, so that a flood of tiny frames is noticed early."""
CUT_S = 1.0
"""Time that a WebSocket has to close once the server stops (s)."""
FRAMES_PER_SECOND, BURST_FRAMES = 1000, 2000
"""Pings, pongs and continued frames of a WebSocket that are taken, on average and at once."""


class Deadline:
    """Cuts a connection whose peer reads nothing for `STUCK_S`, which an orderly close would wait for."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to count: the peer's buffers are full."""
        self.stop()
        left = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(STUCK_S, self._check, left)

    def stop(self) -> None:
        """Stop counting: the peer reads, or is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, left: int) -> None:
        if self._transport.get_write_buffer_size() < left:
            self.start()
        else:
            self._transport.abort()


class HttpProtocol(H11Protocol):
    """HTTP connection that is cut when its client takes longer than `HEAD_S` to ask, or does not read the answer."""

    _asking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._reading = Deadline(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        self._await_head()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._reading.start()

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        self._reading.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_asking()
        self._reading.stop()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        # uvicorn itself limits the time between two requests alone.
        if self.conn.their_state is not h11.IDLE:
            self._stop_asking()
        elif self._asking is None:
            self._asking = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_asking(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """WebSocket that is cut when its viewer reads nothing, or floods it with frames that are no messages."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over a connection."""
        super().connection_made(transport)
        self._reading = Deadline(cast(asyncio.Transport, transport))
        self._frames = Rate(FRAMES_PER_SECOND, BURST_FRAMES)

    def data_received(self, data: bytes) -> None:
        """Take frames, a piece at a time."""
        for start in range(0, len(data), PIECE_BYTES):
            if not self.transport.is_closing():
                super().data_received(data[start : start + PIECE_BYTES])

    def handle_ping(self) -> None:
        """Answer a ping."""
        self._count_frame()
        super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        """Take an answer to a ping, or one to none."""
        self._count_frame()
        super().handle_pong(event)

    def handle_cont(self, event: Frame) -> None:
        """Take a further part of a message."""
        self._count_frame()
        super().handle_cont(event)

    def pause_writing(self) -> None:
        """Wait until the viewer reads."""
        super().pause_writing()
        self._reading.start()

    def resume_writing(self) -> None:
        """Go on: the viewer reads."""
        super().resume_writing()
        self._reading.stop()

    def shutdown(self) -> None:
        """Close the connection as the server stops, and cut it where the peer does not hear of that."""
        super().shutdown()
        self.loop.call_later(CUT_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._reading.stop()
        super().connection_lost(exc)

    def _count_frame(self) -> None:
        if not self._frames.allows():
            self.transport.abort()
