"""Progress lines of running work."""

import os
import time
from collections.abc import Callable
from typing import TextIO

Notify = Callable[[str], None]
"""Callback for one line of text. Parameters named `progress` take lines about the current work; each line replaces the
line before. Parameters named `remark` take messages for the user, which remain. TensorRT builders call `progress` from
their own threads."""


def silent(_: str) -> None:
    """Discard a line."""


def within(progress: Notify, place: str) -> Notify:
    """Return a callback that prefixes each line with the name of a stage of the work; an empty name adds nothing."""
    return lambda text: progress(f"{place}, {text}" if place else text)


class Pace:
    """Progress of a number of frames, with the rate and the time left.

    Args:
        total: number of frames; None if unknown.
    """

    def __init__(self, total: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.clock, self.started = total, clock, clock()

    def text(self, done: int) -> str:
        """Return a line such as `frame 20 of 100, 5.0 frames/s, 16 s left`."""
        seconds = max(self.clock() - self.started, 1e-9)
        rate = f"{done / seconds:.1f} frames/s"
        if self.total is None:
            return f"frame {done}, {rate}"
        return f"frame {done} of {self.total}, {rate}, {duration(seconds * (self.total - done) / max(done, 1))} left"


def is_animated(stream: TextIO) -> bool:
    """Return True if lines on a stream can be erased: the stream is a terminal, and TERM does not exclude it."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def duration(seconds: float) -> str:
    """Format a time such as `45 s`, `12 min`, `3 h 20 min` or `2.5 days`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{seconds / 86_400:.3g} days"
