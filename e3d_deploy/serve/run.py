"""Run the application in uvicorn, in a thread, until it is told to stop."""

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

import uvicorn

from e3d_deploy.errors import ConfigError, E3DError
from e3d_deploy.runtime import Predictor
from e3d_deploy.serve.app import create_app
from e3d_deploy.serve.connections import HttpProtocol, WebSocketProtocol
from e3d_deploy.serve.service import DRAIN_S, Service
from e3d_deploy.serve.settings import Settings

log = logging.getLogger(__name__)

SEND_BUFFER_BYTES = 256 * 1024
"""Bytes that the system may hold for a viewer, who would see old pictures if it were more."""
GRACE_S = 5
"""Time that connections have to end after the sessions have (s)."""


class Running:
    """A server that answers, in a thread of its own.

    Args:
        address: address of the page, with the token in its fragment, which browsers do not send.
    """

    def __init__(self, server: uvicorn.Server, listener: socket.socket, service: Service, address: str) -> None:
        self.service, self.address = service, address
        self._server, self._listener = server, listener
        self._stopped = False
        self._error: Exception | None = None
        self._loop = asyncio.new_event_loop()
        # Python 3.11 takes a thread for ended once a signal interrupts its `join`, and would not wait for it again.
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="e3d serve", daemon=True)

    def start(self) -> None:
        """Begin to answer.

        Raises:
            E3DError: the server ended at once.
        """
        self._thread.start()
        while not self._server.started and not self._ended.wait(0.01):
            pass
        if not self._server.started:
            raise E3DError("serve: the server did not start; `e3d --debug serve …` shows why") from self._error

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._server.serve(sockets=[self._listener]))
        except Exception as error:
            self._error = error
        finally:
            self._ended.set()

    def wait(self) -> None:
        """Wait until the server has ended.

        Raises:
            E3DError: nobody had stopped it.
        """
        self._ended.wait()
        if not self._stopped:
            raise E3DError("serve: the server ended by itself; `e3d --debug serve …` shows why") from self._error

    def stop(self) -> None:
        """Take nothing new, let what runs end, and close all connections; bounded in time."""
        self._stopped = True
        if not self._ended.is_set():
            with suppress(TimeoutError, RuntimeError, CancelledError):  # it takes too long, or has ended meanwhile
                asyncio.run_coroutine_threadsafe(self.service.drain(), self._loop).result(DRAIN_S + GRACE_S)
        self._server.should_exit = True
        self._thread.join(DRAIN_S + GRACE_S)


@contextmanager
def running(predictor: Predictor, settings: Settings) -> Iterator[Running]:
    """Serve a model while the block runs; the port is open when it begins.

    Raises:
        ConfigError: an address that cannot be had, or a certificate that cannot be read.
        ResourceLimit: the memory limit has no room for a stream.
    """
    with listening(settings) as listener:
        app = create_app(predictor, settings)
        service: Service = app.state.service
        try:
            server = uvicorn.Server(_config(app, settings, service))
            served = Running(server, listener, service, address_of(settings, listener.getsockname()[1]))
            try:
                served.start()
                yield served
            finally:
                served.stop()
        finally:
            service.close()


def _config(app: Any, settings: Settings, service: Service) -> uvicorn.Config:
    tls: dict[str, Any] = {}
    if settings.certificate is not None and settings.key is not None:
        tls = {"ssl_certfile": str(settings.certificate), "ssl_keyfile": str(settings.key)}
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_max_size=service.message_bytes,
        ws_per_message_deflate=False,  # pictures do not shrink, and a small message could unpack to a large one
        log_config=None,
        log_level="critical",  # what a client sends is no reason for a traceback
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing depends on who asks
        limit_concurrency=service.most_connections,  # WebSockets are not among them; `websocket` counts those
        timeout_graceful_shutdown=GRACE_S,
        **tls,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--tls-cert {settings.certificate}, --tls-key {settings.key}: {error.strerror or error}; give a "
            "certificate and its key as PEM, without a password"
        ) from error
    return config


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """Open the port.

    Raises:
        ConfigError: no such host, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address, family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"--host {settings.host} --port {settings.port}: {reason}; give others, or --port 0 for a free one"
        ) from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # connections inherit it
        yield listener


def address_of(settings: Settings, port: int) -> str:
    """Return the address of the page."""
    scheme = "http" if settings.certificate is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    token = "" if settings.token is None else f"#token={quote(settings.token, safe='')}"
    return f"{scheme}://{host}:{port}/{token}"
