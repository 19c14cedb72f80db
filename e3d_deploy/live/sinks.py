"""Write the pictures and forecasts of sources to videos, files, pipes and standard output."""

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
from e3d_deploy.live.observation import Observation, side_by_side

Put = Callable[[Observation], None]
"""Function that accepts the next picture of a source."""
LOOK_S = 0.1
"""Polling interval while waiting for the reader of a pipe (s); after each interval, `Output.abandon` is noticed."""


@contextmanager
def video(path: Path, form: Form, *, frames_per_second: float, zoom: int, output: Path) -> Iterator[Put]:
    """Yield a function that writes each picture beside the forecast of it, to a video, GIF, folder or array.

    Args:
        path: path to write; its suffix decides the format.
        form: size and channels of the pictures.
        zoom: whole factor by which pictures are enlarged.
        output: output path to name in errors.

    Raises:
        ConfigError, BackendUnavailable: see `writing`.
    """
    height, width = form.image_size
    with (
        naming(output),
        writing(path, (height, 2 * width), form.channels, frames_per_second=frames_per_second, zoom=zoom) as put,
    ):

        def put_side_by_side(observation: Observation) -> None:
            # The worker catches the error of a single picture, so the error never reaches the outer `naming`.
            with naming(output):
                put(side_by_side(observation.followed))

        yield put_side_by_side


class Output:
    """File, pipe or standard output that several threads may write to. Writes are unbuffered and never interleave.

    A path is opened at the first write, so an existing file is kept if nothing is written.

    Args:
        output: path of a file or a named pipe, or an open stream, which is not closed.
    """

    def __init__(self, output: Path | BinaryIO | RawIOBase) -> None:
        self._name = output if isinstance(output, Path) else Path("stdout")
        self._stream = None if isinstance(output, Path) else output
        self._closing = ExitStack()
        self._lock, self._abandoned = threading.Lock(), threading.Event()

    def write(self, content: bytes) -> None:
        """Write bytes without buffering, and wait while the reader of a pipe is not ready.

        Raises:
            BrokenPipeError: the reader closed the pipe, or `abandon` was called while waiting.
            OSError: the write failed; the error names the output.
        """
        with self._lock, naming(self._name):
            if self._stream is None:
                self._stream = self._opened(self._name)
                self._closing.callback(self._stream.close)
            stream, descriptor, left = self._stream, _blocking_descriptor(self._stream), memoryview(content)
            while left:
                left = left[stream.write(left if descriptor is None else self._writable_part(descriptor, left)) or 0 :]

    def abandon(self) -> None:
        """Make a write that waits for a reader fail. It may be called from any thread."""
        self._abandoned.set()

    def close(self) -> None:
        """Close the file if `write` opened it."""
        self._closing.close()

    def _opened(self, path: Path) -> BinaryIO | RawIOBase:
        """Open a file, or wait for the reader of a named pipe and open the pipe.

        The file is unbuffered: closing a buffered file would repeat the error of a failed write.
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

    def _writable_part(self, descriptor: int, left: memoryview) -> memoryview:
        """Wait until a pipe or terminal is writable, and return a part that can be written without blocking.

        A write that blocks could not be interrupted by `abandon`.
        """
        room = select.poll()
        room.register(descriptor, select.POLLOUT)
        while not room.poll(1000 * LOOK_S):
            self._wait()
        return left[: select.PIPE_BUF]

    def _wait(self) -> None:
        if self._abandoned.wait(LOOK_S):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _blocking_descriptor(stream: BinaryIO | RawIOBase) -> int | None:
    """Return the descriptor of a stream that can block, such as a pipe; None for a regular file, or without `poll`."""
    if not hasattr(select, "poll"):  # Windows
        return None
    try:
        descriptor = stream.fileno()
    except UnsupportedOperation:
        return None
    return None if stat.S_ISREG(os.fstat(descriptor).st_mode) else descriptor


def put_line(output: Output, observation: Observation) -> None:
    """Write the JSON values of a picture as one line."""
    output.write(json.dumps(observation.to_json(), allow_nan=False).encode() + b"\n")


def put_raw(output: Output, observation: Observation) -> None:
    """Write the last frame of the forecast after a picture, as raw uint8 [H, W, C]."""
    output.write(to_pictures(observation.followed.forecast[-1]).tobytes())
