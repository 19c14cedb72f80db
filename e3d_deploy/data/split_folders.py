"""Folders and files named like splits. Needs no PyTorch."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e3d_deploy.data.folders import Key, entries, has_clips, key_of, masks_in, may_hold_clips, some
from e3d_deploy.data.order import in_order
from e3d_deploy.data.split_names import Name, fold_of, paired_names, split_name, unread_split
from e3d_deploy.data.splits import Split
from e3d_deploy.errors import ClipError
from e3d_deploy.progress import Notify

PREFERRED: dict[Split, tuple[Split, ...]] = {
    "train": ("train",),
    "valid": ("valid", "test"),
    "test": ("test", "valid"),
}
"""Splits whose clips serve for one, the preferred first; valid and test can stand in for each other."""


@dataclass
class Folders:
    """Folders and files of each split."""

    of: dict[Split, list[Path]] = field(default_factory=lambda: defaultdict(list))

    def add(self, other: "Folders") -> None:
        """Add those of another folder."""
        for split, paths in other.of.items():
            self.of[split] += paths

    def serving(self, split: Split) -> Split | None:
        """Return the split whose folders serve for one; None if there are none."""
        return next((one for one in PREFERRED[split] if self.of.get(one)), None)


def find_splits(folder: Path, remark: Notify) -> Folders | None:
    """Return the folders and files named like splits in a folder, or in those below it; None if there are none.

    Raises:
        ClipError: names of splits that contradict what lies beside them.
    """
    return _splits(folder, remark, set())


def _splits(folder: Path, remark: Notify, seen: set[Key]) -> Folders | None:
    if (key := key_of(folder)) in seen:
        return None
    seen.add(key)
    inside = in_order(_candidates(folder)).files
    paired = paired_names(inside)
    named = {entry: name for entry in inside if (name := split_name(entry))}
    found = _of_names(named | paired)
    if found is not None:
        if paired:
            remark(f"{folder}: read as splits, as their names differ in train and the like alone: "
                   f"{some([entry.name for entry in paired])}")  # fmt: skip
        taken = {path for paths in found.of.values() for path in paths}
        if others := [entry.name for entry in inside if entry not in taken and has_clips(entry)]:
            remark(f"{folder}: passed over, as in no folder of a split: {some(others)}")
        _say_ignored(folder, remark, taken)
        _check_nested(found)
        _check_folds(folder, taken)
        return found
    if alone := [entry for entry, name in named.items() if entry.is_dir() and name.is_bare]:
        others = [entry.name for entry in inside if entry not in alone and has_clips(entry)]
        return _alone(folder, {entry: named[entry] for entry in alone if has_clips(entry)}, others)
    _check_unpaired(folder, named)
    _check_unread(folder, [entry for entry in inside if entry not in named or named[entry].is_ordinary])
    below = {entry: _splits(entry, remark, seen) for entry in inside if entry.is_dir()}
    if not any(below.values()):
        return None
    if loose := [entry.name for entry in inside if not below.get(entry) and has_clips(entry)]:
        first = next(entry for entry, splits in below.items() if splits)
        raise ClipError(
            f"{folder}: {first.name} holds folders of splits, {some(loose)} beside it does not; give {first} alone"
        )
    _say_ignored(folder, remark, set())
    _check_folds(folder, [entry for entry, splits in below.items() if splits])
    together = Folders()
    for splits in below.values():
        together.add(splits or Folders())
    return together


def _say_ignored(folder: Path, remark: Notify, splits: set[Path]) -> None:
    """Name what holds no clips beside folders of splits; an empty one of these is an error of its own."""
    inside, pictures = entries(folder)
    visible, passed_over = in_order(inside).files, masks_in(inside, pictures)[0]
    masks = [entry.name for entry in visible if entry in passed_over and has_clips(entry)]
    others = [entry for entry in visible if entry not in splits and entry.name not in masks]
    empty = [entry.name for entry in others if not has_clips(entry)]
    if empty:
        remark(f"{folder}: ignored, as no clips: {some(empty)}")
    if masks:
        remark(f"{folder}: ignored, as ground truth: {some(masks)}")


def _candidates(folder: Path) -> dict[Path, bool]:
    """Return what may hold clips in a folder, each with True for a folder; without masks."""
    inside, pictures = entries(folder)
    masks, _ = masks_in(inside, pictures)
    return {one: is_folder for one, is_folder in inside.items() if may_hold_clips(one, is_folder) and one not in masks}


def _of_names(named: Mapping[Path, Name]) -> Folders | None:
    """Return the splits of names with the same other words, of which one is for training and another is held out."""
    groups: dict[tuple[str, str], Folders] = defaultdict(Folders)
    for entry, name in named.items():
        groups[name.prefix, name.suffix].of[name.split].append(entry)
    for (prefix, suffix), group in groups.items():
        if not suffix and group.serving("train"):
            _add_kinds(group, [name for name in named.items() if name[1].prefix == prefix])
    whole = [group for group in groups.values() if group.serving("train") and group.serving("valid")]
    # Some data sets keep other files by split too, such as training_vol beside training_videos.
    holding = [group for group in whole if any(has_clips(path) for paths in group.of.values() for path in paths)]
    together = Folders()
    for group in holding or whole:
        together.add(group)
    return together if together.of else None


def _add_kinds(group: Folders, named: Sequence[tuple[Path, Name]]) -> None:
    """Add folders such as test_easy and test_hard where there is a plain `train` and no plain `test`.

    Not those of kinds that have their own to train on.
    """
    trained = {name.suffix for _, name in named if name.split == "train"}
    lacking = [split for split in ("valid", "test") if not group.of.get(split)]
    for entry, name in named:
        if entry.is_dir() and name.split in lacking and name.suffix not in trained:
            group.of[name.split].append(entry)


def _check_unpaired(folder: Path, named: Mapping[Path, Name]) -> None:
    """Check that no names of clips begin with the words of different splits, where they are not used as splits.

    Raises:
        ClipError: some do; dividing them at random would mix what somebody held out with what is trained on.
    """
    first: dict[Split, Path] = {}
    for entry, name in named.items():
        if not (name.prefix or name.is_ordinary) and has_clips(entry):
            first.setdefault(name.split, entry)
    if len(first) > 1:
        raise ClipError(
            f"{folder}: {some([entry.name for entry in first.values()])} begin like the names of splits, but do not go "
            "together; name them train, val and test, with the same words behind, or give one of them itself"
        )


def _check_unread(folder: Path, entries: Iterable[Path]) -> None:
    """Check that no names tell of splits in words that are not read as such.

    Raises:
        ClipError: one may be to train on and one to hold out; dividing them at random would mix the two.
    """
    first: dict[bool, Path] = {}
    for entry in entries:
        if (split := unread_split(entry)) is not None and has_clips(entry):
            first.setdefault(split == "train", entry)
    if len(first) > 1:
        raise ClipError(
            f"{folder}: {some([entry.name for entry in first.values()])} are named like splits, in words that are not "
            "read; name them train, val and test, or give one of them itself"
        )


def _check_nested(found: Folders) -> None:
    """Check that no folder of a split has one of another split in it.

    Raises:
        ClipError: one has.
    """
    for split, paths in found.of.items():
        for path in paths:
            for inside in _folders_below(path, set()):
                name = split_name(inside)
                if name is not None and name.is_bare and name.split != split and has_clips(inside):
                    raise ClipError(
                        f"{inside}: is named like a split, but lies in {path.name}, another one; move it beside "
                        f"{path.name}, or rename it"
                    )


def _check_folds(folder: Path, entries: Iterable[Path]) -> None:
    """Check that folders and files of splits are not those of several folds.

    Raises:
        ClipError: they are; together, what one holds out another trains on.
    """
    first: dict[str, Path] = {}
    for entry in entries:
        if (fold := fold_of(entry)) is not None:
            first.setdefault(fold, entry)
    if len(first) > 1:
        raise ClipError(
            f"{folder}: holds several folds ({some([entry.name for entry in first.values()])}), and what one holds out "
            "another may train on; give a folder with one of them"
        )


def _folders_below(path: Path, seen: set[Key]) -> Iterator[Path]:
    if not path.is_dir() or (key := key_of(path)) in seen:
        return
    seen.add(key)
    for entry, is_folder in _candidates(path).items():
        if is_folder:
            yield entry
            yield from _folders_below(entry, seen)


def _alone(folder: Path, named: Mapping[Path, Name], others: Sequence[str]) -> Folders | None:
    """Return the folders of splits where there is none to train on, or none to hold out; None if they are empty.

    Raises:
        ClipError: other clips beside them.
    """
    if not named:
        return None
    first = next(iter(named))
    if others:
        raise ClipError(
            f"{folder}: {first.name} is named like a split, but has none to go with it, and clips in {some(others)}; "
            f"give {first} itself, or rename it"
        )
    found = Folders()
    for entry, name in named.items():
        found.of[name.split].append(entry)
    _check_nested(found)
    return found
