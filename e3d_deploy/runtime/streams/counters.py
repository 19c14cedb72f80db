"""Counters and timings of streams, in memory of fixed size."""

from typing import Any

import numpy as np

DROPS = ("full", "late", "refused", "failed", "reset", "closed")
"""Reasons for dropping a picture.

`full`: the queue was full, and the policy dropped the picture. `late`: the deadline of the picture passed. `refused`:
the queue was full, and the push raised an error. `failed`, `reset` and `closed`: the stream failed, was reset or
restored, or was closed.
"""


class Ring:
    """The last `length` numbers of a sequence."""

    __slots__ = ("_count", "_values")

    def __init__(self, length: int) -> None:
        self._values, self._count = np.zeros(length), 0

    def add(self, value: float) -> None:
        self._values[self._count % len(self._values)] = value
        self._count += 1

    def percentiles(self) -> dict[str, float | None]:
        """Return the percentiles `p50` and `p99` of the stored numbers; both are None before the first number."""
        values = self._values[: self._count]
        if not len(values):
            return {"p50": None, "p99": None}
        p50, p99 = np.percentile(values, (50, 99))
        return {"p50": float(p50), "p99": float(p99)}


class Counters:
    """Counters of one stream, or of all streams together.

    Args:
        last: the percentiles cover this number of the most recent pictures, and the same number of forecasts.
    """

    def __init__(self, last: int) -> None:
        self.frames = self.forecasts = self.bad_outputs = self.failures = 0
        self.last_bad_frame: int | None = None
        self.dropped = dict.fromkeys(DROPS, 0)
        self.latency_ms, self.queueing_ms, self.forecast_ms = Ring(last), Ring(last), Ring(last)

    def saw(self, *, queueing: float, latency: float) -> None:
        """Count a picture that was seen.

        Args:
            queueing: time from the push to the beginning of the picture's first step (s).
            latency: time from the push to the end of the picture's last step (s).
        """
        self.frames += 1
        self.queueing_ms.add(1000 * queueing)
        self.latency_ms.add(1000 * latency)

    def forecast(self, latency: float) -> None:
        """Count a forecast.

        Args:
            latency: time from the request to the last frame (s).
        """
        self.forecasts += 1
        self.forecast_ms.add(1000 * latency)

    def bad(self, frame: int) -> None:
        """Count a prediction that is not finite, made after picture number `frame` of its stream."""
        self.bad_outputs, self.last_bad_frame = self.bad_outputs + 1, frame

    def to_dict(self) -> dict[str, Any]:
        """Return all counters and percentiles as JSON values; docs/runtime.md explains each."""
        rings = ("latency_ms", "queueing_ms", "forecast_ms")
        plain = ("frames", "forecasts", "bad_outputs", "last_bad_frame", "failures")
        return {
            **{name: getattr(self, name) for name in plain},
            "dropped": dict(self.dropped),
            **{name: getattr(self, name).percentiles() for name in rings},
        }
