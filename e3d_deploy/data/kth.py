"""The KTH action data as google/e3d_lstm reads them: folders of pictures, split by person. Needs no PyTorch."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.form import Form
from e3d_deploy.data.pictures import load_picture
from e3d_deploy.data.storage import Clip, Part
from e3d_deploy.errors import ClipError, ShapeError

STRIDES = {"boxing": None, "handclapping": None, "handwaving": None, "walking": None, "jogging": 3, "running": 3}
"""Number of frames between the starts of windows, per category, in the original's order; None: a window's length."""
PERSONS = {"train": range(1, 17), "valid": range(17, 26), "test": range(17, 26)}
"""Persons of each split, as in the original, which also validates on the test split."""
_NUMBERED = re.compile(r"image_(\d{4})")


@dataclass(frozen=True, slots=True)
class KTHClip:
    """Red channel of the pictures of one person, float32 [t, H, W, 1]; slicing decodes the pictures."""

    files: Sequence[Path]
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, frames: slice, /) -> NDArray[np.float32]:
        """
        Raises:
            ClipError: a file is not a picture, or is damaged.
        """
        files = self.files[frames]
        clip = np.empty((len(files), *self.image_size, 1), np.float32)
        for frame, file in zip(clip, files, strict=True):
            red = np.asarray(load_picture(file).convert("RGB"))[:, :, 0]
            frame[:, :, 0] = resize_bilinear(red.astype(np.float32), self.image_size) / np.float32(255)
        return clip


def is_kth(folder: Path) -> bool:
    """Return True if a folder holds one of KTH's categories, with folders of persons named or filled as in KTH.

    Either the folders of persons are named like KTH's videos, or their pictures are numbered like image_0257.png.
    """
    there = [folder / category for category in STRIDES if (folder / category).is_dir()]
    persons = [entry for category in there for entry in category.iterdir() if _person(entry)]
    return any(map(person_of, persons)) or any(_NUMBERED.match(file.name) for one in persons for file in one.iterdir())


def open_kth(
    folder: Path,
    form: Form,
    *,
    split: Literal["train", "valid", "test"],
    length: int,
    is_good: Callable[[Path], bool],
) -> tuple[list[KTHClip], NDArray[np.int64], NDArray[np.int64]]:
    """Return the clips of a split's persons, their windows in the original's order, and their stretches without a gap.

    Args:
        folder: folder with the six categories.
        form: size and colours of the model's frames.
        split: split to open.
        length: frames of a window.
        is_good: returns True for a picture that can be used; no window spans a picture for which it returns False.

    Returns:
        The clips; the windows, [n, 2] (clip, first frame); the stretches, [n, 3] (clip, first frame, frames).

    Raises:
        ClipError: a category is missing, there is no person of the split, or the name of a picture has no number.
        ShapeError: the model takes colours.

    Source: google/e3d_lstm src/data_provider/kth_action.py, load_data, with folders in alphabetical order.
    """
    _check_gray(folder, form)
    if absent := [category for category in STRIDES if not (folder / category).is_dir()]:
        raise ClipError(f"{folder}: lacks {', '.join(absent)} of KTH's six folders; add them, even if empty")
    clips, numbers, strides = _clips_of(folder, form, PERSONS[split], length=length, is_good=is_good)
    if not clips:
        raise ClipError(no_person(folder, split))
    return clips, find_windows(numbers, strides, length=length), find_stretches(numbers)


def _clips_of(
    folder: Path, form: Form, persons: range, *, length: int, is_good: Callable[[Path], bool]
) -> tuple[list[KTHClip], list[list[int]], list[int]]:
    """Return the clips of some persons, the numbers of their frames, and the strides of their windows."""
    clips: list[KTHClip] = []
    numbers: list[list[int]] = []
    strides: list[int] = []
    for category, stride in STRIDES.items():
        for person in sorted((folder / category).iterdir()) if (folder / category).is_dir() else []:
            if _person(person) in persons:
                files = sorted(file for file in person.iterdir() if file.name.startswith("image"))
                files = [file for file in files if is_good(file)]
                clips.append(KTHClip(files, form.image_size))
                numbers.append([_number(file) for file in files])
                strides.append(stride or length)
    return clips, numbers, strides


def kth_stretches(folder: Path, form: Form) -> Iterator[tuple[str, Clip]]:
    """Yield every stretch without a gap of all persons, with its name.

    Raises:
        ShapeError: the model takes colours.
        ClipError: the name of a picture has no number.
    """
    _check_gray(folder, form)
    clips, numbers, _ = _clips_of(folder, form, range(1, 26), length=1, is_good=lambda _: True)
    for clip, first, frames in find_stretches(numbers).tolist():
        files = clips[clip].files
        yield f"{files[first].parent}, from {files[first].name}", Part(clips[clip], first, frames)


def no_person(folder: Path, split: Literal["train", "valid", "test"]) -> str:
    """Return the text of the error for a folder without persons of a split."""
    first, last = PERSONS[split][0], PERSONS[split][-1]
    return f"{folder}: has no person{first:02}_… to person{last:02}_…, which are the {split} split of KTH"


def person_of(video: Path) -> int | None:
    """Return the person in a video that is named like KTH's, such as person01_boxing_d1_uncomp.avi; otherwise None."""
    found = re.match(r"person(\d\d)_[a-z]+_d\d", video.name.casefold())
    return int(found[1]) if found else None


