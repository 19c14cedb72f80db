"""Find folders and files that are named like splits. Needs no PyTorch."""

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
"""Splits that may be used for a requested split, in order of preference; valid and test can replace each other."""


@dataclass
class Folders:
    """Folders and files of each split."""

    of: dict[Split, list[Path]] = field(default_factory=lambda: defaultdict(list))

    def add(self, other: "Folders") -> None:
        """Add the folders and files of another object."""
        for split, paths in other.of.items():
            self.of[split] += paths

    def serving(self, split: Split) -> Split | None:
        """Return the split whose folders are used for the requested split; None if there are none."""
        return next((one for one in PREFERRED[split] if self.of.get(one)), None)


def find_splits(folder: Path, remark: Notify) -> Folders | None:
    """Return the folders and files named like splits, in a folder or at any depth below it; None if there are none.

    Raises:
        ClipError: the names of splits contradict each other, or do not cover all clips.
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
            remark(f"{folder}: read as splits, because their names differ only in words such as train and test: "
                   f"{some([entry.name for entry in paired])}")  # fmt: skip
        taken = {path for paths in found.of.values() for path in paths}
        if others := [entry.name for entry in inside if entry not in taken and has_clips(entry)]:
            remark(f"{folder}: skipped clips outside the folders of splits: {some(others)}")
        _remark_skipped(folder, remark, taken)
        _check_nested(found)
        _check_folds(folder, taken)
        return found
    if alone := [entry for entry, name in named.items() if entry.is_dir() and name.is_bare]:
        others = [entry.name for entry in inside if entry not in alone and has_clips(entry)]
        return _unmatched(folder, {entry: named[entry] for entry in alone if has_clips(entry)}, others)
    _check_unpaired(folder, named)
    _check_unread(folder, [entry for entry in inside if entry not in named or named[entry].is_ordinary])
    below = {entry: _splits(entry, remark, seen) for entry in inside if entry.is_dir()}
    if not any(below.values()):
        return None
    if loose := [entry.name for entry in inside if not below.get(entry) and has_clips(entry)]:
        first = next(entry for entry, splits in below.items() if splits)
        raise ClipError(
            f"{folder}: {first.name} holds folders of splits, unlike {some(loose)} next to it; give only {first}"
        )
    _remark_skipped(folder, remark, set())
    _check_folds(folder, [entry for entry, splits in below.items() if splits])
    together = Folders()
    for splits in below.values():
        together.add(splits or Folders())
    return together


def _remark_skipped(folder: Path, remark: Notify, splits: set[Path]) -> None:
    """Remark on entries without clips and ground truth next to splits; splits without clips are errors elsewhere."""
    inside, pictures = entries(folder)
    visible, passed_over = in_order(inside).files, masks_in(inside, pictures)[0]
    masks = [entry.name for entry in visible if entry in passed_over and has_clips(entry)]
    others = [entry for entry in visible if entry not in splits and entry.name not in masks]
    empty = [entry.name for entry in others if not has_clips(entry)]
    if empty:
        remark(f"{folder}: skipped files and folders without clips: {some(empty)}")
    if masks:
        remark(f"{folder}: skipped ground truth: {some(masks)}")


def _candidates(folder: Path) -> dict[Path, bool]:
    """Return the entries of a folder that may hold clips, each with True for a folder; masks are skipped."""
    inside, pictures = entries(folder)
    masks, _ = masks_in(inside, pictures)
    return {one: is_folder for one, is_folder in inside.items() if may_hold_clips(one, is_folder) and one not in masks}


def _of_names(named: Mapping[Path, Name]) -> Folders | None:
    """Return the groups of names that differ only in the split and have both a training and a held-out split."""
    groups: dict[tuple[str, str], Folders] = defaultdict(Folders)
    for entry, name in named.items():
        groups[name.prefix, name.suffix].of[name.split].append(entry)
    for (prefix, suffix), group in groups.items():
        if not suffix and group.serving("train"):
            _add_kinds(group, [name for name in named.items() if name[1].prefix == prefix])
    whole = [group for group in groups.values() if group.serving("train") and group.serving("valid")]
    # Some data sets also divide other files by split, such as training_vol next to training_videos.
    holding = [group for group in whole if any(has_clips(path) for paths in group.of.values() for path in paths)]
    together = Folders()
    for group in holding or whole:
        together.add(group)
    return together if together.of else None


def _add_kinds(group: Folders, named: Sequence[tuple[Path, Name]]) -> None:
    """Add folders such as test_easy and test_hard if there is a plain `train` but no plain `test`.

    A folder such as test_easy is not added if there is a train_easy.
    """
    trained = {name.suffix for _, name in named if name.split == "train"}
    lacking = [split for split in ("valid", "test") if not group.of.get(split)]
    for entry, name in named:
        if entry.is_dir() and name.split in lacking and name.suffix not in trained:
            group.of[name.split].append(entry)


def _check_unpaired(folder: Path, named: Mapping[Path, Name]) -> None:
    """Check that no names of clips, which are not used as splits, begin with the words of different splits.

    Raises:
        ClipError: some names do. A random division of the clips could mix held-out clips with training clips.
    """
    first: dict[Split, Path] = {}
    for entry, name in named.items():
        if not (name.prefix or name.is_ordinary) and has_clips(entry):
            first.setdefault(name.split, entry)
    if len(first) > 1:
        raise ClipError(
            f"{folder}: {some([entry.name for entry in first.values()])} begin like the names of splits, but do not "
            "match each other; name them train, val and test, followed by the same words, or give only one of them"
        )


def _check_unread(folder: Path, entries: Iterable[Path]) -> None:
    """Check that no names look like splits in words that are not supported.

    Raises:
        ClipError: one name may be a training split and another a held-out split. A random division could mix the two.
    """
    first: dict[bool, Path] = {}
    for entry in entries:
        if (split := unread_split(entry)) is not None and has_clips(entry):
            first.setdefault(split == "train", entry)
    if len(first) > 1:
        raise ClipError(
            f"{folder}: {some([entry.name for entry in first.values()])} look like splits, in words that are not "
            "supported; name them train, val and test, or give only one of them"
        )


def _check_nested(found: Folders) -> None:
    """Check that no folder of a split contains a folder of another split.

    Raises:
        ClipError: a folder of one split contains a folder of another split.
    """
    for split, paths in found.of.items():
        for path in paths:
            for inside in _folders_below(path, set()):
                name = split_name(inside)
                if name is not None and name.is_bare and name.split != split and has_clips(inside):
                    raise ClipError(
                        f"{inside}: is named like a split, but is inside another split, {path.name}; move it next to "
                        f"{path.name}, or rename it"
                    )


def _check_folds(folder: Path, entries: Iterable[Path]) -> None:
    """Check that folders and files of splits belong to a single fold.

    Raises:
        ClipError: they belong to several folds, whose held-out clips may be training clips of another fold.
    """
    first: dict[str, Path] = {}
    for entry in entries:
        if (fold := fold_of(entry)) is not None:
            first.setdefault(fold, entry)
    if len(first) > 1:
        raise ClipError(
            f"{folder}: holds several folds ({some([entry.name for entry in first.values()])}), and clips that one "
            "fold holds out may be training clips of another; give a folder with a single fold"
        )


def _folders_below(path: Path, seen: set[Key]) -> Iterator[Path]:
    if not path.is_dir() or (key := key_of(path)) in seen:
        return
    seen.add(key)
    for entry, is_folder in _candidates(path).items():
        if is_folder:
            yield entry
            yield from _folders_below(entry, seen)


def _unmatched(folder: Path, named: Mapping[Path, Name], others: Sequence[str]) -> Folders | None:
    """Return the folders of splits that are only for training or only held out; None if there are no folders of splits.

    Raises:
        ClipError: there are other clips next to the folders.
    """
    if not named:
        return None
    first = next(iter(named))
    if others:
        raise ClipError(
            f"{folder}: {first.name} is named like a split, but there is no matching split, only other clips "
            f"({some(others)}); give {first} itself, or rename it"
        )
    found = Folders()
    for entry, name in named.items():
        found.of[name.split].append(entry)
    _check_nested(found)
    return found
