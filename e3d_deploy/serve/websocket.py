"""WebSocket endpoint: one session per connection."""

import asyncio

import numpy as np
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket, WebSocketDisconnect

from e3d_deploy.serve import protocol
from e3d_deploy.serve.error_responses import problem_of
from e3d_deploy.serve.outbox import Closing, Outbox
from e3d_deploy.serve.protocol import Open, Refused, parse, text_message
from e3d_deploy.serve.security import Rate, origin_allowed, token_matches
from e3d_deploy.serve.service import Service
from e3d_deploy.serve.session import Session
from e3d_deploy.serve.webcam import Webcam

OPEN_S = 5.0
"""Maximum time for the first message to arrive (s)."""
STUCK_S = 20.0
"""Maximum time that a viewer may read nothing while messages wait (s)."""
JOIN_S = 10.0
"""Maximum time for the thread of a session to end after its viewer disconnected (s)."""
TEXTS_PER_SECOND, PICTURES_PER_SECOND = 20, 500
"""Maximum average rates of text messages and pictures from a viewer (per second)."""
BURST_S = 2
"""Maximum burst, in seconds of messages at the maximum average rate."""


class Connection:
    """WebSocket of one viewer: receives messages from the viewer, and sends the messages of the session."""

    def __init__(self, websocket: WebSocket, service: Service) -> None:
        self.websocket, self.service = websocket, service
        self.outbox = Outbox(asyncio.get_running_loop())
        self._texts = Rate(TEXTS_PER_SECOND, BURST_S * TEXTS_PER_SECOND)
        self._pictures = Rate(PICTURES_PER_SECOND, BURST_S * PICTURES_PER_SECOND)

    async def run(self) -> None:
        """Serve the connection until it is closed."""
        offered = protocol.SUBPROTOCOL in self.websocket.scope.get("subprotocols", ())
        await self.websocket.accept(subprotocol=protocol.SUBPROTOCOL if offered else None)
        self.service.connections += 1
        sender = asyncio.create_task(self._send_all())
        receiver = asyncio.create_task(self._receive_all(offered=offered))
        try:
            await asyncio.wait({sender, receiver}, return_when=asyncio.FIRST_COMPLETED)
            if receiver.done() and not sender.done():
                await asyncio.wait({sender}, timeout=STUCK_S)
        finally:
            for task in (sender, receiver):
                task.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)
            self.service.connections -= 1

    async def _send_all(self) -> None:
        """Send messages until the session closes, or the viewer reads none for `STUCK_S`."""
        try:
            while True:
                message = await self.outbox.take()
                async with asyncio.timeout(STUCK_S):
                    if isinstance(message, Closing):
                        await self.websocket.close(message.code)
                        return
                    if isinstance(message, bytes):
                        await self.websocket.send_bytes(message)
                    else:
                        await self.websocket.send_text(message)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            return  # the viewer disconnected or stalled

    async def _receive_all(self, *, offered: bool) -> None:
        """Handle the messages from the viewer until the viewer disconnects or is refused."""
        session = None
        try:
            if not offered:
                raise Refused(protocol.BAD_MESSAGE, "protocol", f"expected the subprotocol {protocol.SUBPROTOCOL}")
            session, webcam = self.service.open_session(await self._first(), self.outbox)
            while True:
                await self._take_message(session, webcam)
        except WebSocketDisconnect:
            self.outbox.close(protocol.END)
        except Refused as refusal:
            self._refuse(refusal)
        except Exception as error:
            self._refuse(Refused(protocol.FAILED, "internal", problem_of(error).message))
        finally:
            if session is not None:
                session.stop()
                await asyncio.shield(asyncio.to_thread(session.join, JOIN_S))

    def _refuse(self, refusal: Refused) -> None:
        self.service.metrics.errors.labels(refusal.code).inc()
        self.outbox.close(refusal.close_code, text_message("error", code=refusal.code, message=refusal.message))

    async def _first(self) -> Open:
        """Return the first message, and check the origin and the token.

        Raises:
            Refused: the origin or the token is not accepted, too many connections are open, the message is invalid, or
                no message arrived within `OPEN_S`.
        """
        if not origin_allowed(HTTPConnection(self.websocket.scope).headers, self.service.settings):
            raise Refused(protocol.FORBIDDEN, "origin", "pages of other origins may not use this server")
        if self.service.connections > self.service.max_connections:
            raise Refused(protocol.TOO_MANY, "full", "too many connections are open")
        try:
            async with asyncio.timeout(OPEN_S):
                text, _ = await self._receive()
        except TimeoutError:
            raise Refused(protocol.IDLE, "idle", f"no message `open` arrived within {OPEN_S:g} s") from None
        message = None if text is None else parse(text)
        if not isinstance(message, Open):
            raise Refused(protocol.BAD_MESSAGE, "bad_message", "the first message must be `open`")
        if not token_matches(self.service.settings.token, message.token):
            raise Refused(protocol.BAD_TOKEN, "token", "the token is missing or wrong")
        return message

    async def _receive(self) -> tuple[str | None, bytes | None]:
        """Return the next message as text or as bytes.

        Raises:
            Refused: the viewer exceeds the rate limit.
            WebSocketDisconnect: the viewer disconnected.
        """
        message = await self.websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", protocol.END))
        text, content = message.get("text"), message.get("bytes")
        if not (self._pictures if text is None else self._texts).allows():
            raise Refused(protocol.TOO_MANY, "rate", "too many messages; send fewer per second")
        return text, content

    async def _take_message(self, session: Session, webcam: Webcam | None) -> None:
        text, content = await self._receive()
        if text is not None:
            message = parse(text)
            if isinstance(message, Open):
                raise Refused(protocol.BAD_MESSAGE, "bad_message", "the session is already open")
            session.add_command(message)
        elif webcam is None:
            raise Refused(protocol.BAD_MESSAGE, "bad_message", "pictures are accepted only with the source `webcam`")
        else:
            shape, content = self.service.form.shape, content or b""
            if len(content) != self.service.picture_bytes:
                expected = f"{self.service.picture_bytes} bytes, uint8 {list(shape)}"
                raise Refused(
                    protocol.BAD_MESSAGE, "bad_picture", f"picture: got {len(content)} bytes, expected {expected}"
                )
            webcam.put(np.frombuffer(content, np.uint8).reshape(shape))
