"""Counters and timings of streams, in memory of fixed size; percentiles are computed only when read."""

from typing import Any

import numpy as np

DROPS = ("full", "late", "refused", "failed", "reset", "closed")
"""Why a picture was not seen: the queue was full and the oldest or newest one went; its deadline was over; the queue
was full and the caller got an error; its stream failed, was reset, was closed."""


class Ring:
    """The last numbers of many."""

    __slots__ = ("_count", "_values")

    def __init__(self, length: int) -> None:
        self._values, self._count = np.zeros(length), 0

    def add(self, value: float) -> None:
        self._values[self._count % len(self._values)] = value
        self._count += 1

    def percentiles(self) -> dict[str, float | None]:
        """p50 and p99; None before the first number."""
        values = self._values[: self._count]
        if not len(values):
            return {"p50": None, "p99": None}
        p50, p99 = np.percentile(values, (50, 99))
        return {"p50": float(p50), "p99": float(p99)}


class Counters:
    """Counters of one stream, or of all streams together.

    Args:
        last: number of recent pictures, and of recent forecasts, that percentiles cover.
    """

    def __init__(self, last: int) -> None:
        self.frames = self.forecasts = self.bad_outputs = self.failures = 0
        self.last_bad_frame: int | None = None
        self.dropped = dict.fromkeys(DROPS, 0)
        self.latency_ms, self.queueing_ms, self.forecast_ms = Ring(last), Ring(last), Ring(last)

    def saw(self, *, queueing: float, latency: float) -> None:
        """Count a picture; seconds from its push until its step began, and until it ended."""
        self.frames += 1
        self.queueing_ms.add(1000 * queueing)
        self.latency_ms.add(1000 * latency)

    def forecast(self, latency: float) -> None:
        """Count a forecast; seconds from its request until it was whole."""
        self.forecasts += 1
        self.forecast_ms.add(1000 * latency)

    def bad(self, frame: int) -> None:
        """Count a prediction that is not finite."""
        self.bad_outputs, self.last_bad_frame = self.bad_outputs + 1, frame

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON knows it; docs/runtime.md says what each is."""
        rings = ("latency_ms", "queueing_ms", "forecast_ms")
        plain = ("frames", "forecasts", "bad_outputs", "last_bad_frame", "failures")
        return {
            **{name: getattr(self, name) for name in plain},
            "dropped": dict(self.dropped),
            **{name: getattr(self, name).percentiles() for name in rings},
        }
