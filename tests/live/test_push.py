"""Push a video to peers, including peers that disconnect or never read."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
import pytest

from e3d_deploy.data.live.feed import Arrival
from e3d_deploy.errors import ConfigError, SourceLost
from e3d_deploy.live import push as module
from e3d_deploy.live.follower import FollowedPicture
from e3d_deploy.live.observation import Observation
from e3d_deploy.live.push import Push, check_push, shown
from tests.data.live.peers import wait_until

SIZE = (64, 64)


def observation(number: int, size: tuple[int, int] = SIZE) -> Observation:
    """Return an observation of a picture of noise, which needs many bytes as a video."""
    picture = np.random.default_rng(number).integers(0, 256, (*size, 1), np.uint8)
    followed = FollowedPicture(
        index=number,
        age=number + 1,
        cut=False,
        picture=picture,
        forecast=np.zeros((1, 1, *size), np.float32),
        expected=(),
        errors=(),
        copy_errors=(),
        novelty=(),
        latency_ms=1.0,
    )
    arrival = Arrival(picture=picture, index=number, time_s=None, arrived_s=0.0, begins_video=number == 0)
    return Observation(source="a", arrival=arrival, followed=followed, latency_ms=1.0, dropped=0)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def rtsp_listener() -> Iterator[tuple[str, list[Any]]]:
    """Yield the address of a peer that accepts one video over RTSP, and the list of frames that it receives."""
    url, frames = f"rtsp://127.0.0.1:{free_port()}/live", list[Any]()

    def listen() -> None:
        with av.open(url, options={"rtsp_flags": "listen", "listen_timeout": "60"}) as container:
            frames.extend((frame.height, frame.width) for frame in container.decode(video=0))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield url, frames
    finally:
        thread.join(60)


def connected(url: str, size: tuple[int, int] = SIZE, **options: Any) -> Push:
    """Return a push to a peer; retry while the peer does not listen yet."""
    for _ in range(200):
        try:
            return Push(url, (size[0], 2 * size[1]), frames_per_second=10, **options)
        except SourceLost:
            threading.Event().wait(0.05)
    raise AssertionError("nobody listens")


def test_a_peer_gets_every_picture_by_rtsp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 60.0)
    monkeypatch.setattr(module, "QUEUE", 100)
    with rtsp_listener() as (url, frames):
        push = connected(url, zoom=2)
        for number in range(20):
            push.put(observation(number))
        push.close()
    assert frames == [(128, 256)] * 20
    assert (push.sent, push.not_sent, push.lost) == (20, 0, None)


def test_the_error_of_a_peer_that_refuses_shows_no_secrets() -> None:
    with pytest.raises(SourceLost, match=r"^push to rtsp://127.0.0.1:\d+: the peer .*refused.*; check that") as caught:
        Push(f"rtsp://user:secret@127.0.0.1:{free_port()}/key", SIZE, frames_per_second=10)
    assert not any(word in str(caught.value) for word in ("user", "secret", "key"))


SILENT = """
import socket
from e3d_deploy.errors import SourceLost
from e3d_deploy.live import push
push.CONNECT_S = 0.5
with socket.create_server(("127.0.0.1", 0)) as server:
    try:
        push.Push(f"rtsp://127.0.0.1:{server.getsockname()[1]}/a", (64, 128), frames_per_second=10)
    except SourceLost as error:
        print(error)
"""


def test_a_peer_that_never_answers_is_an_error() -> None:
    """The test uses a process of its own, because PyAV holds the lock of the interpreter while it waits."""
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, check=True, timeout=60)
    assert "the peer did not accept the video within 0.5 s; check that" in done.stdout


def test_a_peer_that_disconnects_is_reported_once_and_unsent_pictures_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        said: list[str] = []
        push = connected(f"tcp://127.0.0.1:{server.getsockname()[1]}", remark=said.append)
        peer, _ = server.accept()
        peer.close()
        number = 0

        def is_lost() -> bool:
            nonlocal number
            push.put(observation(number))
            number += 1
            return push.lost is not None

        wait_until(is_lost)
        push.put(observation(number))
        push.close()
    assert push.not_sent >= 1
    assert push.sent + push.not_sent == number + 1
    (line,) = said
    assert "the peer was lost" in line
    assert isinstance(push.lost, SourceLost)


def test_a_peer_that_never_reads_does_not_block_the_push(monkeypatch: pytest.MonkeyPatch) -> None:
    large = (512, 512)
    monkeypatch.setattr(module, "CLOSE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        push = connected(f"tcp://127.0.0.1:{server.getsockname()[1]}", large)
        peer, _ = server.accept()
        with peer:
            number, stalled_s = 0, 0.0

            def has_stalled() -> bool:
                nonlocal number, stalled_s
                if push.not_sent == 0:
                    push.put(observation(number, large))
                    number, stalled_s = number + 1, time.monotonic()
                return time.monotonic() - stalled_s > 2  # for 2 s, the peer takes none of the queued pictures

            wait_until(has_stalled)
            for _ in range(2 * module.QUEUE):
                push.put(observation(number, large))
            assert push.not_sent > module.QUEUE
            push.close()
            assert isinstance(push.lost, SourceLost)
            assert "does not receive the video" in str(push.lost)
        push._thread.join(60)  # the peer closed the connection, so FFmpeg returns


@pytest.mark.parametrize(
    "url", ["file:///tmp/a", "rtsp:///a", "a.mp4", "srt://a:1", "rtsp://u:p@h:x/a", "rtsp://[u:p@h/a"]
)
def test_unsupported_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected an address such as rtsp://host/path") as caught:
        check_push(url)
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_an_address_without_a_port_is_refused_if_its_scheme_has_no_default_port(scheme: str) -> None:
    with pytest.raises(ConfigError, match=f"expected {scheme}://HOST:PORT; add the port"):
        check_push(f"{scheme}://host")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("rtmp://user:pass@[::1]:1935/app/streamkey?token=a", "rtmp://[::1]:1935"),
        ("rtmp://host/app/key@1", "rtmp://host"),
        ("rtsp://user:pa/ss@host/a", "rtsp://…"),
        ("rtsp://user:pass@:554/a", "rtsp://…"),
        ("rtsp://[pass@host/a", "rtsp://…"),
        ("user:pass@host/key", "…"),
    ],
)
def test_secrets_of_an_address_are_not_shown(url: str, expected: str) -> None:
    assert shown(url) == expected
