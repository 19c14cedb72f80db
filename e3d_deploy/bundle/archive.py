"""The zip archives that hold a bundle: the few forms that `e3d pack` writes are the only ones that are read.

Entries are plain files, stored, back to back from the first byte, with nothing beside them: what comes out of an
archive is never more than the archive.
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

MOST_ENTRIES, LONGEST_NAME = 1000, 200
MOST_BYTES = 2_000_000_000
"""Total size of all files at most, below the point where zip needs zip64 headers, which our archives lack (bytes)."""
NAME = re.compile(r"\w([\w.+-]*[\w+-])?(/\w([\w.+-]*[\w+-])?)*", re.ASCII)
"""Parts that neither begin nor end with a dot: no way up, to a root, to a drive or through a backslash."""
END = struct.Struct("<4s4H2LH")
END_MARK, ZIP64_MARK = b"PK\x05\x06", b"PK\x06\x07"
HEADER_BYTES, ENTRY_BYTES = 30, 46
"""Sizes of the header before an entry and of its line in the list at the end, without the name that follows (bytes)."""
ENCRYPTED, UTF8_NAME = 0x2041, 0x800


def entry(name: str, size: int) -> zipfile.ZipInfo:
    """An entry whose bytes are fixed by its name and content."""
    info = zipfile.ZipInfo(name)  # of 1980-01-01, the first day that zip knows
    info.create_system = 3  # Unix, wherever it is written
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = size
    return info


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """An archive of ours and its entries by name, after their names, kinds, sizes and places were checked.

    Raises:
        BundleError: it is none, or damaged, which may also show when an entry is read within the block.
    """
    if not path.exists():
        raise BundleMissing(f"{path}: no such file; give an archive that `e3d pack` wrote")
    if not path.is_file():
        raise BundleError(f"{path}: is no regular file; give an archive that `e3d pack` wrote")
    try:
        with path.open("rb") as file:
            start = _check_end(file, path)
            with zipfile.ZipFile(file) as archive:
                _check_entries(archive.infolist(), start, path)
                yield archive, {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, struct.error) as error:
        raise BundleError(f"{path}: damaged ({error}); copy or pack it again") from error


def check_names(names: Iterable[str], path: Path) -> None:
    """Refuse names that would leave the folder, or meet in one file.

    Raises:
        BundleError: the first of them.
    """
    files: dict[str, str] = {}
    names = list(names)
    for name in names:
        if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
            shown = name[:LONGEST_NAME]
            raise BundleError(f"{path}: holds {shown!r}, which is no plain name within a folder; do not use it")
        if (other := files.setdefault(name.casefold(), name)) != name:
            raise BundleError(f"{path}: holds {other!r} and {name!r}, which differ by case alone; do not use it")
    if len(files) < len(names):
        twice = next(name for name in files.values() if names.count(name) > 1)
        raise BundleError(f"{path}: holds {twice!r} twice; do not use it")
    for name in names:
        for parent in PurePosixPath(name.casefold()).parents:
            if str(parent) in files:
                raise BundleError(f"{path}: holds {files[str(parent)]!r} as file and as folder; do not use it")


def _check_end(file: IO[bytes], path: Path) -> int:
    """Return the offset of the list of entries, after checking that it is short and ends the file (bytes)."""
    size = file.seek(0, 2)
    file.seek(max(0, size - END.size - 20))
    tail = file.read()
    if len(tail) < END.size or not tail[-END.size :].startswith(END_MARK):
        file.seek(0)
        what = "truncated or with more behind it" if file.read(2) == b"PK" else "no archive"
        raise BundleError(f"{path}: {what}; copy it again, or give one that `e3d pack` wrote")
    _, disk, _, _, count, length, start, comment = END.unpack(tail[-END.size :])
    if tail.startswith(ZIP64_MARK):
        raise BundleError(f"{path}: a zip64 archive, for sizes that no bundle has; do not use it")
    if count > MOST_ENTRIES or length > MOST_ENTRIES * (ENTRY_BYTES + LONGEST_NAME):
        raise BundleError(f"{path}: holds {count} entries, a bundle has {MOST_ENTRIES} at most; do not use it")
    if disk or comment or start + length + END.size != size:
        raise BundleError(f"{path}: has bytes that belong to no entry; copy it again, or pack the bundle anew")
    return int(start)


def _check_entries(infos: list[zipfile.ZipInfo], start: int, path: Path) -> None:
    """Refuse what is no plain stored file right behind the one before it; `start` is where the list of them begins."""
    check_names((info.orig_filename for info in infos), path)
    position = 0
    for info in infos:
        if problem := _problem(info):
            raise BundleError(f"{path}: {info.filename} {problem}; give an archive that `e3d pack` wrote")
        if info.header_offset != position:
            raise BundleError(f"{path}: {info.filename} does not begin where the entry before it ends; do not use it")
        position += HEADER_BYTES + len(info.filename) + info.file_size
    if position != start:
        raise BundleError(f"{path}: its entries have {position:,} bytes, there are {start:,}; copy it again")


def _problem(info: zipfile.ZipInfo) -> str | None:
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is a link or another special file"
    if info.flag_bits & ENCRYPTED:
        return "is encrypted"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "is compressed, or lies about its size"
    if info.extra or info.comment or info.flag_bits & ~UTF8_NAME:
        return "has fields that `e3d pack` does not write"
    return None
