"""Frames that stay on disk and are read as needed, so that data may be larger than memory. Needs no PyTorch.

Data are read with `preadv` instead of `memmap`, whose touched pages count as memory of the process. A read does not
move a file position, so worker processes may share an open file.
"""

import os
import tempfile
import weakref
from dataclasses import dataclass
from multiprocessing import reduction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.errors import ClipError
from e3d_deploy.files import FULL
from e3d_deploy.frames import check_values


class Clip(Protocol):
    """Frames of one clip; slicing reads only the requested frames. A plain ndarray [T, H, W, C] is a clip.

    Slices have step 1. They return [t, H, W, C], uint8 or float32 in [0, 1], in the model's size.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, frames: slice, /) -> NDArray[Any]: ...


class Store(Protocol):
    """Bytes on disk, which can be read at any position."""

    def read(self, buffer: memoryview, offset: int) -> bool:
        """Fill `buffer` with the bytes at `offset`; return False if there are too few bytes."""
        ...


@dataclass(frozen=True)
class File:
    """A file that is opened for each read, so that thousands of files need no open descriptors."""

    path: Path

    def read(self, buffer: memoryview, offset: int) -> bool:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            return _read(descriptor, buffer, offset)
        finally:
            os.close(descriptor)


class Scratch:
    """A temporary file without a name, in TMPDIR.

    It is deleted when no process has it open any more, so also after a crash.

    It can be sent to a worker process, forked or spawned.
    """

    def __init__(self, descriptor: int | None = None, size: int = 0) -> None:
        if descriptor is None:
            with tempfile.TemporaryFile(buffering=0) as file:
                descriptor = os.dup(file.fileno())
        self.descriptor, self.size = descriptor, size
        weakref.finalize(self, os.close, descriptor)

    def append(self, content: Any) -> None:
        """Append the bytes of a buffer.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        rest = memoryview(content).cast("B")
        try:
            while rest:
                written = os.pwrite(self.descriptor, rest, self.size)
                self.size, rest = self.size + written, rest[written:]
        except OSError as error:
            remedy = "; set TMPDIR to a larger disk" if error.errno in FULL else ""
            said = f"{error.strerror} after {self.size / 1e6:.0f} MB of decoded clips{remedy}"
            raise OSError(error.errno, said, tempfile.gettempdir()) from error

    def cut(self, size: int) -> None:
        """Discard all bytes after the first `size`."""
        os.ftruncate(self.descriptor, size)
        self.size = size

    def read(self, buffer: memoryview, offset: int) -> bool:
        return _read(self.descriptor, buffer, offset)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.descriptor), self.size)


def _received(descriptor: Any, size: int) -> Scratch:
    return Scratch(descriptor.detach(), size)


def _read(descriptor: int, buffer: memoryview, offset: int) -> bool:
    while buffer:
        count = os.preadv(descriptor, [buffer], offset)
        if count == 0:
            return False
        buffer, offset = buffer[count:], offset + count
    return True


@dataclass(frozen=True, slots=True)
class StoredClip:
    """A clip in a file, stored as uncompressed numbers."""

    name: str
    store: Store
    offset: int
    """Position of the first frame in the store (bytes)."""
    length: int
    """Number of frames."""
    shape: tuple[int, int, int]
    """Shape of a stored frame: [H, W, C], or [C, H, W] with `channels_first`."""
    dtype: np.dtype[Any]
    stride: int
    """Distance from the start of a frame to the start of the next one (bytes)."""
    channels_first: bool = False

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, frames: slice, /) -> NDArray[Any]:
        """
        Raises:
            ShapeError: a float is not finite, or not in [0, 1].
            ClipError: the file has become shorter since it was opened.
        """
        start, stop, step = frames.indices(self.length)
        assert step == 1
        stored = np.empty((max(stop - start, 0), *self.shape), self.dtype)
        # Contiguous frames are read in one call.
        pieces = [stored] if self.stride * len(stored) == stored.nbytes else list(stored)
        for number, piece in enumerate(pieces):
            numbers: NDArray[Any] = piece.reshape(-1).view(np.uint8)
            if not self.store.read(numbers.data, self.offset + (start + number) * self.stride):
                raise ClipError(f"{self.name}: its file has become shorter since it was opened; write it again")
        if stored.dtype == np.bool_:
            stored = stored.view(np.uint8) * np.uint8(255)
        check_values(stored, name=f"{self.name}, frames {start} to {stop}")
        read = np.moveaxis(stored, 1, -1) if self.channels_first else stored
        return read if read.dtype == np.uint8 else read.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Joined:
    """Several clips, concatenated into one."""

    clips: tuple[Clip, ...]

    def __len__(self) -> int:
        return sum(len(clip) for clip in self.clips)

    def __getitem__(self, frames: slice, /) -> NDArray[Any]:
        start, stop, _ = frames.indices(len(self))
        pieces, begin = [], 0
        for clip in self.clips:
            pieces.append(clip[max(start - begin, 0) : max(stop - begin, 0)])
            begin += len(clip)
        return np.concatenate(pieces)


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive frames of a clip, as a clip of their own."""

    clip: Clip
    start: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, frames: slice, /) -> NDArray[Any]:
        start, stop, _ = frames.indices(self.length)
        return self.clip[self.start + start : self.start + max(stop, start)]
