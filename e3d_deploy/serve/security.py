"""Check the token, Host and Origin of every request before its body is read, and add security headers to responses."""

import asyncio
import hmac
import time
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from e3d_deploy.serve.error_responses import Problem, response_of
from e3d_deploy.serve.metrics import Metrics
from e3d_deploy.serve.page_files import page_files
from e3d_deploy.serve.settings import ServerSettings, is_loopback

HEALTH = frozenset({"/healthz", "/readyz"})
"""Paths, in addition to those of the page, that need no token."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Security headers of every response."""
LINGER_S = 2.0
"""Maximum time for reading the rest of a refused upload (s), so that the client receives the response."""
DEFAULT_PORTS = {"http": 80, "https": 443}


def token_matches(token: str | None, given: str | None) -> bool:
    """Compare a given token with the required token in constant time.

    Args:
        token: required token; None accepts every request.
        given: token that the client sent, if any.
    """
    return token is None or hmac.compare_digest(token.encode(), (given or "").encode("utf-8", "surrogatepass"))


def origin_allowed(headers: Headers, settings: ServerSettings) -> bool:
    """Return True if the header Origin is missing, or names this server or an allowed origin.

    Programs other than browsers usually do not send this header.
    """
    origin = headers.get("origin")
    if origin is None:
        return True
    place = _host_and_port(origin)
    own = _host_and_port(f"{origin.partition(':')[0]}://{headers.get('host', '')}")
    return origin in settings.origins or (place is not None and place == own)


def host_allowed(headers: Headers, settings: ServerSettings) -> bool:
    """Return True if the server accepts the header Host of a request.

    A server on loopback accepts only names of this machine and hosts of allowed origins. This blocks DNS rebinding, in
    which the host name of a foreign page is made to resolve to this machine. A server that is not on loopback accepts
    every Host.
    """
    if not settings.is_loopback:
        return True
    host = _host_and_port(f"http://{headers.get('host', '')}")
    return host is not None and (is_loopback(host[0]) or host[0] in {_name(origin) for origin in settings.origins})


def _name(address: str) -> str | None:
    place = _host_and_port(address)
    return place and place[0]


def _host_and_port(address: str) -> tuple[str, int | None] | None:
    """Return the host and port of an address; None if the address is invalid, lacks a host or contains a user."""
    try:
        parts = urlsplit(address)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname and not parts.username else None


class _Body:
    """Body of a request, which records whether all of it was read."""

    def __init__(self, headers: Headers, receive: Receive) -> None:
        self.whole = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        """True after all of the body was read; true from the start if there is no body."""
        self._receive = receive

    async def receive(self) -> Message:
        """Return the next message of the request."""
        message = await self._receive()
        self.whole |= not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Read and discard the rest of the body, for at most `LINGER_S`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self.whole:
                    await self.receive()


class Guard:
    """Middleware that refuses requests with a foreign Host or Origin or without the token, and adds security headers.

    For a WebSocket, it checks only Host. The endpoint in `websocket` checks the token, which arrives in the first
    message, because browsers cannot send headers with a WebSocket. The endpoint also checks the origin, so that the
    client gets the reason for a refusal.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._open_paths = HEALTH | page_files().keys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            if host_allowed(headers, self.settings):
                await self.app(scope, receive, send)
            else:
                self.metrics.errors.labels("host").inc()
                await send({"type": "websocket.close", "code": 1008})  # a close before acceptance becomes HTTP 403
            return

        body = _Body(headers, receive)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer[name] = value
                answer.setdefault("Cache-Control", "no-store")
                if not body.whole:
                    answer["Connection"] = "close"
            elif not body.whole and not message.get("more_body", False):
                # The client gets the response while it still sends its body. If the connection were closed now, many
                # clients would report a broken connection instead.
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal is None:
            await self.app(scope, body.receive, send_guarded)
            return
        self.metrics.errors.labels(refusal.code).inc()
        await response_of(refusal)(scope, body.receive, send_guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        if not host_allowed(headers, self.settings):
            return Problem(403, "host", "this server accepts only host names of this machine, such as localhost")
        if not origin_allowed(headers, self.settings):
            return Problem(403, "origin", "pages of other origins may not use this server")
        if scope["path"] in self._open_paths:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if token_matches(self.settings.token, given if kind.lower() == "bearer" else None):
            return None
        return Problem(401, "token", "the token is missing or wrong; send `Authorization: Bearer TOKEN`")


class Rate:
    """Rate limiter (token bucket).

    Args:
        per_second: maximum average rate (messages per second).
        burst: maximum number of messages in a burst after a pause.
    """

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._left, self._at = burst, time.monotonic()

    def allows(self) -> bool:
        """Count a message, and return True if it is within the limit. A message beyond the limit is not counted."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
