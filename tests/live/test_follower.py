"""A follower compares each forecast, and copying the last picture, with the picture that arrives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy import frames, metrics, runtime
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import StreamError
from e3d_deploy.live.follower import FollowedPicture, Follower
from e3d_deploy.live.quality import ENOUGH, Quality
from e3d_deploy.runtime.renewal import NONE

CONFIG = ModelConfig(image_size=(4, 4), patch_size=2, hidden=(1,), kernel_size=3)


class Repeating:
    """Stream that forecasts its last picture plus h gray levels at horizon h."""

    def __init__(self) -> None:
        self.age = 0
        self.breaks = False

    def push(self, picture: Any, /) -> None:
        if self.breaks:
            raise StreamError("stream: broken; reset it")
        self.last, self.age = picture, self.age + 1

    def forecast(self, horizon: int, /) -> NDArray[np.float32]:
        frame = frames.to_frames(self.last, image_size=(4, 4), channels=1)
        ahead = np.arange(1, horizon + 1, dtype=np.float32)[:, None, None, None] / 255
        return frame[None] + ahead

    def reset(self) -> None:
        self.age = 0


def gray(level: int) -> NDArray[np.uint8]:
    return np.full((4, 4, 1), level, np.uint8)


def follow(levels: list[int], *, horizon: int = 3, **options: bool) -> list[FollowedPicture]:
    follower = Follower(Repeating(), CONFIG, horizon=horizon, renewal=NONE, **options)
    return [follower.follow(gray(level)) for level in levels]


def test_forecasts_are_compared_when_their_picture_arrives() -> None:
    followed = follow([10, 11, 12, 20])
    assert [len(one.errors) for one in followed] == [0, 1, 2, 3]
    # Each picture except the last is one gray level above the previous picture, as forecast.
    np.testing.assert_allclose(followed[2].errors, 0, atol=1e-9)
    levels = np.array([13 - 20, 13 - 20, 13 - 20]) / 255
    np.testing.assert_allclose(followed[3].errors, 16 * levels**2, rtol=1e-4)
    copies = np.array([12 - 20, 11 - 20, 10 - 20]) / 255
    np.testing.assert_allclose(followed[3].copy_errors, 16 * copies**2, rtol=1e-4)
    assert [float(one.mean()) for one in followed[3].expected] == pytest.approx([13 / 255] * 3)


def test_forecasts_are_clipped_to_the_range_of_pictures() -> None:
    assert follow([255])[0].forecast.max() == 1


def test_a_picture_that_begins_a_video_resets_the_state() -> None:
    follower = Follower(Repeating(), CONFIG, horizon=2, renewal=NONE)
    assert not follower.follow(gray(0), begins_video=True).cut, "the first picture has no earlier state to reset"
    follower.follow(gray(1))
    followed = follower.follow(gray(2), begins_video=True)
    assert (followed.cut, followed.age, followed.errors) == (True, 1, ())


def test_reset_discards_earlier_forecasts() -> None:
    follower = Follower(Repeating(), CONFIG, horizon=2, renewal=NONE)
    follower.follow(gray(0))
    follower.reset()
    followed = follower.follow(gray(1))
    assert (followed.index, followed.age, followed.errors, followed.cut) == (1, 1, (), True)
    assert not follower.follow(gray(2)).cut


def test_horizon_can_change_between_pictures() -> None:
    follower = Follower(Repeating(), CONFIG, horizon=4, renewal=NONE)
    known, forecast = [], []
    for level, horizon in enumerate([4, 4, 4, 4, 2, 2, 4, 4, 4, 4, 4]):
        follower.horizon = horizon
        followed = follower.follow(gray(level))
        np.testing.assert_allclose(followed.errors, 0, atol=1e-9)
        known.append(len(followed.errors))
        forecast.append(len(followed.forecast))
    assert forecast == [4, 4, 4, 4, 2, 2, 4, 4, 4, 4, 4]
    # After pictures 4 and 5 only 2 frames were forecast, so pictures 7 to 9 are compared at fewer horizons.
    assert known == [0, 1, 2, 3, 2, 2, 4, 2, 2, 3, 4]


def test_a_cut_resets_only_with_reset_on_cut() -> None:
    levels = [10, 11, 12, 13, 14, 200, 201]
    assert [one.cut for one in follow(levels, reset_on_cut=True)] == [False] * 5 + [True, False]
    assert not any(one.cut for one in follow(levels))


def test_after_an_error_no_forecast_is_compared_at_the_wrong_horizon() -> None:
    stream = Repeating()
    follower = Follower(stream, CONFIG, horizon=2, renewal=NONE)
    follower.follow(gray(0))
    stream.breaks = True
    with pytest.raises(StreamError):
        follower.follow(gray(1))
    stream.breaks = False
    assert follower.follow(gray(2)).errors == ()


def test_streams_of_the_runtime_can_be_followed(exported: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 16, 24, 1), np.uint8)
    with runtime.load(exported / "tiny.e3d", "onnxruntime") as predictor, predictor.streams() as streams:
        found = []
        for stream in (predictor.stream(renewal="none"), streams.open(renewal="none")):
            follower = Follower(stream, predictor.config, horizon=3, renewal=predictor.renewal("none"))
            found.append([follower.follow(picture) for picture in pictures])
        plain = predictor.stream(renewal="none")
        for picture in pictures[:-1]:
            plain.push(picture)
        truth = frames.to_frames(pictures[-1], image_size=(16, 24), channels=1)
        expected = float(metrics.mse(plain.forecast(1)[0].clip(0, 1), truth))
    for followed in found:
        assert followed[-1].errors[0] == pytest.approx(expected, rel=1e-4)
        assert [one.age for one in followed] == [1, 2, 3, 4, 5, 6]


def test_verdict_names_a_model_that_does_not_beat_copying() -> None:
    worse, better = Quality(1), Quality(1)
    for one in follow([10] * (ENOUGH + 1), horizon=1):
        worse.add(one)
    for one in follow([level % 255 for level in range(ENOUGH + 1)], horizon=1):
        better.add(one)
    verdict = worse.verdict(1)
    assert verdict is not None
    assert "1 frame ahead, copying the last picture is better" in verdict
    assert better.verdict(1) is None


def test_there_is_no_verdict_before_enough_pictures() -> None:
    quality = Quality(1)
    assert quality.at(1) is None
    for one in follow([10] * ENOUGH, horizon=1):
        quality.add(one)
    assert quality.verdict(1) is None
    found = quality.at(1)
    assert found is not None
    assert (found.frames, found.copy_mse) == (ENOUGH - 1, 0)
