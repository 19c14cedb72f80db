"""Checks that an output path neither overwrites an input nor becomes part of one."""

import os
from collections.abc import Iterator
from pathlib import Path

from e3d_deploy.bundle.folder import MANIFEST
from e3d_deploy.data.folders import CLIPS, FOREIGN_FOLDERS, Key, entries, has_clips, key_of, masks_in
from e3d_deploy.data.pictures import is_picture
from e3d_deploy.errors import ConfigError
from e3d_deploy.files import check_writable


def check_apart(output: Path | None, *read: Path | str | None, holds_clips: bool = False) -> None:
    """Check, before any work, that an output path neither overwrites an input nor becomes part of one.

    An output path may not be inside a bundle that is read. Inside a folder of clips, it may not be a file or folder
    that the next run would read as a clip. Symbolic and hard links to an input are recognised.

    Args:
        output: output path; None checks nothing.
        read: inputs. A text may be two files joined by a comma, or the name of generated data.
        holds_clips: the output is a folder of clips or pictures, whatever its name.

    Raises:
        ConfigError: the output path is an input, is inside an input as described above, or is an existing bundle that
            contains an input.
    """
    if output is None:
        return
    for source in [place for one in read if one is not None for place in _existing_readings(one)]:
        if _same(output, source):
            raise ConfigError(f"{output}: is an input and would be overwritten; choose another path")
        if (output / MANIFEST).is_file() and _is_inside(source, [output]):
            raise ConfigError(f"{output}: contains the input {source} and would be overwritten; choose another path")
        if source.is_dir():
            _check_outside(output, source, holds_clips=holds_clips)


def check_picture(path: Path | None, *read: Path | str | None) -> None:
    """Check, before any work, that a picture can be drawn and written.

    Args:
        path: output path of the picture; None checks nothing.
        read: inputs, which the picture must not overwrite.

    Raises:
        ConfigError: the path is a folder, an input or inside an input.
    """
    if path is not None:
        import matplotlib.figure  # noqa: F401 (fail before the work if it is missing)

        check_apart(path, *read)
        if path.is_dir():
            raise ConfigError(f"{path}: got a folder, expected a file; give a path such as {path / 'picture.png'}")
        check_writable(path)


def _check_outside(output: Path, source: Path, *, holds_clips: bool) -> None:
    folders: list[Path] = []
    key = key_of(output) if output.is_file() else None
    for folder, files in _read_below(source):
        folders.append(folder)
        if key is not None and any(key_of(file) == key for file in files):
            raise ConfigError(f"{output}: is a file of the input {source}; choose another path")
    if (source / MANIFEST).is_file() and _is_inside(output, folders):
        raise ConfigError(f"{output}: is inside the bundle {source}, which is an input; choose another path")
    is_clip = holds_clips or is_picture(output.name) or output.suffix.lower() in CLIPS
    if is_clip and _is_read(output, folders):
        raise ConfigError(f"{output}: is inside the input {source}, and the next run would read it as a clip; "
                          "choose another path")  # fmt: skip


def _existing_readings(source: Path | str) -> list[Path]:
    """Return the existing files and folders that a text may mean: the whole text, or the text on either
    side of a comma."""
    text = str(source)
    commas = [place for place, letter in enumerate(text) if letter == ","]
    halves = [half for comma in commas for half in (text[:comma], text[comma + 1 :])]
    return [Path(one) for one in dict.fromkeys([text, *halves]) if one and os.path.exists(one)]


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of the paths does not exist
        return os.path.realpath(one) == os.path.realpath(other)


def _is_inside(path: Path, folders: list[Path]) -> bool:
    """Return True if a path, or the path it links to, is inside one of these folders."""
    keys = {key_of(folder) for folder in folders}
    above = [*path.absolute().parents, *Path(os.path.realpath(path)).parents]
    return any(key_of(parent) in keys for parent in above)


def _is_read(output: Path, folders: list[Path]) -> bool:
    """Return True if reading clips from these folders would also read the output."""
    keys = {key_of(folder) for folder in folders}
    for path in (output.absolute(), Path(os.path.realpath(output))):
        there = next(parent for parent in path.parents if parent.is_dir())
        new = path.relative_to(there).parts
        if key_of(there) in keys and not any(name.startswith(".") or name in FOREIGN_FOLDERS for name in new):
            return True
    return False


def _read_below(source: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each folder from which clips are read, starting with `source`, and the files in it.

    Linked folders are included. Hidden folders and folders of masks next to clips are not.
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
