"""Servers in this process with a fake backend, and their clients."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from e3d_deploy.data.write import write_clips
from e3d_deploy.runtime import Predictor
from e3d_deploy.serve.offers import offers_of
from e3d_deploy.serve.protocol import SUBPROTOCOL, split_message
from e3d_deploy.serve.run import Running, serving
from e3d_deploy.serve.settings import ServerSettings
from tests.data.live.conftest import _no_proxy, start  # noqa: F401 (fixtures)

WAIT_S = 30.0
"""Maximum time that a test waits for a message before it fails (s)."""
TOKEN = "correct horse"

Serve = Callable[..., Running]


def patiently() -> Iterator[None]:
    """Yield until the loop is left; fail after twice `WAIT_S`."""
    until_s = time.monotonic() + 2 * WAIT_S
    while time.monotonic() < until_s:
        yield
    raise AssertionError("the loop did not end in time")


def settings_of(**changes: Any) -> ServerSettings:
    """Return the settings of a small server on a free port, with changes."""
    return ServerSettings(**{"name": "fake", "precision": "fp32", "port": 0, "horizon": 3, **changes})


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Write a video of 40 pictures of 8×4 pixels at 20 pictures per second, and return its path."""
    path = tmp_path / "film" / "walk.mp4"
    path.parent.mkdir()
    frames = np.linspace(0, 1, 40, dtype=np.float32)[None, :, None, None, None] * np.ones((1, 40, 1, 4, 8), np.float32)
    write_clips(path, frames, frames_per_second=20)
    return path


@pytest.fixture
def serve(predictor: Predictor) -> Iterator[Serve]:
    """Yield a function that starts a server on a free port; the servers are stopped after the test."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(serving(predictor, settings_of(**changes)))


@pytest.fixture
def client(serve: Serve) -> Iterator[httpx.Client]:
    """Yield an HTTP client of a server with default settings."""
    with httpx.Client(base_url=serve().address, timeout=WAIT_S) as client:
        yield client


def offered(*paths: Path) -> dict[str, Any]:
    """Return the setting that offers files as sources."""
    return {"offers": offers_of([str(path) for path in paths], lambda _: None)}


class Viewer:
    """WebSocket client of a server."""

    def __init__(self, served: Running, **options: Any) -> None:
        address = served.address.partition("#")[0].replace("http", "ws", 1) + "v1/live"
        subprotocols = options.pop("subprotocols", [SUBPROTOCOL])
        self._connecting = connect(address, subprotocols=subprotocols, max_size=None, max_queue=None, **options)

    def __enter__(self) -> "Viewer":
        self.socket: ClientConnection = self._connecting.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._connecting.__exit__(*raised)

    def say(self, kind: str, **fields: Any) -> None:
        """Send a text message."""
        self.socket.send(json.dumps({"type": kind, **fields}))

    def open(self, source: str = "webcam", horizon: int = 2, token: str | None = None) -> dict[str, Any]:
        """Open a session, and return the first text message of the server."""
        self.say("open", source=source, horizon=horizon, token=token)
        return self.text()

    def show(self, value: int) -> None:
        """Send a picture of one gray level."""
        self.socket.send(bytes([value]) * 32)

    def next(self) -> str | bytes:
        """Return the next message."""
        return self.socket.recv(timeout=WAIT_S)

    def text(self, kind: str | None = None) -> dict[str, Any]:
        """Return the next text message, or the next text message of a type."""
        found: dict[str, Any] = {}
        for _ in patiently():
            message = self.next()
            if isinstance(message, str):
                found = json.loads(message)
                if kind in (None, found["type"]):
                    break
        return found

    def pictures(self) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
        """Return the header of the next binary message, and its pictures by name."""
        message: str | bytes = ""
        for _ in patiently():
            if not isinstance(message := self.next(), str):
                break
        assert isinstance(message, bytes)
        header, payload = split_message(message)
        arrays = np.frombuffer(payload, np.uint8).reshape(len(header["pictures"]), 4, 8, 1)
        return header, dict(zip(header["pictures"], arrays, strict=True))

    def end(self) -> tuple[list[dict[str, Any]], int | None]:
        """Return the text messages up to the end, and the close code."""
        texts = []
        try:
            for _ in patiently():
                message = self.next()
                if isinstance(message, str):
                    texts.append(json.loads(message))
        except ConnectionClosed:
            return texts, self.socket.close_code
