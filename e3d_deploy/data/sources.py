"""Open the data that a user names: find its kind, its clips, and the clips of a split. Needs no PyTorch."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.arrays import open_npy
from e3d_deploy.data.folders import ARRAYS, distinct_clips, find_clips, new_clips, no_clips, some, warn_of_short
from e3d_deploy.data.form import Form
from e3d_deploy.data.kth import PERSONS, is_kth, no_person, open_kth, person_of
from e3d_deploy.data.layout import is_published
from e3d_deploy.data.levels import say_range
from e3d_deploy.data.mnist_files import is_original, original_clips
from e3d_deploy.data.rate import ALL, Selection
from e3d_deploy.data.readers import Reader
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.data.split_folders import Folders, find_splits
from e3d_deploy.data.split_names import LISTS, doubtful_names, is_list, resolutions
from e3d_deploy.data.splits import Split, by_time, members_of
from e3d_deploy.data.storage import Clip
from e3d_deploy.data.views import scenes
from e3d_deploy.errors import ClipError, ConfigError
from e3d_deploy.progress import Notify, silent

__all__ = ["Clip", "Source", "decay_windows", "fixed_windows", "open_source"]

LENGTH = 20
"""Length of the clips in mnist_test_seq.npy; other arrays with its layout and length are treated the same (frames)."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The clips of one split of a source."""

    name: str
    """Name of the source as the user typed it."""
    kind: str
    """`moving-mnist-npz`, `mnist_test_seq`, `kth`, or kinds of files joined by +: `array`, `pictures`, `videos`."""
    clips: Sequence[Clip]
    windows: NDArray[np.int64] | None
    """Clip and first frame of each window that the format fixes, [n, 2]; None: windows may begin anywhere."""
    held_out: bool
    """True if this split shares no file, clip or time with the training split, or, for `train`, with the other splits.

    False if names or lists suggest a division into splits that was not used.
    """
    frames_per_second: tuple[float, ...] = ()
    """Frame rates of the videos that state one, ascending, after the selection (frames per second)."""
    skipped: tuple[str, ...] = ()
    """Names of files that were skipped because they cannot be read."""
    short: tuple[str, ...] = ()
    """Names of clips that are skipped because they are shorter than a window."""
    stretches: NDArray[np.int64] | None = None
    """Clip, first frame and frames of each stretch without a gap, [n, 3]; None: no clip has a gap."""
    folders: tuple[str, ...] = ()
    """Folders and files whose names assign them to the split; empty if names assign none."""
    layouts: tuple[str, ...] = ()
    """Axes of the arrays, such as NTHWC."""
    remarks: tuple[str, ...] = ()
    """Decisions of the readers that a user may not expect."""
    is_in_doubt: bool = False
    """True if names or lists suggest a division into splits that was not used."""


