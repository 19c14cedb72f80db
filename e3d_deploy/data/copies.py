"""Copies of clips, told by their contents. Needs no PyTorch."""

import hashlib
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

from e3d_deploy.data.order import in_order
from e3d_deploy.data.pictures import frames_of

PLACES = 3
"""Places of a file that are compared before the whole: its start, middle and end."""
BLOCK = 4096
"""Size of such a place (bytes)."""


def copies_among(clips: Iterable[Path]) -> dict[Path, Path]:
    """Return the clips that are copies of clips before them, each with the first of these.

    Files are copies if their bytes are the same, and folders of pictures if all their frames are. A file is read only
    if another one has its size, and a frame only if all frames of another folder have the sizes of those in its own.

    Args:
        clips: files and folders of pictures, none of which is a link to another.
    """
    groups = [list(clips)]
    for feature in (_extent, _sizes, _sample, _digest):
        groups = [alike for group in groups for alike in _alike(group, feature)]
    return {clip: group[0] for group in groups for clip in group[1:]}


def _alike(clips: Iterable[Path], feature: Callable[[Path], Hashable]) -> list[list[Path]]:
    """Return the groups of two clips or more of which a feature is the same."""
    groups: dict[Hashable, list[Path]] = defaultdict(list)
    for clip in clips:
        try:
            found = feature(clip)
        except OSError:  # told when it is opened
            continue
        if found is not None:
            groups[found].append(clip)
    return [group for group in groups.values() if len(group) > 1]


def _extent(clip: Path) -> tuple[str, int] | None:
    """Return the size of a file (bytes), or the number of frames in a folder; None if there is nothing to compare."""
    found = clip.stat()
    is_folder = stat.S_ISDIR(found.st_mode)
    size = len(_frames(clip)) if is_folder else found.st_size
    return ("frames" if is_folder else "bytes", size) if size else None


def _sizes(clip: Path) -> Hashable:
    return tuple(sorted(frame.stat().st_size for frame in _frames(clip))) if clip.is_dir() else ()


def _sample(clip: Path) -> bytes:
    """Return some bytes of a file, or of the middle frame in a folder."""
    files = _files(clip)
    with files[len(files) // 2].open("rb") as file:
        last = max(0, file.seek(0, 2) - BLOCK)
        blocks = []
        for place in range(PLACES):
            file.seek(last * place // (PLACES - 1))
            blocks.append(file.read(BLOCK))
    return hashlib.sha256(b"".join(blocks)).digest()


def _digest(clip: Path) -> bytes:
    whole = hashlib.sha256()
    for one in _files(clip):
        with one.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.digest()


def _files(clip: Path) -> list[Path]:
    """Return the file of a clip, or the frames in its folder in their order."""
    return list(in_order(_frames(clip)).files) if clip.is_dir() else [clip]


def _frames(folder: Path) -> list[Path]:
    return [folder / name for name in frames_of([entry.name for entry in folder.iterdir()])]
