"""Read raw pictures from a pipe."""

import io
import sys
import time
from collections.abc import Iterator
from threading import Event
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.display import FrameConverter
from e3d_deploy.data.form import Form
from e3d_deploy.data.live.source import DecodedPicture
from e3d_deploy.data.pictures import NEEDS_VIDEO
from e3d_deploy.data.rate import Selection
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import BackendUnavailable, ClipError, ConfigError, SourceLost


class RawFrames:
    """Raw pictures from a pipe: uint8 [H, W, C] in row-major order, without separators.

    Args:
        shape: height, width and channels of a raw picture.
        form: size and channels that pictures are converted to.
        selection: which pictures to read. Raw pictures cannot be resampled, because they have no times.
        remarks: collects remarks on how pictures are converted.
        stream: binary stream to read; None reads standard input.

    Raises:
        ConfigError: `selection` resamples, or the process has no standard input.
        BackendUnavailable: pictures have to be converted, and the extra `video` is not installed.
    """

    is_live, reconnects, rate = False, 0, None

    def __init__(
        self,
        shape: tuple[int, int, int],
        form: Form,
        selection: Selection,
        *,
        remarks: Remarks,
        stream: BinaryIO | None = None,
    ) -> None:
        self.shape, self.form = shape, form
        self.stride = round(selection.stride(None, name="stdin"))
        self.stream: Any = _stdin() if stream is None else stream
        self._convert = None if shape == form.shape else _converter(form, remarks)
        self._closed = Event()

    def pictures(self) -> Iterator[DecodedPicture]:
        """Yield the pictures.

        Raises:
            ClipError: the stream is empty.
            SourceLost: the stream ended within a picture.
        """
        number, size = 0, int(np.prod(self.shape))
        while not self._closed.is_set():
            content = bytearray(size)
            if (count := _fill(self.stream, content)) == 0:
                break
            if count < size:
                raise SourceLost(
                    f"stdin: broke off in picture {number}, got {count} bytes, expected {size}; check that the "
                    f"pictures have the size {'x'.join(map(str, self.shape))} given with --raw"
                )
            if number % self.stride == 0:
                arrived_s = time.perf_counter()
                picture = self._converted(np.frombuffer(content, np.uint8).reshape(self.shape))
                yield DecodedPicture(picture=picture, time_s=None, arrived_s=arrived_s, section=0)
            number += 1
        if number == 0 and not self._closed.is_set():
            raise ClipError("stdin: empty, expected raw pictures; check the program that writes them")

    def close(self) -> None:
        """End `pictures` after the picture that is being read."""
        self._closed.set()

    def _converted(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._convert is None:
            return picture
        import av

        kind, pixels = ("gray", picture[..., 0]) if picture.shape[2] == 1 else ("rgb24", picture)
        return self._convert(av.VideoFrame.from_ndarray(pixels, kind))


def _fill(stream: Any, content: bytearray) -> int:
    """Read until the buffer is full or the stream ends; return the number of bytes that were read."""
    view, count = memoryview(content), 0
    while count < len(content) and (read := stream.readinto(view[count:])):
        count += read
    return count


def _stdin() -> Any:
    if sys.stdin is None:
        raise ConfigError("-: this process has no standard input; give a file or an address")
    # Unbuffered: Python aborts the process at exit if a thread holds the lock of a buffer of standard input.
    return io.FileIO(sys.stdin.fileno(), closefd=False)


def _converter(form: Form, remarks: Remarks) -> FrameConverter:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable(NEEDS_VIDEO) from error
    return FrameConverter("stdin", form, aspect=None, remarks=remarks)
