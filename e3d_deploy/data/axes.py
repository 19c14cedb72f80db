"""Guess which axes of an array are time and clips, by comparing frames. Needs no PyTorch.

The differences of neighbouring frames are not enough: static diagonal stripes and moving vertical stripes have the same
numbers in a different order. So each answer requires several kinds of evidence, and is None or False if one is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAIRS = 64
"""Number of pairs of neighbouring frames that are compared."""
PLACES = 16
"""Number of pairs of successive clips that are examined where one clip ends and the next begins."""
MARGIN = 2.0
"""Ratio of the differences along two axes above which the axes are distinguishable."""
AGREEING = 0.9
"""Smallest share of the pairs that must agree on an answer."""
ORDERED = 1.5
"""Clips are ordered if distant clips differ at least this many times as much as neighbouring clips."""
CELLS = 8
"""Side of the grid that frames are averaged to before a comparison (cells), so that small movements change little."""
PARTS = 4
"""Side of the grid on which changes are located (cells)."""
LOCAL = 0.75
"""Movement is local if more than this share of the change falls in the quarter of the cells that change most."""
SLANTED = 0.5
"""Correlation of the differences along rows and columns from which frames may be diagonal stripes."""
Read = Callable[[str, int, int], NDArray[np.float64] | None]
"""Function that returns a frame [H, W, C], given layout, clip and frame number; None if the frame cannot be read."""


@dataclass(frozen=True)
class Geometry:
    """Positions of the frames in an array; strides are counted in frames."""

    clips: int
    length: int
    clip_stride: int
    frame_stride: int
    channels_first: bool


def geometry(layout: str, shape: tuple[int, ...]) -> Geometry:
    """Return the positions of the frames in an array of the given layout."""
    sizes = dict(zip(layout, shape, strict=True))
    N, T = sizes.get("N", 1), sizes["T"]
    inside = layout.find("T") > layout.find("N")  # the frames of a clip are contiguous; true without N
    return Geometry(
        clips=N,
        length=T,
        clip_stride=T if inside else 1,
        frame_stride=1 if inside else N,
        channels_first="C" in layout and layout.find("C") < layout.find("H"),
    )


class _Unreadable(Exception):
    """A frame cannot be read."""


@dataclass(frozen=True)
class _Frames:
    """Reads the frames of an array in a given layout."""

    layout: str
    geometry: Geometry
    read: Read

    def at(self, clip: int, frame: int) -> NDArray[np.float64]:
        found = self.read(self.layout, clip, frame)
        if found is None:
            raise _Unreadable
        return found

    def distance(self, one: tuple[int, int], two: tuple[int, int]) -> float:
        """Return the mean difference of two frames, each given by clip and number, on a grid of cells."""
        return float(np.abs(_averaged(self.at(*one), CELLS) - _averaged(self.at(*two), CELLS)).mean())


def is_along_time(layout: str, shape: tuple[int, ...], read: Read) -> bool:
    """Return True if axis T of the layout is certainly time, and neither H nor W is.

    Two conditions hold for true frames. Neighbouring frames differ clearly less than neighbouring rows and columns,
    whose differences are similar in size and uncorrelated. And frames differ only in a few places, for example where
    something moves in front of a background.

    If H is really time and vertical shapes move, neighbouring "frames" also differ little, but by the same amount
    everywhere, or their rows and columns differ in the same places.
    """
    frames = _Frames(layout, geometry(layout, shape), read)
    try:
        return frames.geometry.length > 1 and _moves_before_background(frames)
    except _Unreadable:
        return False


def _moves_before_background(frames: _Frames) -> bool:
    rng = np.random.default_rng(0)
    time = rows = columns = both = either = 0.0
    shares = []
    for clip, frame in rng.integers((frames.geometry.clips, frames.geometry.length - 1), size=(PAIRS, 2)).tolist():
        here = frames.at(clip, frame)
        change = frames.at(clip, frame + 1) - here
        down, across = np.diff(here, axis=0)[:, :-1], np.diff(here, axis=1)[:-1]
        time += np.abs(change).mean()
        rows += np.abs(down).mean()
        columns += np.abs(across).mean()
        both += np.abs(_averaged(down * across, PARTS)).sum()
        either += np.sqrt(_averaged(down**2, PARTS) * _averaged(across**2, PARTS)).sum()
        parts = np.sort(_averaged(change**2, PARTS), axis=None)[::-1]
        shares.append(parts[: len(parts) // 4].sum() / max(parts.sum(), 1e-12))
    return (
        MARGIN * time < min(rows, columns)
        and max(rows, columns) < MARGIN * min(rows, columns)
        and both < SLANTED * either
        and bool(np.median(shares) > LOCAL)
    )


def is_time_beside_clips(layout: str, shape: tuple[int, ...], read: Read) -> bool:
    """Return True if axis T of the layout is certainly time and axis N certainly clips, not the reverse.

    Neighbouring frames differ clearly less than neighbouring clips, and clips are not ordered: distant clips differ
    about as much as neighbouring clips. If N is ordered, N may be time instead, or N may be days and T hours. Clips
    that were cut from one film are ordered too; for them it is enough that each clip continues the clip before it.
    """
    frames = _Frames(layout, geometry(layout, shape), read)
    try:
        return frames.geometry.clips > 1 and frames.geometry.length > 1 and _has_clips(frames)
    except _Unreadable:
        return False


def _has_clips(frames: _Frames) -> bool:
    N, T = frames.geometry.clips, frames.geometry.length
    rng = np.random.default_rng(0)
    pairs = rng.integers((N - 1, T - 1), size=(PAIRS, 2)).tolist()
    time = np.array([frames.distance((clip, frame), (clip, frame + 1)) for clip, frame in pairs])
    beside = np.array([frames.distance((clip, frame), (clip + 1, frame)) for clip, frame in pairs])
    if not time.any() or MARGIN * time.sum() >= beside.sum() or (time < beside).mean() < AGREEING:
        return False  # identical frames are evidence neither of time nor of clips
    if N < 3:
        return True
    steps = rng.integers(2, max(3, N - 1), size=PAIRS).tolist()
    distant = [
        frames.distance((clip, frame), ((clip + step) % N, frame))
        for (clip, frame), step in zip(pairs, steps, strict=True)
    ]
    return sum(distant) < ORDERED * beside.sum() or _clips_continue(frames, MARGIN * time.mean())


def _clips_continue(frames: _Frames, near: float) -> bool:
    """Return True if the layout has N before T, and each clip begins like a late frame of the clip before it."""
    N, T = frames.geometry.clips, frames.geometry.length
    if frames.layout.startswith("TN") or T < 3:
        return False
    clips = np.random.default_rng(0).integers(N - 1, size=PLACES).tolist()
    gaps = [min(frames.distance((clip + 1, 0), (clip, frame)) for frame in range(2, T)) for clip in clips]
    return sum(gaps) <= PLACES * near


def _averaged(frame: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """Return a frame [H, W, C] averaged over a grid of cells."""
    H, W, _ = frame.shape
    h, w = max(1, H // cells), max(1, W // cells)
    cut = frame[: H // h * h, : W // w * w]
    averaged: NDArray[np.float64] = cut.reshape(H // h, h, W // w, w, -1).mean((1, 3))
    return averaged
