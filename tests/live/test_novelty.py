"""The novelty score: usual errors score 1 at every age of the state, and unusual errors score their ratio."""

from pathlib import Path

import numpy as np
import pytest

from e3d_deploy import runtime
from e3d_deploy.live.follower import Follower
from e3d_deploy.live.novelty import FLOOR, MIN_ERRORS, Novelty
from e3d_deploy.runtime.renewal import Renewal

DRIFT = 0.1
"""Maximum distance from 1 in a still scene, where a state without renewal drifts (measured: 0.026)."""
REFRESH = Renewal("refresh", context_length=4, states=2)


def scores(novelty: Novelty, errors: list[float], ages: list[int]) -> list[float | None]:
    return [
        novelty.score(np.array([error]), np.array([age]))[0] for error, age in zip(errors, ages, strict=True)
    ]  # fmt: skip


def test_usual_errors_score_one_and_unusual_ones_their_ratio() -> None:
    novelty = Novelty(1, Renewal("none", context_length=1))
    usual = scores(novelty, [0.01] * 20, [9] * 20)
    assert usual == [None] * MIN_ERRORS + [1.0] * (20 - MIN_ERRORS)
    assert scores(novelty, [0.05], [9]) == [5.0]


def test_median_covers_only_earlier_errors() -> None:
    rng = np.random.default_rng(0)
    errors = 0.01 + 0.001 * rng.random(1000)
    novelty = Novelty(1, Renewal("none", context_length=1))
    last = scores(novelty, errors.tolist(), [9] * 1000)[-1]
    assert last is not None
    assert abs(last - errors[-1] / np.median(errors[-301:-1])) < 1e-6


def test_rounding_of_a_perfect_forecast_is_not_novelty() -> None:
    novelty = Novelty(1, Renewal("none", context_length=1))
    scores(novelty, [0.0] * 20, [9] * 20)
    assert scores(novelty, [FLOOR], [9]) == [1.0]


def test_ages_of_a_refresh_have_separate_medians() -> None:
    ages = [REFRESH.age(pushed) for pushed in range(1, 200)]
    errors = [0.01 * age for age in ages]
    found = [one for one in scores(Novelty(1, REFRESH), errors, ages) if one is not None]
    assert len(found) > 100
    np.testing.assert_allclose(found, 1.0, rtol=1e-6)


def test_each_horizon_has_its_own_median() -> None:
    novelty = Novelty(2, Renewal("none", context_length=1))
    for _ in range(MIN_ERRORS):
        novelty.score(np.array([0.01, 0.04]), np.array([5, 5]))
    assert novelty.score(np.array([0.02, 0.04]), np.array([5, 5])) == (2.0, 1.0)


@pytest.mark.parametrize("horizon", [1, 3])
def test_novelty_of_a_still_scene_does_not_vary_with_the_renewal(horizon: int, exported: Path) -> None:
    """The errors of a refreshed stream vary with the age of its state; its novelty does not."""
    rng = np.random.default_rng(1)
    scene = rng.integers(0, 256, (16, 24, 1), np.uint8)
    errors, novelty, phases = [], [], []
    with runtime.load(exported / "tiny.e3d", "onnxruntime") as predictor:
        renewal = predictor.renewal("refresh:2")
        follower = Follower(
            predictor.stream(renewal="refresh:2"), predictor.config, horizon=horizon, renewal=renewal
        )  # fmt: skip
        for number in range(12 * MIN_ERRORS + renewal.warm_up):
            followed = follower.follow(scene)
            if len(followed.novelty) == horizon and followed.novelty[-1] is not None:
                errors.append(followed.errors[-1])
                novelty.append(followed.novelty[-1])
                phases.append(number % renewal.cycle)
    assert len(novelty) > 4 * renewal.cycle
    assert _spread(errors, phases) > 0.005, "the errors do not vary with the renewal, so this test checks nothing"
    assert _spread(novelty, phases) < 1e-4


@pytest.mark.parametrize("renewal", ["none", "replay"])
def test_still_scene_scores_one_if_the_age_of_the_state_does_not_vary(renewal: str, exported: Path) -> None:
    scene = np.random.default_rng(1).integers(0, 256, (16, 24, 1), np.uint8)
    with runtime.load(exported / "tiny.e3d", "onnxruntime") as predictor:
        found = predictor.renewal(renewal)
        follower = Follower(predictor.stream(renewal=renewal), predictor.config, horizon=3, renewal=found)
        last = [follower.follow(scene) for _ in range(6 * MIN_ERRORS)][-1]
    assert last.novelty == pytest.approx((1.0, 1.0, 1.0), abs=DRIFT)


def _spread(values: list[float], phases: list[int]) -> float:
    """Return the spread of the mean values per phase of the renewal, relative to the overall mean."""
    means = [np.mean([v for v, p in zip(values, phases, strict=True) if p == phase]) for phase in set(phases)]
    return float((max(means) - min(means)) / np.mean(values))
