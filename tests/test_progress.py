"""Progress lines."""

import pytest

from e3d_deploy.progress import Pace, duration, within
from tests.tools import Clock


def test_a_pace_has_rate_and_time_left() -> None:
    clock = Clock()
    known, unknown = Pace(100, clock=clock), Pace(clock=clock)
    clock.now = 4.0
    assert known.text(20) == "frame 20 of 100, 5.0 frames/s, 16 s left"
    assert unknown.text(20) == "frame 20, 5.0 frames/s"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (119, "2 min"), (600, "10 min"), (9000, "2 h 30 min")])
def test_durations_are_formatted(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_are_prefixed_with_the_stage_of_the_work() -> None:
    said: list[str] = []
    within(said.append, "clip 1 of 2")("frame 1")
    within(said.append, "")("frame 1")
    assert said == ["clip 1 of 2, frame 1", "frame 1"]
