"""Places of outputs: none replaces, or lies among, what a command reads."""

import os
from collections.abc import Iterator
from pathlib import Path

from e3d_deploy.bundle.folder import MANIFEST
from e3d_deploy.data.folders import CLIPS, FOREIGN_FOLDERS, Key, entries, has_clips, key_of, masks_in
from e3d_deploy.data.pictures import is_picture
from e3d_deploy.errors import ConfigError


def check_apart(output: Path | None, *read: Path | str | None, holds_clips: bool = False) -> None:
    """Check that an output replaces nothing that is read and becomes no part of it, before any work is done.

    Links and hard links count as what they lead to. Nothing is put into a bundle, and into a folder of clips nothing
    that would be read from it the next time.

    Args:
        read: files and folders; a text may be two files joined by a comma, or the name of generated data.
        holds_clips: the output is a folder of clips or pictures, whatever its name.

    Raises:
        ConfigError: it does.
    """
    if output is None:
        return
    for source in [place for one in read if one is not None for place in _places(one)]:
        if _same(output, source):
            raise ConfigError(f"{output}: is what is read, and would be replaced; choose another place")
        if (output / MANIFEST).is_file() and _is_inside(source, [output]):
            raise ConfigError(f"{output}: holds {source}, which is read, and would be replaced; choose another place")
        if source.is_dir():
            _check_outside(output, source, holds_clips=holds_clips)


def _check_outside(output: Path, source: Path, *, holds_clips: bool) -> None:
    folders: list[Path] = []
    key = key_of(output) if output.is_file() else None
    for folder, files in _read_below(source):
        folders.append(folder)
        if key is not None and any(key_of(file) == key for file in files):
            raise ConfigError(f"{output}: is a file of {source}, which is read; choose another place")
    if (source / MANIFEST).is_file() and _is_inside(output, folders):
        raise ConfigError(f"{output}: lies in the bundle {source}, which is read; choose another place")
    is_clip = holds_clips or is_picture(output.name) or output.suffix.lower() in CLIPS
    if is_clip and _is_read(output, folders):
        raise ConfigError(f"{output}: lies in {source}, and would be read as a clip of it next time; "
                          "choose another place")  # fmt: skip


def _places(source: Path | str) -> list[Path]:
    """Return the files and folders that a source may name and that are there."""
    text = str(source)
    commas = [place for place, letter in enumerate(text) if letter == ","]
    halves = [half for comma in commas for half in (text[:comma], text[comma + 1 :])]
    return [Path(one) for one in dict.fromkeys([text, *halves]) if one and os.path.exists(one)]


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one is not there
        return os.path.realpath(one) == os.path.realpath(other)


def _is_inside(path: Path, folders: list[Path]) -> bool:
    """Return True if a path, or what it leads to, lies in one of some folders."""
    keys = {key_of(folder) for folder in folders}
    above = [*path.absolute().parents, *Path(os.path.realpath(path)).parents]
    return any(key_of(parent) in keys for parent in above)


def _is_read(output: Path, folders: list[Path]) -> bool:
    """Return True if a reader of clips that looks into some folders would find an output there."""
    keys = {key_of(folder) for folder in folders}
    for path in (output.absolute(), Path(os.path.realpath(output))):
        there = next(parent for parent in path.parents if parent.is_dir())
        new = path.relative_to(there).parts
        if key_of(there) in keys and not any(name.startswith(".") or name in FOREIGN_FOLDERS for name in new):
            return True
    return False


def _read_below(source: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield a folder and those below it that a reader of clips looks into, each once, with the files in it.

    Those behind links count, hidden ones and masks beside clips do not.
    """
    seen: set[Key] = set()
    waiting, without_masks = [source], has_clips(source)
    while waiting:
        folder = waiting.pop()
        if (key := key_of(folder)) in seen:
            continue
        seen.add(key)
        inside, pictures = entries(folder)
        masks, _ = masks_in(inside, pictures) if without_masks else (set(), set())
        read = [entry for entry in inside if entry not in masks and entry.name not in FOREIGN_FOLDERS]
        waiting += [entry for entry in read if inside[entry]]
        yield folder, [entry for entry in read if not inside[entry]] + [folder / name for name in pictures]
