"""V4L2 cameras, tested without a camera: the call that opens them, and errors of other devices."""

import errno
from pathlib import Path
from typing import Any

import av
import pytest

from e3d_deploy.data.form import Form
from e3d_deploy.data.live.address import parse_address
from e3d_deploy.data.live.feed import Feed, FeedOptions
from e3d_deploy.errors import ClipError, E3DError, SourceLost

FORM = Form(image_size=(24, 32), channels=1)
CLIP = Path(__file__).parents[3] / "e3d_deploy" / "data" / "clips" / "pedestrians.mp4"


def test_a_missing_camera_is_an_error() -> None:
    message = r"^/dev/video99: no such camera; connect the camera, or list the cameras with `ls"
    with pytest.raises(ClipError, match=message):
        Feed(parse_address("/dev/video99"), FORM, FeedOptions())


def test_a_device_that_does_not_capture_video_is_an_error() -> None:
    with pytest.raises(ClipError, match=r"^/dev/null: this device does not capture video; list the cameras"):
        Feed(parse_address("/dev/null"), FORM, FeedOptions())


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.EACCES, ClipError, "no permission to open the camera; add your user to the group `video`"),
        (errno.EBUSY, SourceLost, "the camera is used by another program; close that program"),
        (errno.ENODEV, SourceLost, "the camera cannot be read (No such device)"),
    ],
)
def test_errors_of_a_camera_say_what_to_do(
    number: int, kind: type[E3DError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        av.error.err_check(-number, "/dev/video0")

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(kind) as caught:
        Feed(parse_address("/dev/video0"), FORM, FeedOptions())
    assert message in str(caught.value)


def test_a_camera_is_opened_with_v4l2(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], av.open

    def fake(file: str, **options: Any) -> Any:
        calls.append((file, options))
        return real(str(CLIP))

    monkeypatch.setattr(av, "open", fake)
    with Feed(parse_address("/dev/video0"), FORM, FeedOptions(silence_s=599, policy="block")) as source:
        arrival = source.take()
    ((file, options),) = calls
    assert (file, options["format"], options["timeout"]) == ("/dev/video0", "v4l2", (600, 600))
    assert "protocol_whitelist" not in options["options"]  # V4L2 opens the device without a protocol
    assert source.is_live
    assert arrival is not None
    assert (arrival.index, arrival.begins_video, arrival.picture.shape) == (0, True, FORM.shape)
