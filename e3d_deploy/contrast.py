"""Clips that tell something about a network: their frames have contrast and differ. NumPy alone."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

MIN_CONTRAST = 8 / 255
"""Largest minus smallest value that some frame must have; less is a blank picture with its noise."""
MIN_STEP = 2 / 255
"""Change of some pixel by which a frame counts as another one; less is rounding of a codec."""
FEWEST_TO_CALIBRATE = 8
"""Distinct frames that ranges are learnt from at least, or those of one rollout if they are fewer."""
FEWEST_TO_VERIFY = 2
"""Distinct frames of a clip that predictions are compared on at least: something has to move."""


def blankness(frames: Iterable[NDArray[np.float32]], *, fewest: int) -> str | None:
    """Return what keeps some frames [C, H, W] from telling anything, in words; None if nothing does.

    Args:
        fewest: distinct frames that are needed.
    """
    contrast, kept = 0.0, list[NDArray[np.float32]]()
    for frame in frames:
        contrast = max(contrast, float(frame.max() - frame.min()))
        if len(kept) < fewest and all(np.abs(frame - other).max() > MIN_STEP for other in kept):
            kept.append(frame)
        if len(kept) == fewest and contrast >= MIN_CONTRAST:
            return None
    if contrast < MIN_CONTRAST:
        return (
            f"has no frame with a contrast above {contrast * 255:.0f} of 255 grey levels, at least "
            f"{MIN_CONTRAST * 255:.0f} are needed"
        )
    return f"has {len(kept)} distinct frame{'s' * (len(kept) != 1)}, at least {fewest} are needed"
