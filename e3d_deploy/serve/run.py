"""Run the application with uvicorn in a thread."""

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
from e3d_deploy.serve.settings import ServerSettings

log = logging.getLogger(__name__)

SEND_BUFFER_BYTES = 256 * 1024
"""Size of the send buffer of a connection (bytes); with a larger buffer, a slow viewer would see older pictures."""
GRACE_S = 5
"""Maximum time for connections to close after all sessions have ended (s)."""


class Running:
    """Server that runs in a thread of its own.

    Args:
        server: configured uvicorn server.
        listener: open socket on which the server listens.
        service: state that the endpoints share.
        address: address of the page, with the token in the fragment. Browsers do not send fragments to servers.
    """

    def __init__(self, server: uvicorn.Server, listener: socket.socket, service: Service, address: str) -> None:
        self.service, self.address = service, address
        self._server, self._listener = server, listener
        self._stopped = False
        self._error: Exception | None = None
        self._loop = asyncio.new_event_loop()
        # In Python 3.11, `Thread.join` regards a thread as ended after a signal interrupted an earlier `join`.
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="e3d serve", daemon=True)

    def start(self) -> None:
        """Start the server, and wait until it accepts requests.

        Raises:
            E3DError: the server ended before it accepted requests.
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
            E3DError: the server ended without a call to `stop`.
        """
        self._ended.wait()
        if not self._stopped:
            raise E3DError("serve: the server ended unexpectedly; `e3d --debug serve …` shows why") from self._error

    def stop(self) -> None:
        """Refuse new work, wait for running work, and close all connections.

        Each of the two waits, for running work and for the thread, takes at most `DRAIN_S + GRACE_S`.
        """
        self._stopped = True
        if not self._ended.is_set():
            # Draining may exceed the timeout, and the event loop may end before or during the call.
            with suppress(TimeoutError, RuntimeError, CancelledError):
                asyncio.run_coroutine_threadsafe(self.service.drain(), self._loop).result(DRAIN_S + GRACE_S)
        self._server.should_exit = True
        self._thread.join(DRAIN_S + GRACE_S)


@contextmanager
def serving(predictor: Predictor, settings: ServerSettings) -> Iterator[Running]:
    """Serve a model while the `with` block runs; the server accepts requests when the block begins.

    Raises:
        ConfigError: the host and port cannot be bound, or the certificate or its key cannot be read.
        ResourceLimit: the memory limit is too small for one stream.
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


def _config(app: Any, settings: ServerSettings, service: Service) -> uvicorn.Config:
    tls: dict[str, Any] = {}
    if settings.certificate is not None and settings.key is not None:
        tls = {"ssl_certfile": str(settings.certificate), "ssl_keyfile": str(settings.key)}
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_max_size=service.message_bytes,
        ws_per_message_deflate=False,  # pictures hardly compress, and a small message could unpack to a large one
        log_config=None,
        log_level="critical",  # uvicorn would log tracebacks for invalid input of clients
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the address of a client is not used
        limit_concurrency=service.max_connections,  # does not include WebSockets, which `websocket` limits
        timeout_graceful_shutdown=GRACE_S,
        **tls,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--tls-cert {settings.certificate}, --tls-key {settings.key}: {error.strerror or error}; give a "
            "certificate and its key as PEM files without a password"
        ) from error
    return config


@contextmanager
def listening(settings: ServerSettings) -> Iterator[socket.socket]:
    """Yield a socket that listens on the host and port of the settings, and close it after the block.

    Raises:
        ConfigError: the host is unknown or is not an address of this machine.
        ConfigError: the port is in use or not permitted.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address, family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"--host {settings.host} --port {settings.port}: {reason}; give another host or port, or --port 0 for any "
            "free port"
        ) from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # connections inherit it
        yield listener


def address_of(settings: ServerSettings, port: int) -> str:
    """Return the address of the page, with the token in its fragment."""
    scheme = "http" if settings.certificate is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    token = "" if settings.token is None else f"#token={quote(settings.token, safe='')}"
    return f"{scheme}://{host}:{port}/{token}"
