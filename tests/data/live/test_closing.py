"""A feed closes immediately, from any thread, and leaves no thread, connection or file open."""

import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from e3d_deploy.data.form import Form
from e3d_deploy.data.live import decoding
from e3d_deploy.data.live.address import parse_address
from e3d_deploy.data.live.feed import Ended, Feed, FeedOptions
from e3d_deploy.data.remarks import Remarks
from tests.data.live.conftest import Start
from tests.data.live.peers import Peer, answering, mjpeg, mp4, part, picture, rtsp, wait_until

FORM = Form(image_size=(24, 32), channels=1)
BLOCK = FeedOptions(policy="block", silence_s=600)
LEAVE = """
import sys
from e3d_deploy.data.form import Form
from e3d_deploy.data.live import decoding
from e3d_deploy.data.live.address import parse_address
from e3d_deploy.data.live.feed import Feed, FeedOptions
address = parse_address(sys.argv[1], raw=(24, 32, 1))
feed = Feed(address, Form(image_size=(24, 32), channels=1), FeedOptions(policy="block", silence_s=600))
while feed.take(float(sys.argv[2])):
    pass
"""


def feed(text: str, options: FeedOptions = BLOCK, **more: Any) -> Feed:
    return Feed(parse_address(text, raw=FORM.shape), FORM, options, remarks=Remarks(silent=True), **more)


def threads(text: str) -> list[str]:
    """Return the threads that read a source."""
    return [one.name for one in threading.enumerate() if one.name.endswith(f" {text}")]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("scheme", "serve"),
    [("http", mjpeg([picture(0)] * 20, then_silent=True)), ("rtsp", rtsp(20, then_silent=True))],
)
def test_a_feed_that_ffmpeg_blocks_is_closed_from_another_thread(
    scheme: str, serve: Callable[..., None], start: Start
) -> None:
    source = feed(f"{scheme}://127.0.0.1:{start(serve).port}/")
    taken: list[object] = []

    def take() -> None:
        taken.extend(source)
        taken.append("ended")

    taker = threading.Thread(target=take)
    taker.start()
    wait_until(lambda: len(taken) >= 19)  # FFmpeg keeps the last picture of H.264 until the next one begins
    source.close()
    taker.join(60)
    assert taken[-1] == "ended"
    assert not source._thread.is_alive()  # though FFmpeg still waits for ten minutes
    with pytest.raises(Ended):
        source.take()
    source.close()


def test_a_thread_that_waits_for_a_full_queue_is_closed() -> None:
    source = feed("-", FeedOptions(queue_length=1), stdin=io.BytesIO(bytes(10 * 24 * 32)))
    wait_until(lambda: len(source._waiting._items) == 1)
    source.close()
    source._thread.join(60)
    assert not source._thread.is_alive()


def test_a_camera_that_sends_only_damaged_pictures_is_closed_after_a_packet(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MAX_DAMAGED", 1_000_000_000)
    good = mjpeg([picture(0)] * 20)

    def serve(peer: Peer, connection: socket.socket, number: int) -> None:
        good(peer, connection, number)
        while not peer.stopped.wait(0.001):
            connection.sendall(part(b"\xff\xd8 no picture \xff\xd9"))

    text = f"http://127.0.0.1:{start(serve).port}/"
    with feed(text) as source:
        assert source.take()
    wait_until(lambda: not threads(text))


def test_a_pipe_without_a_writer_is_closed() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as stdin:
        source = feed("-", stdin=stdin)
        source.close()
        with pytest.raises(Ended):
            source.take()
        os.close(writing)
        source._thread.join(60)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to count open files")
@pytest.mark.parametrize("kind", ["file", "http", "mjpeg", "refused"])
def test_nothing_is_left_of_many_feeds(kind: str, start: Start, tmp_path: Path) -> None:
    content = mp4(tmp_path / "a.mp4", 12)
    serve = {
        "http": answering("200 OK", body=content),
        "mjpeg": mjpeg([picture(0)] * 1000, pause_s=0.001),
        "refused": answering("404 Not Found"),
    }.get(kind)
    peer = start(serve) if serve else None
    text = f"http://127.0.0.1:{peer.port}/" if peer else str(tmp_path / "a.mp4")

    def use() -> None:
        if kind == "refused":
            with pytest.raises(Exception, match="404"):
                feed(text)
            return
        with feed(text) as source:
            assert source.take()

    use()
    wait_until(lambda: not threads(text))
    before = open_files()
    for _ in range(50):
        use()
    wait_until(lambda: not threads(text))
    # The peer closes its side of the connections a little later.
    wait_until(lambda: open_files() <= before)


@pytest.mark.parametrize("kind", ["rtsp", "mjpeg", "stdin", "file"])
def test_a_program_that_closes_no_feed_still_ends(kind: str, start: Start, tmp_path: Path) -> None:
    """Python exits while a thread is inside FFmpeg or reads standard input, and does not abort."""
    mp4(tmp_path / "a.mp4", 12)
    serve = {"rtsp": rtsp(20, then_silent=True), "mjpeg": mjpeg([picture(0)] * 20, then_silent=True)}.get(kind)
    scheme = "rtsp" if kind == "rtsp" else "http"
    text = {"stdin": "-", "file": str(tmp_path / "a.mp4")}.get(kind) or f"{scheme}://127.0.0.1:{start(serve).port}/"
    reading, writing = os.pipe()
    command = [sys.executable, "-c", LEAVE, text, "0" if kind == "file" else "0.2"]
    done = subprocess.run(command, stdin=reading, capture_output=True, text=True, check=False, timeout=120)
    os.close(reading)
    os.close(writing)
    assert (done.returncode, "Fatal" in done.stderr) == (0, False), done.stderr


def test_a_file_that_plays_in_real_time_can_be_closed_between_two_pictures(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=1, options={"tune": "zerolatency"})
        stream.height, stream.width, stream.pix_fmt = *FORM.image_size, "yuv420p"
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(picture(number, FORM.image_size), "rgb24")
            frame.pts = 1000 * number  # s
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source = feed(str(tmp_path / "a.mp4"), FeedOptions(realtime=True))
    assert source.take() is not None
    assert source.take(0.2) is None
    source.close()
    source._thread.join(60)
    assert not source._thread.is_alive()
