"""Meaning of the axes of an array. Needs no PyTorch.

N is a clip, T a frame, C a colour; H and W are rows and columns.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.form import LAYOUTS, Form
from e3d_deploy.errors import ShapeError

MOVED = ("CTHW", "NCTHW", "CNTHW", "HWT", "HWTC", "NHWT", "NHWTC")
"""Layouts whose frames do not lie in one piece; they are named in errors."""
UNUSUAL = "CNTHW"
"""Layout of these that is no reason to doubt another one: three clips of colours would fit it too."""
SEVERAL = (3, 4)
"""Sizes of an axis that could be colours."""
PAIRS = 32
"""Places of an array at which neighbouring frames are compared."""
PUBLISHED = "mnist_test_seq"
"""Part of the name of a published file, whose clips are the second axis."""
MARGIN, AGREEING = 2.0, 0.9
"""Ratio of the differences along two axes that tells time from clips, and the share of places that agree."""
CELLS = 8
"""Side of the grid that frames are averaged to before they are compared (cells): what moves a little stays near."""
Read = Callable[[str, int, int], NDArray[np.float64] | None]
"""Gives a frame of an array, by layout, clip and number; None where it cannot be read."""


@dataclass(frozen=True)
class Geometry:
    """Places of the frames of an array, counted in frames."""

    clips: int
    length: int
    clip_stride: int
    frame_stride: int
    channels_first: bool


def is_published(name: str) -> bool:
    """Return True if the file of an array is named as published, whatever its folders are called."""
    return PUBLISHED in Path(name).name


def geometry(layout: str, shape: tuple[int, ...]) -> Geometry:
    """Return the places of frames in an array of some layout."""
    sizes = dict(zip(layout, shape, strict=True))
    N, T = sizes.get("N", 1), sizes["T"]
    inside = layout.find("T") > layout.find("N")  # frames of a clip lie together; true without N
    return Geometry(
        clips=N,
        length=T,
        clip_stride=T if inside else 1,
        frame_stride=1 if inside else N,
        channels_first="C" in layout and layout.find("C") < layout.find("H"),
    )


def find_layout(name: str, shape: tuple[int, ...], form: Form, read: Read) -> tuple[str, str | None]:
    """Return the layout of an array that holds frames of a form, and a remark where its numbers decided.

    Args:
        name: array, for errors; its file may be a published one.
        read: gives a frame, by layout, clip and number, or None where it cannot be read.

    Raises:
        ShapeError: no layout fits, or several do; it names them.
    """
    if form.layout is not None:
        _check_given(name, shape, form)
        return form.layout, None
    if len(shape) not in {len(layout) for layout in LAYOUTS}:
        raise ShapeError(f"{name}: got {list(shape)}, expected [B, T, H, W, C] or [T, H, W, C]")
    fitting = _distinct((layout for layout in LAYOUTS if _fits(layout, shape, form)), shape)
    if not fitting:
        raise ShapeError(f"{name}: {_misfit(shape, form)}")
    moved = _rivals(shape, form)
    if len(fitting) == 1:
        _check_time(name, shape, fitting[0], moved, read)
        return fitting[0], None
    published = is_published(name) and "TNHW" in fitting
    if not published and len(shape) == 4 and form.channels == 1 and (shape[0] == 3 or shape[1] in SEVERAL):
        colours = shape[1] if shape[1] in SEVERAL else shape[0]
        raise ShapeError(
            f"{_ambiguous(name, shape, fitting, moved)}, or convert it to gray if it has {colours} colours"
        )
    usual = "TNHW" if published else next((one for one in fitting if one.startswith("NT") and len(one) == 5), None)
    decided = _decide(fitting, shape, read)
    if decided is None and usual is not None:
        if not published:
            _check_time(name, shape, usual, moved, read)
        return usual, None
    if decided is None or (usual is not None and decided != usual):
        raise ShapeError(_ambiguous(name, shape, fitting, moved))
    _check_time(name, shape, decided, moved, read)
    return decided, None if usual else f"read as {_words(decided, shape)}, as frames change less along T ({decided})"


def _rivals(shape: tuple[int, ...], form: Form) -> list[str]:
    """Return the layouts that fit an array too, but whose frames do not lie in one piece."""
    return [
        layout
        for layout in MOVED
        if layout != UNUSUAL and _fits(layout, shape, form) and shape[layout.find("T")] > 1
        # Without colours these are the same numbers in the same order as without C.
        and (form.channels > 1 or layout.find("C") in (-1, len(layout) - 1))
    ]  # fmt: skip


def _check_time(
    name: str,
    shape: tuple[int, ...],
    layout: str,
    moved: Sequence[str],
    read: Read,
) -> None:
    """Check that the numbers of an array speak against the layouts that fit beside the one to be read.

    Raises:
        ShapeError: they do not.
    """
    # Colours of one frame may differ more or less than frames, so they tell nothing.
    over_colours = any("CT" in rival for rival in moved)
    if moved and (over_colours or not _is_along_time(layout, shape, read)):
        raise ShapeError(_ambiguous(name, shape, [layout], moved))


def _is_along_time(layout: str, shape: tuple[int, ...], read: Read) -> bool:
    """Return True if frames differ clearly less than columns, and columns about as much as rows.

    Were W time, rows would differ about as much as frames, which they must not.
    """
    one = geometry(layout, shape)
    if one.length < 2:
        return False
    rng = np.random.default_rng(0)
    time = rows = columns = 0.0
    for clip, frame in rng.integers((one.clips, one.length - 1), size=(PAIRS, 2)).tolist():
        here, later = read(layout, clip, frame), read(layout, clip, frame + 1)
        if here is None or later is None:
            return False
        time += np.abs(later - here).mean()
        rows += np.abs(np.diff(here, axis=0)).mean()
        columns += np.abs(np.diff(here, axis=1)).mean()
    return MARGIN * time < columns and max(rows, columns) < MARGIN * min(rows, columns)


def _check_given(name: str, shape: tuple[int, ...], form: Form) -> None:
    layout = form.layout or ""
    H, W, C = form.shape
    sizes = dict(zip(layout, shape, strict=False))
    if len(layout) != len(shape) or (sizes["H"], sizes["W"], sizes.get("C", 1)) != (H, W, C):
        raise ShapeError(
            f"{name}: got {list(shape)}, expected {layout} with H {H}, W {W} and C {C}; give another --layout, or a "
            "model for this size"
        )


def _fits(layout: str, shape: tuple[int, ...], form: Form) -> bool:
    if len(layout) != len(shape):
        return False
    sizes = dict(zip(layout, shape, strict=True))
    return (sizes["H"], sizes["W"], sizes.get("C", 1)) == form.shape


def _distinct(layouts: Iterable[str], shape: tuple[int, ...]) -> list[str]:
    """Return layouts that read an array in different ways; clips of one frame count only if there are no others."""
    found: dict[tuple[int, ...], str] = {}
    places = {layout: geometry(layout, shape) for layout in layouts}
    longer = any(one.length > 1 for one in places.values())
    for layout, one in places.items():
        if one.length > 1 or not longer:
            steps = (one.clip_stride if one.clips > 1 else 0, one.frame_stride)
            found.setdefault((one.clips, one.length, *steps), layout)
    return list(found.values())


def _misfit(shape: tuple[int, ...], form: Form) -> str:
    """Return an error of an array that fits no layout."""
    expected = list(form.shape)
    for layout in MOVED:
        if layout == "NHWT" and shape[-1] in (2, *SEVERAL):  # rather colours
            continue
        if _fits(layout, shape, form) and shape[layout.find("T")] > 1:
            return (
                f"got {list(shape)}, which fits {layout} alone, and frames have to lie in one piece; transpose it to "
                f"[T, H, W, C] or [B, T, H, W, C]"
            )
    frame = list(shape[-3:])
    if len(shape) == 3 or (len(shape) == 4 and frame[2] not in (1, 2, *SEVERAL, expected[2])):
        if form.channels > 1:
            return f"got {list(shape)}, expected [B, T, H, W, C] or [T, H, W, C] with frames {expected}"
        if len(shape) == 3:
            return f"got {list(shape)}, expected [B, T, H, W, C] or [T, H, W, C], or [T, H, W] of {expected[:2]}"
        frame = [*shape[-2:], 1]
    return other_size(frame, form)


def other_size(frame: Sequence[int], form: Form) -> str:
    """Return an error of frames [H, W, C] that are not as a model takes them."""
    return f"frames {list(frame)}, expected {list(form.shape)}; resize them, or take a model for this size"


def _ambiguous(name: str, shape: tuple[int, ...], layouts: Sequence[str], moved: Sequence[str] = ()) -> str:
    readings = ", or ".join(f"{layout} ({_words(layout, shape)})" for layout in (*layouts, *moved))
    found = f"{name}: got {list(shape)}, which may be {readings}; give --layout"
    found += " with the right one" if len(layouts) > 1 else f" {layouts[0]}"
    if moved:
        found += f", or transpose it to [T, H, W, C] or [B, T, H, W, C] if it is {' or '.join(moved)}"
    return found


def _words(layout: str, shape: tuple[int, ...]) -> str:
    sizes = dict(zip(layout, shape, strict=True))
    clips = f"{sizes['N']} clips of " if "N" in sizes else ""
    colours = f" of {sizes['C']} colours" if sizes.get("C", 1) > 1 else ""
    return f"{clips}{sizes['T']} frames{colours}"


def _decide(layouts: list[str], shape: tuple[int, ...], read: Read) -> str | None:
    """Return the one of two layouts that differ in the order of T and N along whose T frames differ clearly less."""
    if len(layouts) != 2 or layouts[0].replace("NT", "TN") != layouts[1].replace("NT", "TN"):
        return None
    layout = layouts[0]
    one = geometry(layout, shape)
    if one.clips < 2 or one.length < 2:
        return None
    rng = np.random.default_rng(0)
    along_time, along_clips = [], []
    for clip, frame in rng.integers((one.clips - 1, one.length - 1), size=(PAIRS, 2)).tolist():
        here, later, beside = read(layout, clip, frame), read(layout, clip, frame + 1), read(layout, clip + 1, frame)
        if here is None or later is None or beside is None:
            return None
        along_time.append(np.abs(_coarse(later) - _coarse(here)).mean())
        along_clips.append(np.abs(_coarse(beside) - _coarse(here)).mean())
    time, clips = np.array(along_time), np.array(along_clips)
    if not time.any() or not clips.any():  # copies tell nothing
        return None
    if MARGIN * time.sum() < clips.sum() and (time < clips).mean() >= AGREEING:
        return layout
    if MARGIN * clips.sum() < time.sum() and (clips < time).mean() >= AGREEING:
        return layouts[1]
    return None


def _coarse(frame: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a frame [H, W, C] averaged over a grid of cells."""
    H, W, _ = frame.shape
    h, w = max(1, H // CELLS), max(1, W // CELLS)
    cut = frame[: H // h * h, : W // w * w]
    averaged: NDArray[np.float64] = cut.reshape(H // h, h, W // w, w, -1).mean((1, 3))
    return averaged
