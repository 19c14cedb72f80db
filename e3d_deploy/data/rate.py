"""Frame rates: select frames from a source, and compare its rate with the rate in training."""

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
"""Rate at which a source without a known rate is shown (frames per second)."""
MAX_RATE = 1000.0
"""Maximum rate to resample to (frames per second); larger values are almost certainly a typo."""
TOLERANCE = 0.2
"""Share by which the frame interval of a source may differ from that of training without a warning."""
NEAR_WHOLE = 0.05
"""Share by which a ratio of intervals may differ from a whole number and still count as that number."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Selection of frames from a source; all frames by default.

    Raises:
        ConfigError: both fields are given, `every` is below 1, or `resample` is not above 0 and up to 1,000.
    """

    every: int | None = None
    """Select every n-th frame, beginning with the first one."""
    resample: float | None = None
    """Select the frame nearest to each tick of this rate (ticks per second); frames may be dropped or repeated."""

    def __post_init__(self) -> None:
        if self.every is not None and self.resample is not None:
            raise ConfigError("every, resample: got both, expected at most one; omit one")
        if self.every is not None and (not isinstance(self.every, int) or self.every < 1):
            raise ConfigError(f"every: got {self.every!r}, expected a whole number of at least 1; 1 selects all frames")
        if self.resample is not None and not (isinstance(self.resample, int | float) and 0 < self.resample <= MAX_RATE):
            raise ConfigError(
                f"resample: got {self.resample!r}, expected frames per second above 0 and up to {MAX_RATE:g}"
            )

    @property
    def takes_all(self) -> bool:
        """True if no frame is dropped or repeated."""
        return self.resample is None and self.every in (None, 1)

    @property
    def longer(self) -> str:
        """End of a remedy, with the option that selects more frames of the same source; empty if all are selected."""
        if self.resample is not None:
            return ", or a higher --resample"
        return "" if self.takes_all else ", or a smaller --every"

    def stride(self, rate: float | None, *, name: str) -> float:
        """Return the distance between two selected frames (frames of the source).

        Args:
            rate: frame rate of the source (frames per second); None if the source states none.
            name: name of the source, for the error.

        Raises:
            ConfigError: resampling needs a rate, and `rate` is None.
        """
        if self.resample is None:
            return float(self.every or 1)
        if rate is None:
            raise ConfigError(
                f"{name}: has no known frame rate, which --resample {self.resample:g} needs; give --every instead"
            )
        return rate / self.resample

    def rate(self, rate: float | None) -> float | None:
        """Return the rate of the selected frames, given the rate of the source; None if unknown (frames per second)."""
        if self.resample is not None:
            return self.resample
        return None if rate is None else rate / (self.every or 1)


ALL = Selection()
"""Selection of every frame, once."""


def selected_frame(number: int, stride: float) -> int:
    """Return the frame of the source that is nearest to selected frame `number`; on a tie, the later one."""
    return math.floor(number * stride + 0.5)


def selected_frames(count: int, stride: float) -> list[int]:
    """Return the selected frames of a source of `count` frames, in order."""
    most = math.ceil(count / stride) + 1
    return [found for number in range(most) if (found := selected_frame(number, stride)) < count]


def select(pictures: Iterable[NDArray[Any]], stride: float) -> Iterator[NDArray[Any]]:
    """Yield the selected pictures of a source while it plays."""
    taken = 0
    for number, picture in enumerate(pictures):
        while selected_frame(taken, stride) == number:
            yield picture
            taken += 1


def select_by_time(timed: Iterable[tuple[Fraction, T]], rate: float, *, interval: Fraction | None) -> Iterator[T]:
    """Yield the item nearest in time to each tick of `rate`; on a tie, the later one.

    With even times these are the frames that `select` selects.

    Args:
        timed: times (s), ascending, with their items.
        rate: ticks per second; the first tick is at the first time.
        interval: duration of the last item (s); None: one tick.
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
    """Selected frames of a clip, in order; slicing reads only the requested frames."""

    clip: Clip
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, frames: slice, /) -> NDArray[Any]:
        chosen = self.numbers[frames]
        return np.concatenate([self.clip[0:0], *(self.clip[one : one + 1] for one in chosen)])


def select_clip(clip: Clip, selection: Selection, rate: float | None, *, name: str) -> Clip:
    """Return the selected frames of a clip.

    Raises:
        ConfigError: resampling was requested for a clip without a frame rate.
    """
    if selection.takes_all:
        return clip
    return SelectedClip(clip, tuple(selected_frames(len(clip), selection.stride(rate, name=name))))


def warn_of_interval(
    name: str, rates: Sequence[float | None], window: Window | None, *, selection: Selection = ALL
) -> None:
    """Log if the frame interval of a source differs from the interval in training; the warning names a remedy.

    Args:
        name: name of the source.
        rates: rates of the source's clips after the selection (frames per second); None for an unknown rate.
        window: window in training; None if the model does not state it.
        selection: frames that were selected.
    """
    interval_ms = None if window is None else window.interval_ms
    known = [rate for rate in rates if rate is not None]
    if (other := other_interval(known, window)) is not None and interval_ms is not None:
        log.warning("%s: %s; give %s", name, other, remedy(known, interval_ms, selection))


def other_interval(rates: Sequence[float], window: Window | None) -> str | None:
    """Return a clause that states the frame interval and the interval in training; None if they hardly differ.

    Args:
        rates: rates of the clips (frames per second); the clause names the rate that differs most.
        window: window in training; None if the model does not state it.
    """
    interval_ms = None if window is None else window.interval_ms
    if interval_ms is None or not rates:
        return None
    furthest = max(rates, key=lambda rate: abs(1000 / rate - interval_ms))
    if abs(1000 / furthest - interval_ms) <= TOLERANCE * interval_ms:
        return None
    return f"has a frame every {1000 / furthest:.4g} ms, the model was trained with one every {interval_ms:.4g} ms"


def remedy(rates: Sequence[float], interval_ms: float, selection: Selection) -> str:
    """Return the option that makes sources of these rates have the given frame interval.

    Args:
        rates: rates after the selection (frames per second).
        interval_ms: interval between two frames (ms).
        selection: frames that were selected.
    """
    if selection.resample is None and len(set(rates)) == 1:
        ratio = rates[0] * (selection.every or 1) * interval_ms / 1000
        whole = max(1, round(ratio))
        if abs(ratio - whole) <= NEAR_WHOLE * whole:
            return f"--every {whole}"
    return f"--resample {1000 / interval_ms:.4g}"
