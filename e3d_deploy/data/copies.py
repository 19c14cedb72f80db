"""Find duplicate clips by their contents. Needs no PyTorch."""

import hashlib
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

from e3d_deploy.data.order import in_order
from e3d_deploy.data.pictures import frames_of

PLACES = 3
"""Number of blocks of a file that are compared before its whole content: at its start, middle and end."""
BLOCK = 4096
"""Size of a block that is compared (bytes)."""


def copies_among(clips: Iterable[Path]) -> dict[Path, Path]:
    """Return the clips that duplicate an earlier clip, each mapped to the first clip with the same content.

    Two files are copies if their bytes are equal, two folders of pictures if all their pictures are. To save reading, a
    file is compared only if another file has the same size, and a picture only if another folder has pictures of the
    same sizes as the folder of the picture.

    Args:
        clips: files and folders of pictures, none of which is a link to another.
    """
    groups = [list(clips)]
    for feature in (_extent, _sizes, _sample, _digest):
        groups = [alike for group in groups for alike in _alike(group, feature)]
    return {clip: group[0] for group in groups for clip in group[1:]}


def _alike(clips: Iterable[Path], feature: Callable[[Path], Hashable]) -> list[list[Path]]:
    """Return the groups of two or more clips for which `feature` is equal."""
    groups: dict[Hashable, list[Path]] = defaultdict(list)
    for clip in clips:
        try:
            found = feature(clip)
        except OSError:  # reported when the clip is opened
            continue
        if found is not None:
            groups[found].append(clip)
    return [group for group in groups.values() if len(group) > 1]


def _extent(clip: Path) -> tuple[str, int] | None:
    """Return the size of a file (bytes), or the number of pictures in a folder; None for an empty file or folder."""
    found = clip.stat()
    is_folder = stat.S_ISDIR(found.st_mode)
    size = len(_frames(clip)) if is_folder else found.st_size
    return ("frames" if is_folder else "bytes", size) if size else None


def _sizes(clip: Path) -> Hashable:
    return tuple(sorted(frame.stat().st_size for frame in _frames(clip))) if clip.is_dir() else ()


def _sample(clip: Path) -> bytes:
    """Return a hash of three blocks of a file, or of three blocks of the middle picture in a folder."""
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
    """Return the file of a clip, or the pictures in its folder in order."""
    return list(in_order(_frames(clip)).files) if clip.is_dir() else [clip]


def _frames(folder: Path) -> list[Path]:
    return [folder / name for name in frames_of([entry.name for entry in folder.iterdir()])]
