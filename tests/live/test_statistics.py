"""Statistics of a source: means of all pictures for the summary, and of recent pictures for the live table."""

import numpy as np
import pytest

from e3d_deploy.data.live.feed import Arrival
from e3d_deploy.live.follower import FollowedPicture
from e3d_deploy.live.observation import Observation
from e3d_deploy.live.quality import WINDOW
from e3d_deploy.live.statistics import SourceStatistics


def observation(index: int, error: float, copy_error: float) -> Observation:
    picture, frame = np.zeros((1, 1, 1), np.uint8), np.zeros((1, 1, 1), np.float32)
    arrival = Arrival(picture=picture, index=index, time_s=None, arrived_s=0.0, begins_video=index == 0)
    followed = FollowedPicture(
        index=index, age=index, cut=False, picture=picture, forecast=frame[None], expected=(frame,),
        errors=(error,), copy_errors=(copy_error,), novelty=(None,), latency_ms=1.0,
    )  # fmt: skip
    return Observation(source="a", arrival=arrival, followed=followed, latency_ms=2.0, dropped=0)


def test_recent_errors_and_the_verdict_cover_the_same_pictures() -> None:
    source = SourceStatistics(1)
    assert source.current().recent is None
    for index in range(1000):
        source.add(observation(index, 1.0, 5.0))
    for index in range(1000, 1000 + WINDOW):
        source.add(observation(index, 4.0, 3.0))
    statistics = source.current()
    assert statistics.recent is not None
    assert (statistics.recent.mse, statistics.recent.copy_mse, statistics.recent.frames) == (4, 3, WINDOW)
    assert statistics.verdict is not None
    assert (statistics.mse, statistics.copy_mse) == pytest.approx(
        ((1000 + 4 * WINDOW) / 1300, (5000 + 3 * WINDOW) / 1300)
    )
