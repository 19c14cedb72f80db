"""Arrays in .npy and .npz files, read from the file only as needed. Needs no PyTorch."""

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.axes import geometry
from e3d_deploy.data.form import LAYOUTS, Form
from e3d_deploy.data.layout import find_layout
from e3d_deploy.data.storage import File, Scratch, Store, StoredClip
from e3d_deploy.errors import ClipError, ShapeError
from e3d_deploy.progress import Notify, silent

CHUNK_BYTES = 1 << 20
PROGRESS_BYTES = 256 * CHUNK_BYTES
"""Size of the piece of an array that is read between two progress messages (bytes)."""
LOCAL_HEADER_BYTES = 30
"""Size of the fixed part of a zip member's header, before the member's name (bytes)."""
FRAMES = "frames"
"""Name of the array that holds the frames of a .npz file."""
AXES = tuple(sorted({len(layout) for layout in LAYOUTS}))
"""Possible numbers of axes of an array of clips."""
DAMAGES = (
    ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
    tokenize.TokenError,
)  # fmt: skip
"""Errors that NumPy and zipfile raise for a damaged file; TokenError means that brackets in a header do not match."""
DAMAGED = "not a NumPy file of plain numbers, or damaged; write it again"
_compared: set[tuple[object, ...]] = set()
"""Arrays of .npz files with a checked checksum: device, inode, size, modification time (ns) and name of each."""


@dataclass(frozen=True)
class StoredArray:
    """An array in a file."""

    name: str
    store: Store
    offset: int
    """Position of the first number in the store (bytes)."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def size_bytes(self, *axes: int) -> int:
        """Return the size of an array with these axes and this data type (bytes)."""
        return math.prod(axes) * self.dtype.itemsize


def open_npy(path: Path) -> StoredArray:
    """Return the array of a .npy file.

    Raises:
        ClipError: the file is damaged, or is not a .npy file of plain numbers.
    """
    with damaged(path), path.open("rb") as file:
        return _array(str(path), File(path), file, begin=0, size=path.stat().st_size)


def members(path: Path) -> list[str]:
    """Return the names of the arrays in a .npz file.

    Raises:
        ClipError: the file is damaged, or is not a .npz file.
    """
    with damaged(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def find_frames(path: Path) -> tuple[str, str | None]:
    """Return the name of the array of frames in a .npz file, and a remark unless the name is `frames`.

    Without an array of that name, the only array with as many axes as clips have is chosen.

    Raises:
        ClipError: no array or several arrays have that many axes, or the file is damaged.
    """
    if FRAMES in (names := members(path)):
        return FRAMES, None
    found: dict[str, tuple[int, ...]] = {}
    with damaged(path), zipfile.ZipFile(path) as archive:
        for name in names:
            with archive.open(f"{name}.npy") as member:
                found[name] = _header(member)[0]
    shown = ", ".join(f"{name} {list(shape)}" for name, shape in found.items())
    fitting = [name for name, shape in found.items() if len(shape) in AXES]
    if len(fitting) == 1:
        return fitting[0], f"{path}: read its array {fitting[0]}, the only one that fits; the file has {shown}"
    if not fitting:
        raise ClipError(
            f"{path}: holds {shown}, expected an array of {min(AXES)} to {max(AXES)} axes; write the frames with "
            f"np.savez(PATH, {FRAMES}=ARRAY), as [N, T, H, W, C]"
        )
    line = f"np.save({f'{fitting[0]}.npy'!r}, np.load({str(path)!r})[{fitting[0]!r}])"
    raise ClipError(f"{path}: holds {shown}, expected one array of frames; write one to a file of its own: {line}")


def load_member(path: Path, member: str) -> NDArray[Any]:
    """Load a small array of a .npz file into memory.

    Raises:
        ClipError: the file is damaged.
    """
    with path.open("rb") as file:  # given a path, NumPy would leave a damaged file open
        try:
            with damaged(path), np.load(file, allow_pickle=False) as archive:
                array: NDArray[Any] = archive[member]
        except OSError as error:  # a damaged table of contents can point outside the file
            raise ClipError(f"{path}: {DAMAGED}") from error
    return array


def open_member(path: Path, member: str, scratch: Scratch, progress: Notify = silent) -> StoredArray:
    """Return an array of a .npz file.

    A compressed array is unpacked into `scratch`. An uncompressed array is read in place. Once per process it is read
    completely, to check its checksum.

    Args:
        path: the .npz file.
        member: name of the array, without `.npy`.
        scratch: file for the unpacked array.
        progress: receives messages while a large array is read.

    Raises:
        ClipError: the array is damaged.
        OSError: the disk for `scratch` is full.
    """
    name = f"{path}[{member}]"
    with damaged(path), zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entry = archive.getinfo(f"{member}.npy")
        if entry.compress_type == zipfile.ZIP_STORED:
            _compare_checksum(path, entry, progress)
            file.seek(entry.header_offset)
            local = file.read(LOCAL_HEADER_BYTES)
            # The lengths of the name and of the extra field may differ from those in the archive's table.
            begin = entry.header_offset + len(local) + sum(np.frombuffer(local[26:30], "<u2").tolist())
            file.seek(begin)
            return _array(name, File(path), file, begin=begin, size=entry.file_size)
    begin, head = scratch.size, b""
    for chunk in _unpacked(path, entry, progress):
        head = head or chunk
        scratch.append(chunk)
    with damaged(path):
        return _array(name, scratch, io.BytesIO(head), begin=begin, size=scratch.size - begin)


def layout_of(array: StoredArray, form: Form) -> tuple[str, str | None]:
    """Return the layout of an array, and a remark if the layout was guessed from the values; see `find_layout`.

    Raises:
        ShapeError: the model does not take the rank, size, colours or data type of the array, or several layouts fit.
        ClipError: the array has no frame.
    """
    check_type(array.name, array.dtype)
    if 0 in array.shape:
        raise ClipError(f"{array.name}: holds no frame, its shape is {list(array.shape)}")

    def read(layout: str, clip: int, frame: int) -> NDArray[np.float64] | None:
        try:
            found = _clip(array, layout, clip)[frame : frame + 1]
        except (ClipError, ShapeError, OSError):  # reported when the frame is read for the model
            return None
        frame_read: NDArray[np.float64] = found[0].astype(np.float64)
        return frame_read

    return find_layout(array.name, array.shape, form, read)


def clips_of(array: StoredArray, layout: str) -> list[StoredClip]:
    """Return the clips of an array in the given layout."""
    return [_clip(array, layout, number) for number in range(geometry(layout, array.shape).clips)]


def _clip(array: StoredArray, layout: str, number: int) -> StoredClip:
    found = geometry(layout, array.shape)
    sides = [side for letter, side in zip(layout, array.shape, strict=True) if letter in "CHW"]
    shape = (sides[0], sides[1], sides[2] if "C" in layout else 1)
    frame = array.size_bytes(*shape)
    return StoredClip(
        name=f"{array.name}, clip {number}",
        store=array.store,
        offset=array.offset + number * found.clip_stride * frame,
        length=found.length,
        shape=shape,
        dtype=array.dtype,
        stride=found.frame_stride * frame,
        channels_first=found.channels_first,
    )


def check_type(name: str, dtype: np.dtype[Any]) -> None:
    """Check that the data type has a known range: uint8, float in [0, 1], or bool, whose True is white.

    Raises:
        ShapeError: `dtype` is a different type.
    """
    if dtype in (np.uint8, np.bool_) or np.issubdtype(dtype, np.floating):
        return
    remedy = "write it as uint8 if its values are 0 to 255, otherwise as float32 divided by the value of white"
    if dtype.kind in "iu" and dtype.itemsize == 2:
        remedy = "write it as float32 divided by the value of white: 65535 for 16 bits, 4095 for 12, 1023 for 10"
    raise ShapeError(f"{name}: got {dtype}, expected uint8, or float in [0, 1], or bool; {remedy}")


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Convert the errors of NumPy and zipfile for a damaged or foreign file to ClipError."""
    try:
        yield
    except DAMAGES as error:
        raise ClipError(f"{path}: {DAMAGED}") from error


