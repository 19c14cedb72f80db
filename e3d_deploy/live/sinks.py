"""Files, pipes and standard output that get what was seen and forecast, picture by picture."""

import errno
import json
import os
import select
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import RawIOBase, UnsupportedOperation
from pathlib import Path
from typing import BinaryIO

from e3d_deploy.data.form import Form
from e3d_deploy.data.write import writing
from e3d_deploy.files import naming
from e3d_deploy.frames import to_pictures
from e3d_deploy.live.observation import Observation, beside

Put = Callable[[Observation], None]
"""Takes the next picture of a source."""
LOOK_S = 0.1
"""Time between two looks at whether a reader that is waited for still matters (s)."""


@contextmanager
def video(path: Path, form: Form, *, frames_per_second: float, zoom: int, output: Path) -> Iterator[Put]:
    """Yield a function that writes each picture beside what had been forecast for it, to a video, GIF, folder or array.

    Args:
        output: output that the user named, for errors.

    Raises:
        ConfigError, BackendUnavailable: as `writing`.
    """
    height, width = form.image_size
    with (
        naming(output),
        writing(path, (height, 2 * width), form.channels, frames_per_second=frames_per_second, zoom=zoom) as put,
    ):

        def put_beside(observation: Observation) -> None:
            with naming(output):  # the error of a picture ends its source, and does not pass through here
                put(beside(observation.judged))

        yield put_beside


class Output:
    """File, pipe or standard output that several threads write to, each piece at once and whole.

    A file is opened with the first piece, so that nothing is replaced where nothing comes.

    Args:
        output: path of a file, or an open stream, which stays open.
    """

    def __init__(self, output: Path | BinaryIO | RawIOBase) -> None:
        self._name = output if isinstance(output, Path) else Path("stdout")
        self._stream = None if isinstance(output, Path) else output
        self._closing = ExitStack()
        self._lock, self._abandoned = threading.Lock(), threading.Event()

    def write(self, content: bytes) -> None:
        """Write bytes that a reader gets now; waits for the reader of a pipe.

        Raises:
            BrokenPipeError: the reader is gone, or the output was abandoned while it waited.
            OSError: they cannot be written, with the name of the output.
        """
        with self._lock, naming(self._name):
            if self._stream is None:
                self._stream = self._opened(self._name)
                self._closing.callback(self._stream.close)
            stream, descriptor, left = self._stream, _waiting(self._stream), memoryview(content)
            while left:
                left = left[stream.write(left if descriptor is None else self._taken(descriptor, left)) or 0 :]

    def abandon(self) -> None:
        """End a write that waits for a reader; from any thread."""
        self._abandoned.set()

    def close(self) -> None:
        """Close the file if one was opened."""
        self._closing.close()

    def _opened(self, path: Path) -> BinaryIO | RawIOBase:
        """Open a file; a named pipe once somebody reads it.

        Without a buffer nothing is left for the end, where the error of a write would come again.
        """
        while path.is_fifo():
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                self._wait()
            else:
                os.set_blocking(descriptor, True)
                return os.fdopen(descriptor, "wb", buffering=0)
        return path.open("wb", buffering=0)

    def _taken(self, descriptor: int, left: memoryview) -> memoryview:
        """Return as much as a pipe or terminal takes at once, once it takes any: a blocked call cannot be ended."""
        room = select.poll()
        room.register(descriptor, select.POLLOUT)
        while not room.poll(1000 * LOOK_S):
            self._wait()
        return left[: select.PIPE_BUF]

    def _wait(self) -> None:
        if self._abandoned.wait(LOOK_S):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _waiting(stream: BinaryIO | RawIOBase) -> int | None:
    """Return the descriptor of a stream whose reader can make it wait; None for a file, or without `poll`."""
    if not hasattr(select, "poll"):  # Windows
        return None
    try:
        descriptor = stream.fileno()
    except UnsupportedOperation:
        return None
    return None if stat.S_ISREG(os.fstat(descriptor).st_mode) else descriptor


def put_line(output: Output, observation: Observation) -> None:
    """Write all that is known of a picture as one line of JSON."""
    output.write(json.dumps(observation.to_json(), allow_nan=False).encode() + b"\n")


def put_raw(output: Output, observation: Observation) -> None:
    """Write the last frame of the forecast after a picture, uint8 [H, W, C]."""
    output.write(to_pictures(observation.judged.forecast[-1]).tobytes())
