"""RTSP against a server of GStreamer, as Debian ships it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from e3d_deploy.data.form import Form
from e3d_deploy.data.live.address import parse_address
from e3d_deploy.data.live.feed import Feed, FeedOptions
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import ClipError

FORM = Form(image_size=(48, 64), channels=1)
PYTHON = "/usr/bin/python3"
INSTALL = (
    "apt-get install --no-install-recommends gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base "
    "gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly gstreamer1.0-libav"
)
HAS_SERVER = """
import gi
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
assert Gst.ElementFactory.find("x264enc") and Gst.ElementFactory.find("rtph264pay")
"""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Start a server that shows a moving ball at 15 frames per second and requires a password; yield its port."""
    if sys.platform != "linux" or not Path(PYTHON).exists():
        pytest.skip(f"needs GStreamer's RTSP server: {INSTALL}")
    if subprocess.run([PYTHON, "-c", HAS_SERVER], check=False, capture_output=True, timeout=120).returncode:
        pytest.skip(f"needs GStreamer's RTSP server: {INSTALL}")
    command = [PYTHON, str(Path(__file__).parent / "gst_server.py"), "/cam", "user", "hunter2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.stdin.close()
            server.wait(60)


def feed(port: int, path: str = "cam", password: str = "hunter2") -> Feed:
    address = parse_address(f"rtsp://user:{password}@127.0.0.1:{port}/{path}")
    return Feed(address, FORM, FeedOptions(policy="block", silence_s=600), remarks=Remarks(silent=True))


def test_a_camera_of_gstreamer_is_followed(port: int) -> None:
    with feed(port) as source:
        arrivals = [arrival for _, arrival in zip(range(20), source, strict=False)]
    assert [arrival.index for arrival in arrivals] == list(range(20))
    assert [arrival.begins_video for arrival in arrivals] == [True] + 19 * [False]
    assert (source.is_live, source.frames_per_second) == (True, 15)
    times = np.asarray([arrival.time_s for arrival in arrivals[1:]], float)
    assert (np.diff(times) > 0).all()
    moved = np.abs(arrivals[-1].picture.astype(int) - arrivals[0].picture).max()
    assert moved > 50  # gray levels; the ball is white on black


@pytest.mark.parametrize(("path", "password", "message"), [("cam", "wrong", "got 401"), ("none", "hunter2", "got 404")])
def test_gstreamer_refuses_a_wrong_password_and_a_wrong_path(path: str, password: str, message: str, port: int) -> None:
    with pytest.raises(ClipError, match=message):
        feed(port, path, password)
