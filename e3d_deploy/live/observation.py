"""Record of one picture of a source, as the outputs receive it."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from e3d_deploy.data.live.feed import Arrival
from e3d_deploy.json_values import json_object
from e3d_deploy.live.follower import FollowedPicture, Follower, Frame


def side_by_side(followed: FollowedPicture) -> Frame:
    """Return a picture (left) beside the forecast of it at the full horizon (right), [C, H, 2W].

    The right half is black for the first pictures after a start or a reset, of which there is no such forecast.
    """
    now = np.moveaxis(followed.picture, -1, 0).astype(np.float32) / np.float32(255)
    known = len(followed.expected) == len(followed.forecast)
    return np.concatenate([now, followed.expected[-1] if known else np.zeros_like(now)], axis=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """Picture of a source, with its forecast, its errors and its latency."""

    source: str
    """Label of the source."""
    arrival: Arrival
    """Picture with its index and times, as the source delivered it."""
    followed: FollowedPicture
    """Forecast after the picture, and the errors of earlier forecasts of the picture."""
    latency_ms: float
    """Time from the decoded picture to the complete forecast, including the wait in the queue (ms)."""
    dropped: int
    """Number of pictures that the source has dropped so far."""

    @property
    def novelty(self) -> float | None:
        """Novelty at the full horizon; None without such a forecast, or with too few earlier errors for a median."""
        followed = self.followed
        return followed.novelty[-1] if len(followed.novelty) == len(followed.forecast) else None

    def to_json(self) -> dict[str, Any]:
        """Return all fields except pictures as JSON values; `docs/live.md` describes the keys."""
        followed = self.followed
        unknown = [None] * (len(followed.forecast) - len(followed.errors))
        return json_object(
            {
                "source": self.source,
                "index": self.arrival.index,
                "time_s": self.arrival.time_s,
                "latency_ms": self.latency_ms,
                "age": followed.age,
                "cut": followed.cut,
                "errors": [*followed.errors, *unknown],
                "copy_errors": [*followed.copy_errors, *unknown],
                "novelty": [*followed.novelty, *unknown],
                "dropped": self.dropped,
            }
        )


def observe(follower: Follower, arrival: Arrival, *, source: str, dropped: int) -> Observation:
    """Follow a picture that arrived from a source, and return the record of it.

    Args:
        source: label of the source.
        dropped: number of pictures that the source has dropped so far.

    Raises:
        StreamError, ShapeError, ResourceLimit: see `Follower.follow`.
    """
    followed = follower.follow(arrival.picture, begins_video=arrival.begins_video)
    latency_ms = 1000 * (time.perf_counter() - arrival.arrived_s)
    return Observation(source=source, arrival=arrival, followed=followed, latency_ms=latency_ms, dropped=dropped)