def _check_gray(folder: Path, form: Form) -> None:
    if form.channels != 1:
        raise ShapeError(
            f"{folder}: KTH is read in gray, but the model takes {form.channels} colours; use a model with 1 colour"
        )


def find_stretches(numbers: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return the longest pieces of clips whose frame numbers have no gap, [n, 3] (clip, first frame, frames)."""
    found = []
    for clip, of_clip in enumerate(numbers):
        ends = [*(np.flatnonzero(np.diff(of_clip) != 1) + 1).tolist(), len(of_clip)] if len(of_clip) else []
        found += [(clip, first, end - first) for first, end in zip([0, *ends], ends, strict=False)]
    return np.array(found, np.int64).reshape(-1, 3)


def find_windows(numbers: Sequence[Sequence[int]], strides: Sequence[int], *, length: int) -> NDArray[np.int64]:
    """Return the windows without a gap, [n, 2] (clip, first frame), searched backwards from the last frame.

    After a window the search moves back by the clip's stride, otherwise by one frame. It runs over all clips as one
    sequence, so a stride above the length may skip the end of the preceding clip, as in the original.

    Args:
        numbers: for each clip, the numbers in the names of its frames.
        strides: for each clip, the number of frames between the ends of two windows.
        length: frames of a window.
    """
    clip_of = np.repeat(np.arange(len(numbers)), [len(of_clip) for of_clip in numbers])
    starts = np.concatenate([[0], np.cumsum([len(of_clip) for of_clip in numbers])])
    number_of = np.concatenate([np.asarray(of_clip, np.int64) for of_clip in numbers])
    windows, last = [], len(clip_of) - 1
    while last >= length - 1:
        first = last - length + 1
        whole = clip_of[first] == clip_of[last] and number_of[last] - number_of[first] == length - 1
        if whole:
            windows.append((clip_of[first], first - starts[clip_of[first]]))
        last -= strides[clip_of[last]] if whole else 1
    return np.array(windows, np.int64).reshape(-1, 2)


def resize_bilinear(picture: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Scale a picture [H, W] like OpenCV's INTER_LINEAR: centres at half pixels, no averaging."""
    left, right, weight = _taps(picture.shape[1], size[1])
    rows = picture[:, left] * (1 - weight) + picture[:, right] * weight
    above, below, weight = _taps(picture.shape[0], size[0])
    return np.asarray(rows[above] * (1 - weight)[:, None] + rows[below] * weight[:, None], np.float32)


@cache
def _taps(size: int, new_size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return the two neighbours of each new pixel along an axis, and the weight of the second neighbour."""
    places = ((np.arange(new_size) + 0.5) * (size / new_size) - 0.5).astype(np.float32).clip(0, size - 1)
    first = np.floor(places).astype(np.intp)
    return first, (first + 1).clip(max=size - 1), (places - first).astype(np.float32)


def _person(folder: Path) -> int | None:
    found = re.match(r"person(\d\d)", folder.name)
    return int(found[1]) if found and folder.is_dir() else None


def _number(file: Path) -> int:
    found = _NUMBERED.match(file.name)
    if not found:
        raise ClipError(f"{file}: expected a name such as image_0257.png, whose number shows where frames are missing")
    return int(found[1])
