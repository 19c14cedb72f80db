"""A watch yields the observations of a source in a loop, and ends as its source does."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from e3d_deploy import runtime
from e3d_deploy.data.live import reconnect
from e3d_deploy.data.live.feed import Arrival, FeedOptions
from e3d_deploy.data.rate import Selection
from e3d_deploy.errors import ConfigError, SourceLost
from e3d_deploy.live.follower import Follower
from e3d_deploy.live.novelty import MIN_ERRORS
from e3d_deploy.live.observation import Observation, observe
from e3d_deploy.live.watch import Watch
from e3d_deploy.runtime import Predictor
from e3d_deploy.runtime.renewal import NONE
from tests.commands.test_broken_source import broken
from tests.data.live.conftest import _no_proxy, start
from tests.data.live.peers import mjpeg, picture
from tests.data.test_data import gray_levels, write_video
from tests.fake_backend import CONFIG
from tests.live.test_follower import CONFIG as SMALL
from tests.live.test_follower import Repeating, gray
from tests.tools import e3d

__all__ = ["_no_proxy", "start"]

COUNT = 12


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_video(tmp_path / "film.mp4", gray_levels((16, 24), [20 * step for step in range(COUNT)]))


def test_a_watch_yields_the_lines_of_e3d_stream(exported: Path, film: Path, tmp_path: Path) -> None:
    options = ("--backend", "onnxruntime", "--threads", 1, "--horizon", 2, "--every", 2)
    e3d("stream", exported / "tiny.e3d", film, *options, "--jsonl", tmp_path / "lines")
    with (
        runtime.load(exported / "tiny.e3d", "onnxruntime", threads=1) as predictor,
        Watch(predictor, film, horizon=2, selection=Selection(every=2)) as watch,
    ):
        seen = [one.to_json() for one in watch]
    expected = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert len(seen) == COUNT // 2
    for one in (*seen, *expected):
        assert one.pop("latency_ms") > 0
    assert seen == expected


def observed(*, length: int) -> list[Observation]:
    """Return the observations of 40 pictures at a horizon of 2, in videos of a length."""
    follower, seen = Follower(Repeating(), SMALL, horizon=2, renewal=NONE), []
    for number in range(40):
        begins = number % length == 0
        arrival = Arrival(picture=gray(number), index=number, time_s=None, arrived_s=0.0, begins_video=begins)
        seen.append(observe(follower, arrival, source="camera", dropped=0))
    return seen


def test_the_novelty_of_an_observation_is_that_of_the_full_horizon() -> None:
    last = observed(length=40)[-1]
    assert last.novelty is not None
    assert last.novelty == last.followed.novelty[1]
    brief = observed(length=2)[-1]
    assert [one is not None for one in brief.followed.novelty] == [True]  # only horizon 1
    assert brief.novelty is None


def test_a_source_that_breaks_off_raises_after_its_last_picture(predictor: Predictor, tmp_path: Path) -> None:
    path, seen = broken(tmp_path / "cut.mkv"), list[Observation]()
    with Watch(predictor, path) as watch, pytest.raises(SourceLost, match="broke off after") as caught:
        seen.extend(watch)
    assert seen == [] or f"after {len(seen)} " in str(caught.value)


def test_a_signal_handler_can_stop_a_watch_whose_camera_is_silent(predictor: Predictor, start: Any) -> None:
    peer = start(mjpeg([picture(number) for number in range(30)], then_silent=True))
    seen = 0
    options = FeedOptions(policy="block", silence_s=5, attempts=0)  # without `stop`, the camera would be lost
    with Watch(predictor, f"http://127.0.0.1:{peer.port}/", options=options) as watch:
        before = signal.signal(signal.SIGALRM, lambda *_: watch.stop())
        try:
            for _ in watch:
                seen += 1
                signal.setitimer(signal.ITIMER_REAL, 0.5)  # begins again with each picture
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert seen >= 20


def test_a_reconnect_resets_the_state_and_keeps_the_medians(
    predictor: Predictor, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnect, "FIRST_DELAY_S", 0.0)
    told: list[str] = []
    count = 2 * MIN_ERRORS + CONFIG.history_length
    peer = start(mjpeg([picture(number) for number in range(count)]))
    options = FeedOptions(policy="block", attempts=1)
    with Watch(
        predictor, f"http://me:secret@127.0.0.1:{peer.port}/", renewal="none", options=options, notify=told.append
    ) as watch:
        seen = []
        for one in watch:
            seen.append(one)
            if len(seen) == count + 2:
                break
    assert [one.arrival.index for one in seen if one.followed.cut] == [count]
    assert (seen[count].followed.age, watch.feed.reconnects) == (1, 1)
    assert any("reconnecting" in line for line in told)
    assert watch.name == f"http://127.0.0.1:{peer.port}/"


@pytest.mark.parametrize("horizon", [0, -1, True, 1.5])
def test_an_invalid_horizon_is_refused_before_the_source_is_opened(predictor: Predictor, horizon: Any) -> None:
    with pytest.raises(ConfigError, match="horizon: got"):
        Watch(predictor, "missing.mp4", horizon=horizon)
