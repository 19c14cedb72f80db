"""Frames that an array would have in some layout, and what their differences tell of its axes. Needs no PyTorch.

Differences of neighbours alone tell little: still stripes on a slant and upright stripes that wander past have the same
numbers in another order. So each answer asks for more than one sign, and is None or False where a sign is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAIRS, PLACES = 64, 16
"""Places of an array at which neighbouring frames are compared, and ends of clips that are looked at."""
MARGIN, AGREEING = 2.0, 0.9
"""Ratio of the differences along two axes that tells them apart, and the share of places that agree."""
ORDERED = 1.5
"""Ratio of the differences of distant and neighbouring clips from which on clips have an order, as frames do."""
CELLS = 8
"""Side of the grid that frames are averaged to before they are compared (cells): what moves a little stays near."""
PARTS, LOCAL = 4, 0.75
"""Side of the grid on which changes are looked for (cells), and the share of its top quarter where things move."""
SLANTED = 0.5
"""Agreement of the differences along rows and columns from which on frames may be stripes on a slant."""
Read = Callable[[str, int, int], NDArray[np.float64] | None]
"""Gives a frame [H, W, C] of an array, by layout, clip and number; None where it cannot be read."""


@dataclass(frozen=True)
class Geometry:
    """Places of the frames of an array, counted in frames."""

    clips: int
    length: int
    clip_stride: int
    frame_stride: int
    channels_first: bool


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


class _Unreadable(Exception):
    """A frame that cannot be read."""


@dataclass(frozen=True)
class _Frames:
    """Frames of an array in some layout."""

    layout: str
    places: Geometry
    read: Read

    def at(self, clip: int, frame: int) -> NDArray[np.float64]:
        found = self.read(self.layout, clip, frame)
        if found is None:
            raise _Unreadable
        return found

    def distance(self, one: tuple[int, int], two: tuple[int, int]) -> float:
        """Return the mean difference of two frames, each by clip and number, on a grid of cells."""
        return float(np.abs(_averaged(self.at(*one), CELLS) - _averaged(self.at(*two), CELLS)).mean())


def is_along_time(layout: str, shape: tuple[int, ...], read: Read) -> bool:
    """Return True if an array's frames are surely those of a layout, and neither H nor W is time.

    They differ clearly less than rows and columns, which differ about alike and independently, and they differ in a few
    places alone, as where something moves before a background. Upright things that wander past have frames in H too
    that differ little, but everywhere alike; or rows and columns that differ at the same places.
    """
    frames = _Frames(layout, geometry(layout, shape), read)
    try:
        return frames.places.length > 1 and _moves_before_background(frames)
    except _Unreadable:
        return False


def _moves_before_background(frames: _Frames) -> bool:
    rng = np.random.default_rng(0)
    time = rows = columns = both = either = 0.0
    shares = []
    for clip, frame in rng.integers((frames.places.clips, frames.places.length - 1), size=(PAIRS, 2)).tolist():
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
    """Return True if T of a layout with N is surely time and N clips, not the other way round.

    Frames differ clearly less than clips, and clips have no order: distant ones differ about as neighbours do. Hours of
    days have one, as have frames. Clips cut from one film have one as well, and may go on in the next clip instead.
    """
    frames = _Frames(layout, geometry(layout, shape), read)
    try:
        return frames.places.clips > 1 and frames.places.length > 1 and _has_clips(frames)
    except _Unreadable:
        return False


def _has_clips(frames: _Frames) -> bool:
    N, T = frames.places.clips, frames.places.length
    rng = np.random.default_rng(0)
    places = rng.integers((N - 1, T - 1), size=(PAIRS, 2)).tolist()
    time = np.array([frames.distance((clip, frame), (clip, frame + 1)) for clip, frame in places])
    beside = np.array([frames.distance((clip, frame), (clip + 1, frame)) for clip, frame in places])
    if not time.any() or MARGIN * time.sum() >= beside.sum() or (time < beside).mean() < AGREEING:
        return False  # copies tell nothing either
    if N < 3:
        return True
    steps = rng.integers(2, max(3, N - 1), size=PAIRS).tolist()
    distant = [
        frames.distance((clip, frame), ((clip + step) % N, frame))
        for (clip, frame), step in zip(places, steps, strict=True)
    ]
    return sum(distant) < ORDERED * beside.sum() or _goes_on(frames, MARGIN * time.mean())


def _goes_on(frames: _Frames, near: float) -> bool:
    """Return True if each clip begins near a later frame of the clip before it, the layout being the usual one."""
    N, T = frames.places.clips, frames.places.length
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
