"""Videos, decoded picture by picture. Needs no PyTorch; PyAV when one is opened."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.form import Form
from e3d_deploy.data.pictures import NEEDS_VIDEO, say_change
from e3d_deploy.errors import BackendUnavailable, ClipError, SourceLost


def play_video(path: Path, form: Form, *, say: bool) -> tuple[Iterator[NDArray[np.uint8]], float | None]:
    """Return the pictures of a video one by one, and their rate if it tells one.

    Raises:
        ClipError: it holds no video, or cannot be read.
        BackendUnavailable: without PyAV.
    """
    try:
        import av
    except ImportError as error:
        raise BackendUnavailable(NEEDS_VIDEO) from error
    height, width = form.image_size
    target = "gray" if form.channels == 1 else "rgb24"

    def unreadable(error: av.FFmpegError) -> ClipError:
        return ClipError(f"{path}: not a video that can be read ({error.strerror}); check the file")

    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise unreadable(error) from error
    # FFmpeg shows any text as a film of a terminal ("tty").
    if not container.streams.video or container.format.name == "tty":
        container.close()
        raise ClipError(f"{path}: holds no video")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"

    def pictures() -> Iterator[NDArray[np.uint8]]:
        number = -1
        with container:
            try:
                for number, frame in enumerate(container.decode(stream)):
                    if number == 0 and say:
                        say_change(path, (frame.height, frame.width), frame.format.name, form.image_size, target)
                    picture = frame.reformat(width, height, target, interpolation="AREA").to_ndarray()
                    yield picture.reshape(form.shape).astype(np.uint8, copy=False)
            except av.FFmpegError as error:
                if number < 0:
                    raise unreadable(error) from error
                raise SourceLost(
                    f"{path}: broke off after frame {number} ({error.strerror}); check the file"
                ) from error

    return pictures(), float(stream.average_rate) if stream.average_rate else None