def open_source(
    text: str,
    form: Form,
    *,
    split: Split,
    length: int,
    skip_bad: bool = False,
    selection: Selection = ALL,
    remarks: Remarks | None = None,
    progress: Notify = silent,
) -> Source:
    """Open the clips of one split of a source.

    The first of these rules that applies divides the source:

    - Moving MNIST in files of its own format is not divided; give a different file for each split.
    - KTH is split by person.
    - Folders and files named like splits are the splits; see `split_folders.py`. Held-out files that are links to
      training files, or copies of them, are skipped.
    - Three or more files are split by file, three or more clips by clip, fewer by time; see `splits.py`. Files that are
      views of one scene count as one file.

    Args:
        text: a file or folder, or two .npz of Moving MNIST joined by a comma.
        form: size, colours and fit of the model's frames.
        split: split to open.
        length: frames of a window.
        skip_bad: skip files that cannot be read, which is logged; to find bad pictures, all pictures are decoded once.
        selection: which frames of each clip are used, before the clip is split and cut into windows.
        remarks: collects remarks; kinds that it already has are not repeated. None: a new object, which logs the
            remarks.
        progress: receives messages while files are opened.

    Raises:
        ConfigError: a selection of frames was requested for a format with fixed windows, or resampling for a clip
            without a frame rate.
        ClipError: no file can be read, or no clip of the split is long enough.
        SourceLost: a video breaks off.
        ShapeError: an array has a rank, size, colours or data type that the model does not take, or its layout is
            ambiguous.
        BackendUnavailable: reading a video or pictures needs the extra `video`.
        OSError: TMPDIR has no room for decoded videos or unpacked arrays.
    """
    remarks = Remarks() if remarks is None else remarks
    reader = Reader(form=form, skip_bad=skip_bad, progress=progress, selection=selection, remarks=remarks)
    if not text:
        raise ClipError("data: got an empty name, expected a file or folder; give one, such as . for this folder")
    path = Path(text)
    if not path.exists():
        if (pair := _pair(text)) is None:
            raise ClipError(
                f"{text}: no such file or folder; give .npz, .npy, a video, or a folder of pictures or clips"
            )
        source = _original(text, pair, reader, split=split, length=length)
    elif path.suffix.lower() == ".npz" and path.is_file() and is_original(path):
        source = _original(text, [path], reader, split=split, length=length)
    elif path.suffix.lower() == ".npy" and path.is_file() and (clips := _test_seq(path, reader)):
        source = _published(text, clips, reader, split=split, length=length)
    elif path.is_dir() and is_kth(path):
        source = _kth(text, reader, split=split, length=length)
    else:
        source = _files(text, reader, split=split, length=length)
    reader.check_layout(text)
    say_range(text, source.clips, remarks)
    return replace(source, remarks=tuple(remarks.texts))


def _pair(text: str) -> list[Path] | None:
    """Return the two .npz files that a text joins by a comma; None if it does not.

    If names contain commas, two files that exist are preferred.
    """
    commas = [position for position, letter in enumerate(text) if letter == ","]
    pairs = [[Path(text[:comma]), Path(text[comma + 1 :])] for comma in commas]
    pairs = [pair for pair in pairs if all(part.suffix.lower() == ".npz" for part in pair)]
    return next((pair for pair in pairs if all(part.exists() for part in pair)), pairs[0] if pairs else None)


def fixed_windows(source: Source, *, length: int) -> NDArray[np.int64]:
    """Return clip and first frame of the format's fixed windows, otherwise of windows without overlap, [n, 2]."""
    if source.windows is not None:
        return source.windows
    windows = [
        (number, first)
        for number, clip in enumerate(source.clips)
        for first in range(0, len(clip) - length + 1, length)
    ]
    return np.array(windows, np.int64).reshape(-1, 2)


