"""Check uploaded files by their headers, before they are decoded."""

import math
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import UploadFile

from e3d_deploy.data.form import MAX_PIXELS
from e3d_deploy.serve.error_responses import Problem

MAX_PIXELS_IN_ALL = 500_000_000
"""Maximum total number of pixels in the pictures of one request; small files may decode to huge pictures."""
MAX_DIRECTORY_BYTES = 65_536
"""Maximum size of the central directory of a .npz file (bytes)."""
UNPACKED = 4
"""Maximum total size of the arrays in a .npz file, as a multiple of the upload limit."""

KINDS = (
    (0, b"PK\x03\x04", ".npz"),
    (0, b"\x93NUMPY", ".npy"),
    (0, b"\x89PNG\r\n\x1a\n", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"GIF8", ".gif"),
    (0, b"BM", ".bmp"),
    (0, b"II*\x00", ".tif"),
    (0, b"MM\x00*", ".tif"),
    (8, b"WEBP", ".webp"),
    (8, b"AVI ", ".avi"),
    (4, b"ftyp", ".mp4"),
    (4, b"moov", ".mov"),
    (4, b"mdat", ".mov"),
    (4, b"wide", ".mov"),
    (0, b"\x1a\x45\xdf\xa3", ".mkv"),
    (0, b"OggS", ".ogv"),
    (0, b"FLV", ".flv"),
    (0, b"\x00\x00\x01\xba", ".mpg"),
    (0, b"YUV4MPEG2", ".y4m"),
)
"""Offset, signature at that offset, and suffix of each supported file type. The suffix from the client is ignored."""
ARRAYS = (".npz", ".npy")
PICTURES = (".png", ".jpg", ".bmp", ".tif", ".webp")


@dataclass(frozen=True)
class Upload:
    """Uploaded file."""

    path: Path
    """Path of the copy on the server."""
    name: str
    """File name that the client gave, without folders, for messages."""


def save(files: list[UploadFile], folder: Path, most_bytes: int) -> list[Upload]:
    """Copy uploaded files into a folder, under generated names with the suffix of their type, and check each file.

    Args:
        most_bytes: upload limit (bytes); unpacked arrays may have up to `UNPACKED` times this size.

    Raises:
        Problem: a file has an unsupported type or is damaged, or its pictures or arrays are too large.
    """
    saved, pixels = [], 0
    for number, file in enumerate(files):
        name = shown_name(file.filename)
        path = folder / f"frame_{number:04d}{_kind(file, name)}"
        with path.open("wb") as copy:
            shutil.copyfileobj(file.file, copy)
        pixels += _check(path, name, most_bytes)
        if pixels > MAX_PIXELS_IN_ALL:
            raise Problem(
                422,
                "pixels",
                f"{name}: the pictures have more than {MAX_PIXELS_IN_ALL:,} pixels in total; send smaller pictures",
            )
        saved.append(Upload(path, name))
    return saved


def shown_name(name: str | None) -> str:
    """Return the file name that a client gave, without folders and unprintable characters, for messages."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:80] or "clip"


def _kind(file: UploadFile, name: str) -> str:
    begin = file.file.read(512)
    file.file.seek(0)
    for position, signature, suffix in KINDS:
        if begin.startswith(signature, position):
            return suffix
    if begin[:1] == b"G" and begin[188:189] == b"G":
        return ".ts"
    raise Problem(422, "unreadable", f"{name}: unsupported file type; send .npz, .npy, a video or pictures")


def _check(path: Path, name: str, most_bytes: int) -> int:
    """Check a file, and return its number of pixels; 0 if the file is not a picture."""
    if path.suffix == ".npz":
        _check_archive(path, name, UNPACKED * most_bytes)
    elif path.suffix in PICTURES:
        size = _picture_size(path, name)
        _check_pixels(name, *size)
        return math.prod(size)
    elif path.suffix != ".npy":
        for size in _video_sizes(path, name):
            _check_pixels(name, *size)
    return 0


def _check_archive(path: Path, name: str, most_bytes: int) -> None:
    """Refuse a zip bomb, judging by the sizes in the central directory.

    If the directory states wrong sizes, reading fails later, because readers stop at these sizes and compare checksums.
    """
    damaged = Problem(422, "unreadable", f"{name}: not a NumPy file, or damaged; save it again")
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 65_557))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22 or tail[max(0, end - 20) : end].startswith(b"PK\x06\x07"):
        raise damaged  # a 64-bit directory is needed only for archives larger than any upload
    if int.from_bytes(tail[end + 12 : end + 16], "little") > MAX_DIRECTORY_BYTES:
        raise Problem(422, "bomb", f"{name}: contains too many arrays; save only the frames")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise damaged from error
    if unpacked > most_bytes:
        raise Problem(422, "bomb", f"{name}: unpacks to {unpacked:,} bytes, expected at most {most_bytes:,}")


def _check_pixels(name: str, width: int, height: int) -> None:
    if math.prod((width, height)) > MAX_PIXELS:
        raise Problem(422, "pixels", f"{name}: has {width} × {height} pixels, expected at most {MAX_PIXELS:,} in total")


def _picture_size(path: Path, name: str) -> tuple[int, int]:
    """Return the width and height in the header of a picture."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Problem(422, "pixels", f"{name}: has too many pixels, expected at most {MAX_PIXELS:,}") from error
    except Exception as error:  # Pillow's readers raise many types of exceptions
        raise Problem(422, "unreadable", f"{name}: unsupported or damaged picture") from error


def _video_sizes(path: Path, name: str) -> list[tuple[int, int]]:
    """Return the width and height in the header of each video stream."""
    import av

    from e3d_deploy.data.videos import Single

    try:
        with av.open(Single(path), options={"protocol_whitelist": "none"}) as container:
            return [(stream.width, stream.height) for stream in container.streams.video]
    except (OSError, ValueError, av.FFmpegError) as error:
        raise Problem(422, "unreadable", f"{name}: unsupported or damaged video") from error


def names_for(uploads: list[Upload], folder: Path) -> dict[str, str]:
    """Return the names that replace the paths of uploads in messages."""
    return {str(folder): "clip", **{str(one.path): one.name for one in uploads}, os.fspath(folder) + os.sep: ""}
