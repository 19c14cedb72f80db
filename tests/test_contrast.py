"""Clips that are unfit for calibration or verification, by their contrast and the number of distinct frames."""

import numpy as np
import pytest

from e3d_deploy.contrast import FEWEST_TO_CALIBRATE, blankness, why_unfit_to_calibrate, why_unfit_to_verify

RNG = np.random.default_rng(0)
NOISE = RNG.random((12, 1, 8, 8), np.float32)
BLANK = "has no frame with a contrast above {} of 255 grey levels, at least 8 are needed"


@pytest.mark.parametrize(
    ("clip", "lacking"),
    [
        (np.zeros_like(NOISE), BLANK.format(0)),
        (np.ones_like(NOISE), BLANK.format(0)),
        (0.5 + NOISE * (3 / 255), BLANK.format(3)),  # noise of a covered camera
        (np.broadcast_to(NOISE[:, :, :1, :1], NOISE.shape), BLANK.format(0)),  # blank screen that flickers
        (NOISE[:1].repeat(12, axis=0), "has 1 distinct frame, at least 6 are needed"),
        (
            NOISE[:1] / 2 + np.round(NOISE * 2) / 255,
            "has 1 distinct frame, at least 6 are needed",
        ),  # still picture with noise
        (np.tile(NOISE[:2], (6, 1, 1, 1)), "has 2 distinct frames, at least 6 are needed"),
        (NOISE[:0], BLANK.format(0)),
        (NOISE, None),
        (NOISE / 8, None),
    ],
)
def test_the_reason_why_a_clip_is_unfit_is_named(clip: np.ndarray, lacking: str | None) -> None:
    assert blankness(clip, fewest=FEWEST_TO_CALIBRATE) == lacking


STILL = np.tile(RNG.random((1, 1, 16, 16), np.float32), (20, 1, 1, 1))
MOVING = RNG.random((20, 1, 16, 16), np.float32)


def with_pixel(clip: np.ndarray) -> np.ndarray:
    """Return a clip over which one white pixel moves."""
    found = clip.copy()
    for t, frame in enumerate(found):
        frame[:, 5, 3 * t % 16] = 1
    return found


@pytest.mark.parametrize(
    ("clips", "lacking"),
    [
        (
            [with_pixel(STILL)],
            "has 1 distinct frame (distinct means: differs in 3 pixels or more), at least 6 are needed",
        ),
        (
            [with_pixel(np.zeros_like(STILL))],
            "has 1 distinct frame (distinct means: differs in 3 pixels or more), at least 6 are needed",
        ),
        ([STILL / 2 + RNG.integers(-1, 2, STILL.shape) / np.float32(255)] * 2, "has 1 distinct frame"),
        ([STILL / 2 + np.linspace(0, 2 / 255, 20, dtype=np.float32)[:, None, None, None]], "has 1 distinct frame"),
        ([np.where(np.arange(20)[:, None, None, None] % 2, MOVING[:1], STILL)], "has 2 distinct frames"),
        ([np.concatenate([STILL[:10], MOVING[:10]])], "has 1 distinct frame"),  # moves only after the context
        ([np.concatenate([STILL[:1] * 0, STILL[:1]] * 3)] * 4, "has 2 distinct frames"),
        ([MOVING], None),
        ([MOVING[:4], MOVING[4:8]], None),
    ],
)
def test_clips_that_hardly_move_are_unfit_to_calibrate(clips: list[np.ndarray], lacking: str | None) -> None:
    found = why_unfit_to_calibrate([clip.astype(np.float32) for clip in clips], 10)
    assert found is None if lacking is None else found and found.startswith(lacking)


def test_a_clip_with_a_blank_context_is_unfit() -> None:
    black = np.concatenate([np.zeros_like(MOVING[:10]), MOVING[:10]])
    assert why_unfit_to_verify(black, 10) == BLANK.format(0)
    assert why_unfit_to_verify(black, 11) is None
    assert why_unfit_to_verify(STILL, 10) == "has 1 distinct frame, at least 2 are needed"
    assert why_unfit_to_verify(MOVING[:1], 1) is not None
