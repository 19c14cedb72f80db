"""Frame rates: frames that are taken from a source, and sources that play at another rate than in training."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.card import Window
from e3d_deploy.data.storage import Clip
from e3d_deploy.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_RATE = 10.0
"""Rate at which a source that tells none is shown (frames per second)."""
MOST_RATE = 1000.0
"""Largest rate to resample to (frames per second); larger values are almost certainly a typo."""
TOLERANCE = 0.2
"""Share by which the interval of a source may differ from that of training without a word."""
NEAR_WHOLE = 0.05
"""Share by which a ratio of intervals may differ from a whole number to be taken for it."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Frames that are taken from a source; all of them by default.

    Raises:
        ConfigError: both fields are given, or one that selects nothing.
    """

    every: int | None = None
    """Take one frame of so many, beginning with the first."""
    resample: float | None = None
    """Take the frame nearest in time to each tick of so many a second, which drops or repeats frames."""

    def __post_init__(self) -> None:
        if self.every is not None and self.resample is not None:
            raise ConfigError("every, resample: got both, expected at most one; leave one out")
        if self.every is not None and (not isinstance(self.every, int) or self.every < 1):
            raise ConfigError(f"every: got {self.every!r}, expected a whole number from 1 on; 1 takes all frames")
        if self.resample is not None and not 0 < self.resample <= MOST_RATE:
            raise ConfigError(
                f"resample: got {self.resample!r}, expected frames per second above 0 and up to {MOST_RATE:g}"
            )

    @property
    def takes_all(self) -> bool:
        """True if no frame is dropped or repeated."""
        return self.resample is None and self.every in (None, 1)

    @property
    def longer(self) -> str:
        """Option that takes more frames of the same source, to follow other remedies; empty if all are taken."""
        if self.resample is not None:
            return ", or a higher --resample"
        return "" if self.takes_all else ", or a smaller --every"

    def stride(self, rate: float | None, *, name: str) -> float:
        """Return the distance of two frames that are taken (frames of the source).

        Args:
            rate: frames per second of the source; None if it tells none.
            name: source, for the error.

        Raises:
            ConfigError: resampling of a source without a rate.
        """
        if self.resample is None:
            return float(self.every or 1)
        if rate is None:
            raise ConfigError(
                f"{name}: tells no frames per second, which --resample {self.resample:g} needs; give --every instead"
            )
        return rate / self.resample

    def rate(self, rate: float | None) -> float | None:
        """Return the rate of what is taken from a source of this rate; None if that is not known."""
        if self.resample is not None:
            return self.resample
        return None if rate is None else rate / (self.every or 1)


ALL = Selection()
"""Every frame, once."""


def place(number: int, stride: float) -> int:
    """Return the source's frame that is nearest to frame `number` of what is taken; the later one of two."""
    return math.floor(number * stride + 0.5)


def places(count: int, stride: float) -> list[int]:
    """Return the frames that are taken from a source of `count` frames, in order."""
    most = math.ceil(count / stride) + 1
    return [found for number in range(most) if (found := place(number, stride)) < count]


def select(pictures: Iterable[NDArray[Any]], stride: float) -> Iterator[NDArray[Any]]:
    """Yield the pictures that are taken from a source while it plays."""
    taken = 0
    for number, picture in enumerate(pictures):
        while place(taken, stride) == number:
            yield picture
            taken += 1


def select_by_time(timed: Iterable[tuple[Fraction, T]], rate: float, *, interval: Fraction | None) -> Iterator[T]:
    """Yield the item nearest in time to each tick of so many a second; the later one of two.

    With even times these are the frames that `select` takes.

    Args:
        timed: times (seconds), ascending, with their items.
        rate: ticks per second, the first at the first time.
        interval: time for which the last item counts (seconds); None: until the next tick.
    """
    tick, taken = 1 / Fraction(rate), 0
    first: Fraction | None = None
    held: tuple[Fraction, T] | None = None
    for time, item in timed:
        first = time if first is None else first
        if held is not None:
            middle = (held[0] + time) / 2 - first
            while taken * tick < middle:
                yield held[1]
                taken += 1
        held = (time, item)
    if held is not None and first is not None:
        end = held[0] - first + (tick if interval is None else interval) / 2
        while taken * tick < end:
            yield held[1]
            taken += 1


@dataclass(frozen=True, slots=True)
class SelectedClip:
    """Some frames of a clip, in order, as a clip; each is read when it is asked for."""

    clip: Clip
    places: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, frames: slice, /) -> NDArray[Any]:
        chosen = self.places[frames]
        return np.concatenate([self.clip[0:0], *(self.clip[one : one + 1] for one in chosen)])


def select_clip(clip: Clip, selection: Selection, rate: float | None, *, name: str) -> Clip:
    """Return the frames of a clip that are taken.

    Raises:
        ConfigError: resampling of a clip without a rate.
    """
    if selection.takes_all:
        return clip
    return SelectedClip(clip, tuple(places(len(clip), selection.stride(rate, name=name))))


def warn_of_interval(
    name: str, rates: Sequence[float | None], window: Window | None, *, selection: Selection = ALL
) -> None:
    """Log, once, that the time between two frames of a source is not that of training, and what to do.

    Args:
        rates: rates of the source's clips after the selection (frames per second); None where one is not known.
        window: window of training; None if it is not known.
        selection: frames that were taken.
    """
    interval_ms = None if window is None else window.interval_ms
    known = [rate for rate in rates if rate is not None]
    if (other := other_interval(known, window)) is not None and interval_ms is not None:
        log.warning("%s: %s; give %s", name, other, remedy(known, interval_ms, selection))


def other_interval(rates: Sequence[float], window: Window | None) -> str | None:
    """Return a clause that says how the time between two frames differs from that of training; None if it does not.

    Args:
        rates: frames per second; the one that differs most is named.
        window: window of training; None if it is not known.
    """
    interval_ms = None if window is None else window.interval_ms
    if interval_ms is None or not rates:
        return None
    furthest = max(rates, key=lambda rate: abs(1000 / rate - interval_ms))
    if abs(1000 / furthest - interval_ms) <= TOLERANCE * interval_ms:
        return None
    return f"has a frame every {1000 / furthest:.4g} ms, the model was trained with one every {interval_ms:.4g} ms"


def remedy(rates: Sequence[float], interval_ms: float, selection: Selection) -> str:
    """Return the option that brings sources of these rates to an interval.

    Args:
        rates: rates after the selection (frames per second).
    """
    if selection.resample is None and len(set(rates)) == 1:
        ratio = rates[0] * (selection.every or 1) * interval_ms / 1000
        whole = max(1, round(ratio))
        if abs(ratio - whole) <= NEAR_WHOLE * whole:
            return f"--every {whole}"
    return f"--resample {1000 / interval_ms:.4g}"
