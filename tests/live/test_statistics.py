"""Statistics of a source: means of all pictures for the summary, and of recent pictures for the live table."""

import numpy as np
import pytest

from e3d_deploy.data.live.feed import Arrival
from e3d_deploy.live.follower import Judged
from e3d_deploy.live.observation import Observation
from e3d_deploy.live.quality import WINDOW
from e3d_deploy.live.statistics import Counts


def observation(index: int, error: float, copy_error: float) -> Observation:
    picture, frame = np.zeros((1, 1, 1), np.uint8), np.zeros((1, 1, 1), np.float32)
    arrival = Arrival(picture=picture, index=index, time_s=None, came_s=0.0, begins=index == 0)
    judged = Judged(
        index=index, age=index, cut=False, picture=picture, forecast=frame[None], expected=(frame,),
        errors=(error,), copy_errors=(copy_error,), novelty=(None,), latency_ms=1.0,
    )  # fmt: skip
    return Observation(source="a", arrival=arrival, judged=judged, latency_ms=2.0, dropped=0)


def test_recent_errors_and_the_verdict_cover_the_same_pictures() -> None:
    counts = Counts(1)
    assert counts.standing().recent is None
    for index in range(1000):
        counts.add(observation(index, 1.0, 5.0))
    for index in range(1000, 1000 + WINDOW):
        counts.add(observation(index, 4.0, 3.0))
    standing = counts.standing()
    assert standing.recent is not None
    assert (standing.recent.mse, standing.recent.copy_mse, standing.recent.frames) == (4, 3, WINDOW)
    assert standing.verdict is not None
    assert (standing.mse, standing.copy_mse) == pytest.approx(((1000 + 4 * WINDOW) / 1300, (5000 + 3 * WINDOW) / 1300))
