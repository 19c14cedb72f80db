"""Estimated duration of a run, and the preset that suits a machine."""

import math
from typing import Any

import pytest

from e3d_deploy.config import ModelConfig, TrainConfig
from e3d_deploy.training import estimate
from e3d_deploy.training.estimate import SuggestedRun, step_s, suggested_run, work
from e3d_deploy.training.sizes import configs

MODEL = ModelConfig(image_size=(16, 16), patch_size=8, hidden=(4,), kernel_size=3)
TRAINING = TrainConfig(context_length=2, horizon=2, batch_size=2)
FORM: dict[str, Any] = {"image_size": (64, 64), "channels": 1}


@pytest.mark.parametrize(
    ("part_s", "expected", "asked"),
    [
        (0.01, 0.3, {(4, 1, 9), (4, 4, 9), (19, 4, 1)}),
        (0.45, 1.35 / 4 * 19 * 1.05, {(4, 1, 9), (4, 4, 9)}),
        (1.5, 1.5 / 4 * 19 * 4 * 1.05, {(4, 1, 9)}),
    ],
    ids=["whole steps", "a part of the batch", "a part of a clip"],
)
def test_a_step_is_timed_whole_or_by_its_first_frames(
    monkeypatch: pytest.MonkeyPatch, part_s: float, expected: float, asked: set[tuple[int, int, int]]
) -> None:
    """First frames are timed with a half full history: half of the 19 frames that are computed of a clip of 20."""
    found: set[tuple[int, int, int]] = set()

    def time(_: Any, __: Any, *, frames: int, batch: int, history: int) -> float:
        found.add((frames, batch, history))
        if frames == 19:
            return 0.3
        return part_s if batch == 1 else 3 * part_s  # four clips together take less time than four single clips

    monkeypatch.setattr(estimate, "_pass_s", time)
    assert step_s(MODEL, TrainConfig(batch_size=4)) == pytest.approx(expected)
    assert found == asked


def test_a_real_step_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "BUDGET_S", 0.1)
    seconds = step_s(MODEL, TRAINING)
    assert math.isfinite(seconds)
    assert seconds > 0


@pytest.mark.parametrize(
    ("step", "run", "arguments"),
    [
        (0.001, ("full", 80_000), ("--preset", "full")),
        (1.0, ("small", 3000), ("--preset", "small")),
        (10.0, ("tiny", 500), ("--preset", "tiny")),
        (72.0, ("tiny", 170), ("--preset", "tiny", "--steps", "170")),
    ],
)
def test_the_largest_preset_that_ends_within_hours_is_suggested(
    monkeypatch: pytest.MonkeyPatch, step: float, run: tuple[str, int], arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(estimate, "step_s", lambda *_: step)
    found = suggested_run(**FORM)
    assert found is not None
    assert (found.preset, found.steps) == run
    assert found.arguments == arguments
    assert found.duration_s <= 1.01 * estimate.LONGEST_S  # the validations of a shorter run are not shorter


def test_a_suggestion_names_a_suitable_patch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "step_s", lambda *_: 10.0)
    found = suggested_run(image_size=(60, 80), channels=3)
    assert found == SuggestedRun(
        preset="tiny", patch_size=5, steps=500, step_s=10.0, duration_s=10.0 * work(configs("tiny")[1])
    )
    assert found.arguments == ("--preset", "tiny", "--patch-size", "5")
    assert suggested_run(image_size=(101, 103), channels=1) is None


def test_a_time_is_the_median_after_the_first_pass_or_that_of_a_single_long_pass() -> None:
    times = iter([9.0])
    assert estimate._typical(lambda: next(times)) == 9.0
    short = iter([2.0, 0.6, 0.7, 0.8])
    assert estimate._typical(lambda: next(short)) == 0.7


def test_a_run_takes_longer_than_its_steps() -> None:
    """A run also computes 20.25 more frames in 50 steps, a validation of 64 clips, and the decay of 32 windows."""
    config = configs("tiny")[1]
    decay = 32 * sum(age + 9 for age in (1, 2, 3, 5, 10, 12, 60))
    burn_in, validation = 50 * 4 * 20.25, 64 * 19
    assert work(config) == pytest.approx(1.04 * 500 + 0.43 * (burn_in + validation + decay) / (4 * 19))
    assert 1.14 < work(config) / 500 < 1.17


def test_clips_without_spare_frames_have_neither_burn_in_nor_old_states() -> None:
    config = configs("tiny")[1]
    decay = 32 * sum(age + 9 for age in (1, 2, 3, 5, 10))
    assert work(config, 0) == pytest.approx(1.04 * 500 + 0.43 * (64 * 19 + decay) / (4 * 19))
    assert work(config, 0) < work(config, 20) < work(config)


def test_a_run_without_burn_in_is_estimated_too() -> None:
    assert work(configs("tiny", recipe="google")[1]) < work(configs("tiny")[1])
    assert work(configs("tiny", steps=3, burn_in_steps=0, context_length=1, horizon=1)[1]) > 3
