"""Statistics of one session: frame rate, latencies, errors and dropped pictures."""

import time
from collections import deque

import numpy as np

from e3d_deploy.live.follower import FollowedPicture
from e3d_deploy.live.quality import Quality
from e3d_deploy.serve.metrics import Metrics
from e3d_deploy.serve.protocol import text_message

STATS_S = 1.0
"""Time between two `stats` messages (s)."""
RECENT = 300
"""Number of recent pictures from which the latencies in `stats` are computed."""


class SessionStatistics:
    """Statistics of one session, for the `stats` messages to its viewer and for the metrics of the server.

    Args:
        metrics: metrics of the server.
        horizon: maximum horizon of the session (frames).
    """

    def __init__(self, metrics: Metrics, horizon: int) -> None:
        self._metrics, self._quality = metrics, Quality(horizon)
        self._latencies_ms: deque[float] = deque(maxlen=RECENT)
        self._sent_s, self._frames = time.monotonic(), 0
        self._dropped_source = self._dropped_viewer = 0

    def add(self, followed: FollowedPicture, latency_s: float) -> None:
        """Add the errors and the latency of a picture.

        Args:
            latency_s: time from the arrival of the picture to its forecast (s).
        """
        self._quality.add(followed)
        self._latencies_ms.append(1000 * latency_s)
        self._frames += 1
        self._metrics.frames.inc()
        self._metrics.forecasts.inc()
        self._metrics.latency.observe(latency_s)

    def count_drops(self, source: int, viewer: int) -> None:
        """Add to the metrics the number of pictures that were dropped since the last call.

        Args:
            source: total number of pictures dropped at the source.
            viewer: total number of pictures dropped because the viewer reads too slowly.
        """
        self._metrics.drops.labels("source").inc(source - self._dropped_source)
        self._metrics.drops.labels("viewer").inc(viewer - self._dropped_viewer)
        self._dropped_source, self._dropped_viewer = source, viewer

    @property
    def is_due(self) -> bool:
        """True if `STATS_S` have passed since the last `stats` message."""
        return time.monotonic() - self._sent_s >= STATS_S

    def message(self, horizon: int) -> str:
        """Return a `stats` message for a horizon, and restart the measurement of the frame rate."""
        now_s, found = time.monotonic(), self._quality.at(horizon)
        p50_ms, p99_ms = np.percentile(self._latencies_ms, [50, 99]).tolist() if self._latencies_ms else (None, None)
        rate, self._sent_s, self._frames = self._frames / (now_s - self._sent_s), now_s, 0
        return text_message(
            "stats",
            frames_per_second=rate,
            p50_ms=p50_ms,
            p99_ms=p99_ms,
            dropped_source=self._dropped_source,
            dropped_viewer=self._dropped_viewer,
            mse=found and found.mse,
            copy_mse=found and found.copy_mse,
            verdict=self._quality.verdict(horizon),
        )
