"""Zip archives that contain a bundle. Only the form that `e3d pack` writes can be read.

In this form, all entries are plain files without compression, and they follow each other without gaps from the first
byte of the archive on. The unpacked files can therefore never be larger than the archive.
"""

import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from e3d_deploy.errors import BundleError, BundleMissing

MAX_ENTRIES, LONGEST_NAME = 1000, 200
MAX_BYTES = 2_000_000_000
"""Maximum total size of all files (bytes). Archives of this size need no zip64 headers, which `pack` does not write."""
NAME = re.compile(r"\w([\w.+-]*[\w+-])?(/\w([\w.+-]*[\w+-])?)*", re.ASCII)
"""Pattern of file names; no component of the path begins or ends with a dot.

The pattern excludes `..`, absolute paths, drive letters and backslashes.
"""
END = struct.Struct("<4s4H2LH")
END_MARK, ZIP64_MARK = b"PK\x05\x06", b"PK\x06\x07"
HEADER_BYTES, ENTRY_BYTES = 30, 46
"""Sizes of the header of an entry, and of its record in the directory at the end, both without the name (bytes)."""
ENCRYPTED, UTF8_NAME = 0x2041, 0x800


def entry(name: str, size: int) -> zipfile.ZipInfo:
    """Return an entry whose bytes in the archive depend only on its name and content."""
    info = zipfile.ZipInfo(name)  # dated 1980-01-01, the earliest date of the format
    info.create_system = 3  # Unix, on every system
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = size
    return info


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """Open an archive after checking its form, and yield it with its entries by name.

    Raises:
        BundleMissing: Nothing exists at `path`.
        BundleError: The file is not an archive that `e3d pack` wrote, or is damaged. The damage may also be detected
            when an entry is read in the `with` block.
    """
    if not path.exists():
        raise BundleMissing(f"{path}: no such file; give an archive that `e3d pack` wrote")
    if not path.is_file():
        raise BundleError(f"{path}: is not a regular file; give an archive that `e3d pack` wrote")
    try:
        with path.open("rb") as file:
            start = _check_end(file, path)
            with zipfile.ZipFile(file) as archive:
                _check_entries(archive.infolist(), start, path)
                yield archive, {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, struct.error) as error:
        raise BundleError(f"{path}: is damaged ({error}); copy or pack it again") from error


def check_names(names: Iterable[str], path: Path) -> None:
    """Check that names of files stay within the folder, and that no two of them name the same file.

    Names that differ only in case count as the same file, because some systems ignore the case.

    Raises:
        BundleError: A name leads out of the folder or is too long, or two names collide; the error quotes the names.
    """
    files: dict[str, str] = {}
    names = list(names)
    for name in names:
        if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
            shown = name[:LONGEST_NAME]
            raise BundleError(f"{path}: contains {shown!r}, which is not a valid name within a folder; do not use it")
        if (other := files.setdefault(name.casefold(), name)) != name:
            raise BundleError(f"{path}: contains {other!r} and {name!r}, which differ only in case; do not use it")
    if len(files) < len(names):
        twice = next(name for name in files.values() if names.count(name) > 1)
        raise BundleError(f"{path}: contains {twice!r} twice; do not use it")
    for name in names:
        for parent in PurePosixPath(name.casefold()).parents:
            if str(parent) in files:
                raise BundleError(
                    f"{path}: contains {files[str(parent)]!r} both as a file and as a folder; do not use it"
                )


def _check_end(file: IO[bytes], path: Path) -> int:
    """Return the offset of the directory (bytes), after checking that it is small and at the end of the file."""
    size = file.seek(0, 2)
    file.seek(max(0, size - END.size - 20))
    tail = file.read()
    if len(tail) < END.size or not tail[-END.size :].startswith(END_MARK):
        file.seek(0)
        what = "is truncated, or has data after its end" if file.read(2) == b"PK" else "is not a zip archive"
        raise BundleError(f"{path}: {what}; copy it again, or give an archive that `e3d pack` wrote")
    _, disk, _, _, count, length, start, comment = END.unpack(tail[-END.size :])
    if tail.startswith(ZIP64_MARK):
        raise BundleError(f"{path}: is a zip64 archive, a form that `e3d pack` does not write; do not use it")
    if count > MAX_ENTRIES or length > MAX_ENTRIES * (ENTRY_BYTES + LONGEST_NAME):
        raise BundleError(f"{path}: has {count} entries, a bundle has at most {MAX_ENTRIES}; do not use it")
    if disk or comment or start + length + END.size != size:
        raise BundleError(f"{path}: has bytes that belong to no entry; copy it again, or pack the bundle again")
    return int(start)


def _check_entries(infos: list[zipfile.ZipInfo], start: int, path: Path) -> None:
    """Check that all entries are plain files without compression that follow each other without gaps.

    Args:
        start: offset of the directory, where the last entry must end (bytes).
    """
    check_names((info.orig_filename for info in infos), path)
    position = 0
    for info in infos:
        if problem := _problem(info):
            raise BundleError(f"{path}: {info.filename} {problem}; give an archive that `e3d pack` wrote")
        if info.header_offset != position:
            raise BundleError(f"{path}: {info.filename} does not begin where the entry before it ends; do not use it")
        position += HEADER_BYTES + len(info.filename) + info.file_size
    if position != start:
        raise BundleError(f"{path}: its entries end at byte {position:,}, expected {start:,}; copy it again")


def _problem(info: zipfile.ZipInfo) -> str | None:
    """Return why an entry is refused, as a clause whose subject is the entry; None if it is a plain file."""
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is a link or another special file"
    if info.flag_bits & ENCRYPTED:
        return "is encrypted"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "is compressed, or its sizes contradict each other"
    if info.extra or info.comment or info.flag_bits & ~UTF8_NAME:
        return "has fields that `e3d pack` does not write"
    return None