def frames_before(source: Source, windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many frames precede each of the windows [n, 2] of a source without a gap, [n]."""
    if source.stretches is None:
        return windows[:, 1]
    clips, firsts = source.stretches[:, 0], source.stretches[:, 1]
    begins = [firsts[(clips == clip) & (firsts <= first)].max() for clip, first in windows.tolist()]
    return windows[:, 1] - np.array(begins, np.int64)


def _check_takes_all(text: str, kind: str, reader: Reader) -> None:
    """Check that all frames are selected, for clips whose windows are fixed.

    Raises:
        ConfigError: `reader.selection` skips or resamples frames.
    """
    if not reader.selection.takes_all:
        raise ConfigError(f"{text}: {kind} fixes the frames of its windows; omit --every and --resample")


def decay_windows(source: Source, ages: Sequence[int], *, least: int, horizon: int) -> tuple[NDArray[np.int64], int]:
    """Return windows in which states of several ages can forecast the same frames, and the largest such age.

    Stretches without a gap that are too short for the age `least` are ignored. The largest age is the largest candidate
    for which at least half of the remaining stretches are long enough. A window begins at each frame from which on a
    stretch is long enough.

    Args:
        source: source whose clips are cut into windows.
        ages: candidates for the largest age (frames).
        least: age for which a stretch must be long enough (frames).
        horizon: frames of the forecast at that age.

    Returns:
        Clip and first frame, [n, 2], and the age; a window has age + horizon frames.

    Raises:
        ClipError: no stretch has `least` + `horizon` frames.
    """
    whole = [(number, 0, len(clip)) for number, clip in enumerate(source.clips)]
    pieces = np.array(whole, np.int64).reshape(-1, 3) if source.stretches is None else source.stretches
    lengths = pieces[pieces[:, 2] >= least + horizon, 2]
    if not len(lengths):
        raise ClipError(f"{source.name}: no clip has {least + horizon} frames without a gap; give longer clips")
    age = max(age for age in {least, *ages} if 2 * (lengths >= age + horizon).sum() >= len(lengths))
    windows = [
        (clip, first + start)
        for clip, first, frames in pieces.tolist()
        for start in range(frames - age - horizon + 1)
    ]  # fmt: skip
    return np.array(windows, np.int64), age


def _original(text: str, paths: Sequence[Path], reader: Reader, *, split: Split, length: int) -> Source:
    _check_takes_all(text, "moving-mnist-npz", reader)
    for path in paths:
        if not path.is_file():
            raise ClipError(f"{path}: no such file; two files joined by a comma must both exist")
    clips = original_clips(paths, reader.form, scratch=reader.scratch, progress=reader.progress)
    return _undivided(text, "moving-mnist-npz", clips, reader, split=split, length=length)


def _test_seq(path: Path, reader: Reader) -> Sequence[Clip]:
    """Return the clips of an array in the layout of mnist_test_seq.npy; empty if the array has a different layout."""
    array = open_npy(path)
    if len(array.shape) != 4 or reader.form.channels != 1:
        return []
    clips = reader.array_clips(array)
    if reader.layouts == ["TNHW"] and (len(clips[0]) == LENGTH or is_published(path.name)):
        return clips
    reader.layouts.clear()
    return []


def _published(text: str, clips: Sequence[Clip], reader: Reader, *, split: Split, length: int) -> Source:
    _check_takes_all(text, "mnist_test_seq", reader)
    found = _undivided(text, "mnist_test_seq", clips, reader, split=split, length=length)
    return replace(found, layouts=tuple(reader.layouts))


def _undivided(text: str, kind: str, clips: Sequence[Clip], reader: Reader, *, split: Split, length: int) -> Source:
    """Return a source with one window at the start of each clip; each split has the same clips, as a remark says."""
    if split != "train":
        reader.remark(f"{text}: has the same clips in each split; to train on it, give another file as --valid-data")
    shortest = min(len(clip) for clip in clips)
    if shortest < length:
        raise ClipError(
            f"{text}: has clips of {shortest} frames, but context and horizon are {length}; make them shorter, or give "
            "longer clips"
        )
    windows = np.stack([np.arange(len(clips)), np.zeros(len(clips), np.int64)], axis=1)
    return Source(text, kind, clips, windows, held_out=False)


def _kth(text: str, reader: Reader, *, split: Split, length: int) -> Source:
    _check_takes_all(text, "kth", reader)
    clips, windows, stretches = open_kth(
        Path(text),
        reader.form,
        split=split,
        length=length,
        is_good=reader.is_good,
    )
    if len(windows) == 0:
        raise ClipError(
            f"{text}: no clip of KTH's {split} split has {length} frames without a gap; use a shorter context or "
            "horizon"
        )
    _log_skipped(text, reader)
    skipped = tuple(reader.skipped)
    return Source(text, "kth", clips, windows, held_out=True, skipped=skipped, stretches=stretches)


def _files(text: str, reader: Reader, *, split: Split, length: int) -> Source:
    path = Path(text)
    found = _files_of(path, reader, split)
    files, held_out = found.files, found.held_out
    named: list[tuple[str, Clip]] = []
    for number, file in enumerate(files):
        reader.progress(f"{number + 1} of {len(files)}: {file}")
        named += reader.open(file)
    _log_skipped(text, reader)
    if not named:
        raise ClipError(f"{text}: no file of the {split} split can be read, all {len(files)} were skipped")
    short = [name for name, clip in named if len(clip) < length]
    clips = [clip for _, clip in named if len(clip) >= length]
    if short and clips:
        warn_of_short(text, short, of=len(named), length=length)
    if not clips:
        longest = max(len(clip) for _, clip in named)
        raise ClipError(
            f"{text}: no clip has {length} frames, the longest of {len(named)} in the {split} split has {longest}; "
            f"give longer clips, or a shorter context or horizon{reader.selection.longer}"
        )
    if not held_out:
        clips, held_out = _divided(text, split, clips, reader, length=length, are_views=found.are_views)
    return Source(
        name=text,
        kind="+".join(sorted({_kind(file) for file in files})),
        clips=clips,
        windows=None,
        held_out=held_out and not found.is_in_doubt,
        frames_per_second=tuple(sorted(reader.rates)),
        skipped=tuple(reader.skipped),
        short=tuple(short),
        folders=found.folders,
        layouts=tuple(reader.layouts),
        is_in_doubt=found.is_in_doubt,
    )


@dataclass(frozen=True)
class _Files:
    """The files of one split."""

    files: list[Path]
    held_out: bool
    """True if the split shares no file with the training split."""
    folders: tuple[str, ...] = ()
    """Folders and files whose names assign them to the split; empty if names assign none."""
    is_in_doubt: bool = False
    """True if names or lists suggest a division into splits that was not used."""
    are_views: bool = False
    """True if some files are views of one scene, so that they may not be divided by clip."""


def _files_of(path: Path, reader: Reader, split: Split) -> _Files:
    """Return the files of a split.

    Raises:
        ClipError: there are no such files.
    """
    if not path.is_dir():
        return _Files([path], held_out=False)
    if (splits := find_splits(path, reader.remark)) is None:
        return _unnamed(path, reader, split)
    serving = splits.serving(split)
    if serving is None and split == "train":
        names = some([str(one) for paths in splits.of.values() for one in paths])
        raise ClipError(f"{path}: has no folder for training, only {names}; give that folder itself, or another source")
    if serving is None or splits.serving("valid") is None:  # there is only a training split
        files = _without_repetitions(path, _clips_in(splits, "train", reader), reader)
        reader.remark(f"{path}: holds only {splits.of['train'][0].name}, so a part of it is held out")
        folders = tuple(str(one) for one in splits.of["train"])
        return replace(_members(path, files, split, reader), folders=folders)
    files = _without_repetitions(path, _clips_in(splits, serving, reader), reader)
    if serving != "train" and splits.of.get("train"):
        files = _held_out(path, files, _clips_in(splits, "train", reader), split, reader)
    return _Files(files, held_out=True, folders=tuple(str(one) for one in splits.of[serving]))


def _unnamed(path: Path, reader: Reader, split: Split) -> _Files:
    """Return the files of a split, for a folder in which no names assign files to splits.

    Raises:
        ClipError: there are no clips, or they are the same clips in several resolutions.
    """
    files = _without_repetitions(path, find_clips(path, reader.remark), reader)
    if not files:
        raise no_clips(path)
    if same := resolutions(path, files):
        raise ClipError(
            f"{path}: holds clips in several resolutions, {some(same)}, which would be divided among the splits; give "
            "the folder of one resolution"
        )
    lists = [] if any(map(person_of, files)) else _lists(path)
    if lists:
        reader.remark(
            f"{path}: lists of clips are not read ({some(lists)}), so the division into splits ignores them and "
            "nothing counts as held out; move the clips into folders train, val and test as the lists say"
        )
    if doubtful := doubtful_names(path, files):
        reader.remark(
            f"{path}: some names look like splits but do not match, so the division into splits ignores them and "
            f"nothing counts as held out: {some(doubtful)}; name them train, val and test with equal other words, or "
            "give only one of them"
        )
    return replace(_members(path, files, split, reader), is_in_doubt=bool(doubtful or lists))


def _lists(path: Path) -> list[str]:
    """Return the names of files, at any depth of a folder, that look like lists of the clips of splits."""
    names = (name for _, _, names in os.walk(path) for name in names if name.lower().endswith(LISTS))
    return sorted(name for name in names if is_list(Path(name)))


def _members(path: Path, files: list[Path], split: Split, reader: Reader) -> _Files:
    """Return the files of a split, for a folder in which no names assign files to splits.

    Views of one scene stay in one split. If most clips are KTH videos, the others are skipped with a remark.

    Raises:
        ClipError: no KTH video shows a person of the split, or at least half of the clips are not KTH videos.
    """
    persons = [person_of(file) for file in files]
    if any(persons):
        others = [file.name for file, person in zip(files, persons, strict=True) if person is None]
        if 2 * len(others) >= len(files):
            raise ClipError(f"{path}: holds videos of KTH, which are split by person, and other clips "
                            f"({some(others)}); give each kind its own folder")  # fmt: skip
        if others:
            reader.remark(f"{path}: skipped clips that are not KTH videos, which are split by person: {some(others)}")
        found = [file for file, person in zip(files, persons, strict=True) if person in PERSONS[split]]
        if not found:
            raise ClipError(no_person(path, split))
        return _Files(found, held_out=True)
    groups = scenes(path, files)
    are_views = len(groups) < len(files)
    if are_views:
        how = "by time" if len(groups) < 3 else f"by scene into {len(groups)} groups"
        names = some([str(file.relative_to(path)) for file in max(groups, key=len)])
        reader.remark(f"{path}: divided {how}, because names suggest views of one scene: {names}")
    if len(groups) < 3:
        return _Files(files, held_out=False, are_views=are_views)
    found, trained = (
        [file for number in members_of(one, len(groups)) for file in groups[number]] for one in (split, "train")
    )
    return _Files(found if split == "train" else _held_out(path, found, trained, split, reader), held_out=True)


def _held_out(path: Path, files: list[Path], trained: list[Path], split: Split, reader: Reader) -> list[Path]:
    """Return the held-out clips that share no file with the training clips and are not copies of them.

    Raises:
        ClipError: there are no such clips.
    """
    distinct = new_clips(files, trained)
    if distinct.links:
        reader.remark(f"{path}: skipped in {split}, because they link to training clips: {_joined(distinct.links)}")
    if distinct.copies:
        reader.remark(
            f"{path}: skipped in {split}, because they are copies of training clips: {_joined(distinct.copies)}"
        )
    if not distinct.kept:
        raise ClipError(f"{path}: all clips to hold out are training clips too, as links or copies; give other clips")
    return distinct.kept


def _clips_in(splits: Folders, split: Split, reader: Reader) -> list[Path]:
    """Return the clips in the folders of a split.

    Raises:
        ClipError: a folder has no clips.
    """
    found: list[Path] = []
    for entry in splits.of[split]:
        clips = find_clips(entry, reader.remark) if entry.is_dir() else [entry]
        if not clips:
            raise no_clips(entry)
        found += clips
    return found


def _without_repetitions(path: Path, files: list[Path], reader: Reader) -> list[Path]:
    """Return the clips that are neither links to other clips nor copies of them; remark on the skipped ones."""
    distinct = distinct_clips(files)
    if distinct.links:
        reader.remark(f"{path}: skipped links to other clips: {_joined(distinct.links)}")
    if distinct.copies:
        reader.remark(f"{path}: skipped copies of other clips: {_joined(distinct.copies)}")
    return distinct.kept


def _joined(clips: Iterable[Path]) -> str:
    return some([str(clip) for clip in clips])


def _divided(
    text: str, split: Split, clips: list[Clip], reader: Reader, *, length: int, are_views: bool
) -> tuple[list[Clip], bool]:
    """Divide the clips of one or two files or scenes; return those of a split, and True if the splits share nothing."""
    if len(clips) >= 3 and not are_views:
        return [clips[number] for number in members_of(split, len(clips))], True
    if parts := by_time(split, clips, length=length):
        return parts, True
    if split != "train":
        reader.remark(f"{text}: too short to hold anything out, so {split} is measured on the training data")
    return clips, False


def _kind(file: Path) -> str:
    if file.is_dir():
        return "pictures"
    return "array" if file.suffix.lower() in ARRAYS else "videos"


def _log_skipped(text: str, reader: Reader) -> None:
    if reader.skipped:
        log.warning("%s: %d files skipped because they cannot be read", text, len(reader.skipped))
