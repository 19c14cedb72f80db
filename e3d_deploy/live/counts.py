"""Counts and times of one live source, while it runs and at its end."""

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from e3d_deploy.live.observation import Observation
from e3d_deploy.live.quality import Comparison, Quality

RECENT = 100
"""Pictures whose times make the frames per second of the moment."""
LAST = 10_000
"""Pictures whose times the percentiles cover."""


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Percentiles of times (ms)."""

    p50: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Counts of a source at one moment."""

    frames: int
    """Pictures that were seen."""
    frames_per_second: float | None
    """Rate over the last `RECENT` pictures; None before the second."""
    mean_frames_per_second: float | None
    """Rate from the start to the last picture."""
    silent_s: float | None
    """Time since the last picture (s); None before the first."""
    latency_ms: Percentiles | None
    """Times from the decoded picture to the whole forecast, of the last `LAST` pictures."""
    model_ms: Percentiles | None
    """Times of push and forecast alone."""
    age: int | None
    """Age of the state, in pictures."""
    cuts: int
    """Pictures before which the state was reset."""
    novelty: float | None
    """Novelty of the last picture at the horizon."""
    mse: float | None
    """Squared error at the horizon, summed over the frame, mean of all pictures."""
    copy_mse: float | None
    """The same of copying the last picture."""
    recent: Comparison | None
    """Both means over the recent pictures, which the verdict is of; None where no truth came."""
    verdict: str | None
    """Sentence if the model does not beat copying the last picture over the recent pictures."""


class Counts:
    """Counts of one source, which one thread adds to and others read.

    Args:
        horizon: frames that are forecast.
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
        """Note that the source begins now."""
        self.began_s = time.perf_counter()

    def end(self) -> None:
        """Note that the source has ended."""
        self._end_s = time.perf_counter()

    @property
    def ended_s(self) -> float:
        """Time at which the source ended, or now while it runs (s)."""
        return time.perf_counter() if self._end_s is None else self._end_s

    @property
    def has_begun(self) -> bool:
        """True once a picture was seen."""
        return self._frames > 0

    def add(self, observation: Observation) -> None:
        """Count a picture."""
        judged = observation.judged
        with self._lock:
            self._frames += 1
            self._cuts += judged.cut
            self._quality.add(judged)
            self._latency_ms.append(observation.latency_ms)
            self._model_ms.append(judged.latency_ms)
            self._times.append(time.perf_counter())
            self._last = observation
            if len(judged.errors) == self.horizon:
                self._judged += 1
                self._error += judged.errors[-1]
                self._copy_error += judged.copy_errors[-1]

    def standing(self) -> Standing:
        """Return the counts as they are now."""
        with self._lock:
            last, times = self._last, self._times
            now = self.ended_s
            known = last is not None and len(last.judged.novelty) == self.horizon
            return Standing(
                frames=self._frames,
                frames_per_second=(len(times) - 1) / max(now - times[0], 1e-9) if len(times) > 1 else None,
                mean_frames_per_second=self._frames / max(times[-1] - self.began_s, 1e-9) if times else None,
                silent_s=now - times[-1] if times else None,
                latency_ms=_percentiles(self._latency_ms),
                model_ms=_percentiles(self._model_ms),
                age=None if last is None else last.judged.age,
                cuts=self._cuts,
                novelty=last.judged.novelty[-1] if last is not None and known else None,
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