def _compare_checksum(path: Path, entry: zipfile.ZipInfo, progress: Notify) -> None:
    """Read an array completely to check its checksum, unless this process has done so and the file is unchanged."""
    found = path.stat()
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, entry.filename)
    if key in _compared:
        return
    for _ in _unpacked(path, entry, progress):
        pass
    _compared.add(key)


def _unpacked(path: Path, entry: zipfile.ZipInfo, progress: Notify) -> Iterator[bytes]:
    done = 0
    with damaged(path), zipfile.ZipFile(path) as archive, archive.open(entry) as member:
        while chunk := member.read(CHUNK_BYTES):
            yield chunk
            done += len(chunk)
            if done % PROGRESS_BYTES == 0:
                progress(f"reading {path}, {100 * done // entry.file_size} %")


def _array(name: str, store: Store, file: BinaryIO, *, begin: int, size: int) -> StoredArray:
    """Read the array header at the position of `file`; header and data take `size` bytes of `store`, from `begin`."""
    at = file.tell()
    shape, by_columns, dtype = _header(file)
    header = file.tell() - at
    if by_columns and sum(side > 1 for side in shape) > 1:
        raise ClipError(f"{name}: is stored column by column; write np.ascontiguousarray(ARRAY) instead")
    array = StoredArray(name, store, begin + header, tuple(shape), dtype)
    if dtype.hasobject:
        raise ClipError(
            f"{name}: contains objects, such as clips of several lengths; write each clip to a .npy file of its own"
        )
    if size - header < array.size_bytes(*shape):
        raise ValueError("too few bytes")
    if more := size - header - array.size_bytes(*shape):
        raise ClipError(
            f"{name}: has {more} bytes after its array; if they are a second array, write it to a file of its own"
        )
    return array


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array; return its shape, True if it is stored column by column, and its data type."""
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    return read(file)
