"""Addresses of sources: their kinds, their names without passwords, and invalid addresses."""

import pytest

from e3d_deploy.data.live.address import Kind, parse_address
from e3d_deploy.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "kind", "live"),
    [
        ("clip.mp4", "file", False),
        ("a folder/clips", "file", False),
        ("12:30.mp4", "file", False),
        ("/dev/video0", "camera", True),
        ("/dev/null", "camera", True),
        ("/dev/video", "file", False),
        ("rtsp://host/cam", "network", True),
        ("RTSPS://host:322/cam", "network", True),
        ("http://host/cam.mjpg", "network", False),
        ("https://[::1]:8443/a.mp4", "network", False),
    ],
)
def test_the_kind_of_a_source_follows_from_its_address(text: str, kind: Kind, live: bool) -> None:
    address = parse_address(text, raw=(2, 2, 1))
    assert (address.kind, address.is_live, address.raw) == (kind, live, None)
    assert address.text == text.replace("RTSPS", "rtsps")  # FFmpeg accepts only lower-case schemes


def test_stdin_has_the_shape_of_its_frames() -> None:
    address = parse_address("-", raw=(48, 64, 3))
    assert (address.kind, address.raw, address.name, address.is_live) == ("stdin", (48, 64, 3), "stdin", False)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("rtsp://user:hunter2@host:554/cam", "rtsp://host:554/cam"),
        ("rtsp://user@host/cam", "rtsp://host/cam"),
        ("rtsp://user:p%40ss@host/cam", "rtsp://host/cam"),
        ("rtsp://user:hun@ter2@host/cam", "rtsp://host/cam"),
        ("http://host/cam?user=u&password=hunter2#x", "http://host/cam"),
        ("rtsp://user:1/hunter2@host/cam", "rtsp://…@host/cam"),
        ("rtsp://user:1?hunter2@host/cam", "rtsp://…@host/cam"),
        ("clips/a.mp4", "clips/a.mp4"),
    ],
)
def test_a_name_holds_no_password(text: str, name: str) -> None:
    assert parse_address(text).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rtmp://host/x", "got the scheme rtmp://, expected rtsp://, rtsps://, http://, https://"),
        ("file:///etc/passwd", "give only its path"),
        ("rtsp:///cam", "the address has no valid host"),
        ("rtsp://host:0/cam", "the address has no valid host"),
        ("http://host/a b", "and spaces as %20"),
        ("http://host/a\r\nX: 1", "the address has no valid host"),
        ("rtsp://user:hunter2/x@host/cam", "write /, ?, # and @ in a user name or password as %2F"),
        ("rtsp://user:hunter2#x", "the address has no valid host"),
        ("-", "give the size with --raw HxWxC"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_its_password(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("raw", [(48, 64, 2), (48, 64, 4), (0, 64, 1), (-1, 64, 1), (20_000, 20_000, 1)])
def test_raw_pictures_of_an_impossible_shape_are_refused(raw: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="raw: got"):
        parse_address("-", raw=raw)
