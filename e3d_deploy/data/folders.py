"""Find the clips in folders: files and folders that are opened one by one, each once. Needs no PyTorch."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from e3d_deploy.data.copies import copies_among
from e3d_deploy.data.masks import NO_MASKS, masks_among
from e3d_deploy.data.order import in_order
from e3d_deploy.data.pictures import frames_of, is_frame, is_picture, not_read, unread_pictures
from e3d_deploy.errors import ClipError
from e3d_deploy.progress import Notify

log = logging.getLogger(__name__)

ARRAYS = (".npz", ".npy")
VIDEOS = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp", ".3g2", ".wmv",
    ".flv", ".ogv", ".y4m", ".gif",
)  # fmt: skip
CLIPS = ARRAYS + VIDEOS
FOREIGN_FOLDERS = frozenset(
    {"__MACOSX", "@eaDir", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot"}
    | {"$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
"""Folders that operating systems and network storage add, with thumbnails and deleted files."""
Key = tuple[int, int] | str
"""Key of a file: device and inode, or the path if the file does not exist."""


def find_clips(folder: Path, remark: Notify) -> list[Path]:
    """Return the clips in a folder and below it: videos, arrays and folders of pictures.

    Hidden files, ground truth, masks, and files and folders without clips are skipped. Remarks name what is skipped,
    except hidden files. If a folder has only masks, the masks are read as clips.

    Raises:
        ClipError: a folder holds both pictures and other clips, so it is unclear if the pictures are a clip.
    """
    said: list[str] = []
    ignored: dict[str, list[Path]] = {"files and folders without clips": [], "ground truth": []}
    found = _find(folder, said.append, ignored, set())
    if not found and frames_of(entries(folder)[1]):
        return [folder]
    if not found and (masks := masks_in(*entries(folder))[0]):
        return [clip for entry in in_order(masks).files for clip in _clips_of_mask(entry, remark)]
    for reason, paths in ignored.items():
        if paths:
            remark(f"{folder}: skipped {reason}: {some([str(path.relative_to(folder)) for path in paths])}")
    for text in said:
        remark(text)
    return found


def _clips_of_mask(entry: Path, remark: Notify) -> list[Path]:
    return find_clips(entry, remark) if entry.is_dir() else [entry]


def _find(folder: Path, remark: Notify, ignored: Mapping[str, list[Path]], seen: set[Key]) -> list[Path]:
    if (key := key_of(folder)) in seen:  # a link to a folder above it, or a second link to the same folder
        return []
    seen.add(key)
    inside, names = entries(folder)
    passed_over, named = masks_in(inside, names)
    masks = [entry.name for entry in passed_over if has_clips(entry)]
    pictures = [name for name in names if is_frame(name)]
    masks += [name for name in names if not is_frame(name)]
    found: list[Path] = []
    others: list[Path] = []
    for entry in in_order(inside).files:
        if entry.name in masks:
            continue
        if inside[entry]:
            below = [] if entry.name in FOREIGN_FOLDERS else _find(entry, remark, ignored, seen)
            found += below
            others += [] if below else [entry]
        elif entry.suffix.lower() in CLIPS:
            found.append(entry)
        else:
            others.append(entry)
    if found or pictures:
        ignored["files and folders without clips"] += others
    ignored["ground truth"] += [folder / name for name in sorted(masks)]
    if doubtful := [entry.name for entry in named if has_clips(entry)]:
        remark(
            f"{folder}: read as clips, although named like ground truth: {some(sorted(doubtful))}; move them "
            "elsewhere if they are not clips"
        )
    if found and pictures:
        raise ClipError(f"{folder}: holds pictures ({min(pictures)}) and {found[0].name}; give each its own folder")
    return [folder] if pictures else found


def entries(folder: Path) -> tuple[dict[Path, bool], list[str]]:
    """Return the entries of a folder that are not pictures, each with True for a folder, and the names of its pictures.

    Hidden entries are skipped. Only links need a call to `stat`, and pictures are returned as names, because a folder
    may hold many thousands of them.
    """
    others: dict[Path, bool] = {}
    pictures: list[str] = []
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.startswith("."):
                continue
            if is_picture(entry.name):
                pictures.append(entry.name)
            else:
                others[folder / entry.name] = entry.is_dir()
    return others, pictures


def masks_in(inside: Mapping[Path, bool], pictures: Iterable[str]) -> tuple[set[Path], set[Path]]:
    """Return the ground truth and masks among the `entries` of a folder, and clips that only have such names."""
    clips = {entry: is_folder for entry, is_folder in inside.items() if may_hold_clips(entry, is_folder)}
    return masks_among(clips, beside_pictures=any(map(is_frame, pictures)))


def may_hold_clips(entry: Path, is_folder: bool) -> bool:
    """Return True if an entry may be a clip or a folder of clips, judging by its name."""
    return entry.name not in FOREIGN_FOLDERS and (is_folder or entry.suffix.lower() in CLIPS)


def some(names: Sequence[str]) -> str:
    """Format the first five names of a list, and the number of further names."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def warn_of_short(name: object, short: Sequence[str], *, of: int, length: int) -> None:
    """Log that some clips of a source have too few frames and are skipped.

    Args:
        name: name of the source.
        short: names of the short clips.
        of: number of all clips, including the short ones.
        length: required length (frames).
    """
    log.warning("%s: %d of %d clips have fewer than %d frames and are skipped (%s)",
                name, len(short), of, length, some(short))  # fmt: skip


