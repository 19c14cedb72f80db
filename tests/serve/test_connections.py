"""Connections that stall, and connections that flood the server with frames."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest

from e3d_deploy.serve import connections
from e3d_deploy.serve.run import Running
from tests.serve.conftest import WAIT_S, Serve, Viewer
from tests.serve.test_websocket import frame_of, shaking_hands


@contextmanager
def connected(served: Running) -> Iterator[socket.socket]:
    """Yield a TCP connection to a server."""
    name, _, port = served.address.removeprefix("http://").rstrip("/").partition(":")
    with socket.create_connection((name, int(port)), timeout=WAIT_S) as found:
        yield found


def send_until_cut_off(socket_: socket.socket, data: bytes) -> None:
    """Send data repeatedly until the server closes the connection; fail if sending blocks for `WAIT_S`."""
    with suppress(ConnectionResetError, BrokenPipeError):
        while True:
            socket_.sendall(data)


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: 127"])
def test_a_client_that_never_ends_its_request_is_cut_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    with connected(serve()) as silent:
        silent.sendall(sent)
        with suppress(ConnectionResetError):
            while silent.recv(4096):
                pass


def test_a_client_that_waits_between_requests_is_served(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", WAIT_S)
    with httpx.Client(base_url=serve().address) as client:
        assert [client.get("/healthz").status_code for _ in range(3)] == [200] * 3


def test_a_client_that_does_not_read_its_response_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STUCK_S", 0.2)
    request = b"GET /page/app.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with connected(serve()) as deaf:
        send_until_cut_off(deaf, request)  # the responses fill all buffers, and the server stops writing


@pytest.mark.parametrize(
    "frame", [frame_of(9, b"x"), frame_of(10, b""), bytes([0, 0x80, 0, 0, 0, 0])], ids=["ping", "pong", "part"]
)
def test_a_flood_of_frames_that_are_not_messages_is_cut_off(serve: Serve, frame: bytes) -> None:
    served = serve()
    with Viewer(served) as other, shaking_hands(served) as flooding:
        other.open()
        assert b" 101 " in flooding.recv(4096)
        flooding.sendall(bytes([2, 0x80, 0, 0, 0, 0]))  # begins a message
        send_until_cut_off(flooding, 1000 * frame)
        other.show(1)
        assert other.pictures()[0]["index"] == 0


def test_a_message_in_parts_and_a_ping_are_accepted(serve: Serve) -> None:
    with Viewer(serve()) as viewer:
        text = json.dumps({"type": "open", "source": "webcam", "horizon": 1})
        viewer.socket.ping()
        viewer.socket.send(iter(text))
        assert viewer.text()["type"] == "ready"
        viewer.socket.send([b"\x01"] * 32)
        assert viewer.pictures()[0]["index"] == 0
