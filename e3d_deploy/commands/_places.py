"""Places of outputs: none replaces, or lies among, what a command reads."""

import os
from collections.abc import Iterator
from pathlib import Path

from e3d_deploy.bundle.folder import MANIFEST
from e3d_deploy.data.folders import CLIPS, Key, key_of
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
    for folder, names in _below(source):
        folders.append(folder)
        if key is not None and any(key_of(folder / name) == key for name in names):
            raise ConfigError(f"{output}: is a file of {source}, which is read; choose another place")
    if not _is_inside(output, folders):
        return
    if (source / MANIFEST).is_file():
        raise ConfigError(f"{output}: lies in the bundle {source}, which is read; choose another place")
    if holds_clips or is_picture(output.name) or output.suffix.lower() in CLIPS:
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


def _below(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and those below it, those behind links too, each once, with the names of their files."""
    seen: set[Key] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (key := key_of(Path(place))) in seen:
            folders.clear()
            continue
        seen.add(key)
        yield Path(place), names
