"""Statistics of one source of `e3d stream`, readable while the source runs and after its end."""

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from e3d_deploy.live.observation import Observation
from e3d_deploy.live.quality import Comparison, Quality

RECENT = 100
"""Number of recent pictures from which the current frame rate is computed."""
LAST = 10_000
"""Number of recent pictures in the percentiles."""


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Percentiles of times (ms)."""

    p50: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of a source at one moment."""

    frames: int
    """Number of pictures that were pushed into the stream and forecast from."""
    frames_per_second: float | None
    """Frame rate over the last `RECENT` pictures; None before the second picture."""
    mean_frames_per_second: float | None
    """Frame rate from the start to the last picture; None before the first picture."""
    silent_s: float | None
    """Time since the last picture (s); None before the first picture."""
    latency_ms: Percentiles | None
    """Times from a decoded picture to its complete forecast, over the last `LAST` pictures (ms)."""
    model_ms: Percentiles | None
    """Times of pushing a picture into the stream and forecasting, over the last `LAST` pictures (ms)."""
    age: int | None
    """Age of the state (pictures); None before the first picture."""
    cuts: int
    """Number of resets of the state. Besides cuts, reconnects and changes of size also reset the state."""
    novelty: float | None
    """Novelty of the last picture at the horizon; None if there is no forecast of that picture at the horizon, or if
    there are too few earlier errors for a median (see `Novelty`)."""
    mse: float | None
    """Squared error of the last frame of a forecast, summed over the frame, mean over all pictures that were compared;
    None before the first comparison."""
    copy_mse: float | None
    """Squared error of copying the last picture known at the time of the forecast, in the same units; None before the
    first comparison."""
    recent: Comparison | None
    """Mean errors over the last 300 compared pictures, on which the verdict is based; None before the first
    comparison."""
    verdict: str | None
    """Sentence that says that the model does not beat copying the last picture. None if the model beats copying, or if
    fewer than `ENOUGH` pictures were compared (see `Quality`)."""


class SourceStatistics:
    """Statistics of one source. One thread adds pictures; any thread may read.

    Args:
        horizon: number of frames that are forecast after each picture.
    """

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self._lock = threading.Lock()
        self._quality = Quality(horizon)
        self._latency_ms: deque[float] = deque(maxlen=LAST)
        self._model_ms: deque[float] = deque(maxlen=LAST)
        self._times: deque[float] = deque(maxlen=RECENT)
        self._frames, self._cuts, self._judged = 0, 0, 0
        self._error, self._copy_error = 0.0, 0.0
        self._last: Observation | None = None
        self.began_s = time.perf_counter()
        self._end_s: float | None = None

    def begin(self) -> None:
        """Record the start of the source, which the mean frame rate is counted from."""
        self.began_s = time.perf_counter()

    def end(self) -> None:
        """Record the end of the source, after which `silent_s` and the frame rate no longer change."""
        self._end_s = time.perf_counter()

    @property
    def ended_s(self) -> float:
        """Value of `time.perf_counter()` at the end of the source; the current value while the source runs (s)."""
        return time.perf_counter() if self._end_s is None else self._end_s

    @property
    def has_begun(self) -> bool:
        """True after the first picture. `begin` does not change it."""
        return self._frames > 0

    def add(self, observation: Observation) -> None:
        """Add the counts, times and errors of a picture."""
        followed = observation.followed
        with self._lock:
            self._frames += 1
            self._cuts += followed.cut
            self._quality.add(followed)
            self._latency_ms.append(observation.latency_ms)
            self._model_ms.append(followed.latency_ms)
            self._times.append(time.perf_counter())
            self._last = observation
            if len(followed.errors) == self.horizon:
                self._judged += 1
                self._error += followed.errors[-1]
                self._copy_error += followed.copy_errors[-1]

    def current(self) -> Statistics:
        """Return the current statistics."""
        with self._lock:
            last, times = self._last, self._times
            now = self.ended_s
            return Statistics(
                frames=self._frames,
                frames_per_second=(len(times) - 1) / max(now - times[0], 1e-9) if len(times) > 1 else None,
                mean_frames_per_second=self._frames / max(times[-1] - self.began_s, 1e-9) if times else None,
                silent_s=now - times[-1] if times else None,
                latency_ms=_percentiles(self._latency_ms),
                model_ms=_percentiles(self._model_ms),
                age=None if last is None else last.followed.age,
                cuts=self._cuts,
                novelty=None if last is None else last.novelty,
                mse=self._error / self._judged if self._judged else None,
                copy_mse=self._copy_error / self._judged if self._judged else None,
                recent=self._quality.at(self.horizon),
                verdict=self._quality.verdict(self.horizon),
            )


def _percentiles(values: "deque[float]") -> Percentiles | None:
    if not values:
        return None
    p50, p99 = np.percentile(values, (50, 99)).tolist()
    return Percentiles(p50=p50, p99=p99)