def no_clips(folder: Path) -> ClipError:
    """Return the error for a folder without clips."""
    unread = sorted(name for _, _, names in os.walk(folder) for name in unread_pictures(names))
    if unread:
        return not_read(folder, unread)
    return ClipError(
        f"{folder}: holds no videos, pictures or arrays, {NO_MASKS}; put such files there, or give another folder"
    )


def has_clips(path: Path) -> bool:
    """Return True for a file that may be a clip, and for a folder that has such a file or a picture at any depth."""
    if path.name in FOREIGN_FOLDERS:
        return False
    if not path.is_dir():
        return path.suffix.lower() in CLIPS
    return _holds_clips(path, set())


def _holds_clips(folder: Path, seen: set[Key]) -> bool:
    if (key := key_of(folder)) in seen:
        return False
    seen.add(key)
    inside, pictures = entries(folder)
    if any(map(is_frame, pictures)):
        return True
    masks, _ = masks_in(inside, pictures)
    return any(
        not is_folder or _holds_clips(entry, seen)
        for entry, is_folder in inside.items()
        if may_hold_clips(entry, is_folder) and entry not in masks
    )


def key_of(path: Path) -> Key:
    """Return the key of a file or folder; all links to it have the same key."""
    try:
        found = path.stat()
    except OSError:  # reported when the file is opened
        return str(path)
    return found.st_dev, found.st_ino


def keys_of(path: Path) -> set[Key]:
    """Return the keys of a clip's files: of the file itself, or of the pictures that form the clip of a folder."""
    if not path.is_dir():
        return {key_of(path)}
    device = path.stat().st_dev
    with os.scandir(path) as found:
        inside = {entry.name: entry for entry in found}
        pictures = [inside[name] for name in frames_of(list(inside))]
        return {key_of(Path(entry)) if entry.is_symlink() else (device, entry.inode()) for entry in pictures}


def share_files(one: str, other: str) -> bool:
    """Return True if two sources share a file, by any path or link, or if one source is a copy of the other."""
    return not _all_keys(one).isdisjoint(_all_keys(other)) or bool(copies_among([Path(one), Path(other)]))


def _all_keys(source: str) -> set[Key]:
    """Return the keys of a source's files and folders, and of everything below the folders."""
    found: set[Key] = set()
    waiting = [Path(name) for name in ([source] if os.path.exists(source) else source.split(","))]
    while waiting:
        path = waiting.pop()
        if (key := key_of(path)) not in found:
            found.add(key)
            waiting += path.iterdir() if path.is_dir() else ()
    return found


@dataclass(frozen=True)
class DistinctClips:
    """Clips, divided into kept ones, links and copies."""

    kept: list[Path]
    """Clips that are neither links to other clips nor copies of them."""
    links: list[Path]
    """Clips all of whose files belong to earlier clips; from `new_clips`, clips that share a file with a known clip."""
    copies: list[Path]
    """Clips with the same content as another clip."""


def distinct_clips(files: Iterable[Path]) -> DistinctClips:
    """Divide clips into kept ones, links to an earlier clip, and copies of an earlier clip."""
    kept, links = _without_links(files)
    copies = copies_among(kept)
    return DistinctClips([path for path in kept if path not in copies], links, [*copies])


def new_clips(files: Iterable[Path], known: Iterable[Path]) -> DistinctClips:
    """Divide clips into kept ones, clips that share a file or picture with a known clip, and copies of a known clip.

    Args:
        files: clips without links and copies, such as `DistinctClips.kept`.
        known: clips to compare with.
    """
    known, _ = _without_links(known)
    seen = {key for path in known for key in keys_of(path)}
    others: list[Path] = []
    links: list[Path] = []
    for path in files:
        (links if keys_of(path) & seen else others).append(path)
    first = copies_among([*known, *others])
    copies = [path for path in others if path in first]
    return DistinctClips([path for path in others if path not in first], links, copies)


def _without_links(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Return the clips with a file or picture that no earlier clip has, and all other clips."""
    seen: set[Key] = set()
    kept: list[Path] = []
    left_out: list[Path] = []
    for path in files:
        keys = keys_of(path)
        (left_out if keys <= seen else kept).append(path)
        seen |= keys
    return kept, left_out
