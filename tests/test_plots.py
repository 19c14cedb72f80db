"""Plots with Matplotlib."""

import numpy as np

from e3d_deploy.plots import strips


def test_nan_frames_are_drawn_without_a_warning() -> None:
    """A training run that diverges draws a preview with NaN before it ends."""
    frames = np.full((2, 1, 8, 8), np.nan, np.float32)
    assert strips({"forecast": frames}) == strips({"forecast": np.zeros_like(frames)})
