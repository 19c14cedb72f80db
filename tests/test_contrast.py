"""Clips that tell nothing about a network, by their contrast and by how many frames differ."""

import numpy as np
import pytest

from e3d_deploy.contrast import FEWEST_TO_CALIBRATE, blankness

RNG = np.random.default_rng(0)
NOISE = RNG.random((12, 1, 8, 8), np.float32)
BLANK = "has no frame with a contrast above {} of 255 grey levels, at least 8 are needed"


@pytest.mark.parametrize(
    ("clip", "lacking"),
    [
        (np.zeros_like(NOISE), BLANK.format(0)),
        (np.ones_like(NOISE), BLANK.format(0)),
        (0.5 + NOISE * (3 / 255), BLANK.format(3)),  # the noise of a covered camera
        (np.broadcast_to(NOISE[:, :, :1, :1], NOISE.shape), BLANK.format(0)),  # a blank screen that flickers
        (NOISE[:1].repeat(12, axis=0), "has 1 distinct frame, at least 8 are needed"),
        (NOISE[:1] / 2 + NOISE / 255, "has 1 distinct frame, at least 8 are needed"),  # a still with noise
        (np.tile(NOISE[:2], (6, 1, 1, 1)), "has 2 distinct frames, at least 8 are needed"),
        (NOISE[:0], BLANK.format(0)),
        (NOISE, None),
        (NOISE / 8, None),
    ],
)
def test_what_keeps_a_clip_from_telling_is_named(clip: np.ndarray, lacking: str | None) -> None:
    assert blankness(clip, fewest=FEWEST_TO_CALIBRATE) == lacking
