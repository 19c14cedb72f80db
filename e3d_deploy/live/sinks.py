"""Files, pipes and standard output that get what was seen and forecast, picture by picture."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

from e3d_deploy.data.form import Form
from e3d_deploy.data.write import writing
from e3d_deploy.files import naming
from e3d_deploy.frames import to_pictures
from e3d_deploy.live.seen import Seen, beside

Put = Callable[[Seen], None]
"""Takes the next picture of a source."""


@contextmanager
def video(path: Path, form: Form, *, frames_per_second: float, zoom: int) -> Iterator[Put]:
    """Give what writes each picture beside what had been forecast for it, to a video, GIF, folder or array.

    Raises:
        ConfigError, BackendUnavailable: as `writing`.
    """
    height, width = form.image_size
    with writing(path, (height, 2 * width), form.channels, frames_per_second=frames_per_second, zoom=zoom) as put:
        yield lambda seen: put(beside(seen.judged))


class Output:
    """File, pipe or standard output that several threads write to, each piece at once and whole.

    A file is opened with the first piece, so that nothing is replaced where nothing comes.

    Args:
        target: path of a file, or an open stream, which stays open.
    """

    def __init__(self, target: Path | BinaryIO | RawIOBase) -> None:
        self._name = target if isinstance(target, Path) else Path("stdout")
        self._stream = None if isinstance(target, Path) else target
        self._closing = ExitStack()
        self._lock = threading.Lock()

    def write(self, content: bytes) -> None:
        """Write bytes that a reader gets now.

        Raises:
            BrokenPipeError: the reader is gone.
            OSError: they cannot be written, with the name of the output.
        """
        with self._lock, naming(self._name):
            if self._stream is None:
                # Without a buffer nothing is left for the end, where the error of a write would come again.
                self._stream = self._closing.enter_context(self._name.open("wb", buffering=0))
            left = memoryview(content)
            while left:
                left = left[self._stream.write(left) or 0 :]

    def close(self) -> None:
        """Close the file if one was opened."""
        self._closing.close()


def put_line(output: Output, seen: Seen) -> None:
    """Write all that is known of a picture as one line of JSON."""
    output.write(json.dumps(seen.to_json(), allow_nan=False).encode() + b"\n")


def put_raw(output: Output, seen: Seen) -> None:
    """Write the last frame of the forecast after a picture, uint8 [H, W, C]."""
    output.write(to_pictures(seen.judged.forecast[-1]).tobytes())
