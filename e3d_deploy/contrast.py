"""Clips that tell something about a network: their frames have contrast and differ. NumPy alone."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

MIN_CONTRAST = 8 / 255
"""Largest minus smallest value that some frame must have; less is a blank picture with its noise."""
MIN_STEP = 2.5 / 255
"""Change of a pixel by which a frame counts as another one; less is rounding of a codec, or noise of one level."""
FEWEST_PIXELS, SHARE = 3, 0.005
"""Pixels, and share of all pixels, by which a frame that ranges are learnt from differs from all others. One pixel that
moves changes two; docs/precision.md has the numbers of real clips."""
FEWEST_TO_CALIBRATE = 6
"""Distinct frames that ranges are learnt from at least, or as many as there are if they are fewer."""
FEWEST_TO_VERIFY = 2
"""Distinct frames of a clip that predictions are compared on at least: something has to move."""


def why_unfit_to_calibrate(clips: Sequence[NDArray[np.float32]], context_length: int) -> str | None:
    """Return why ranges cannot be learnt from some clips [T, C, H, W], in words; None if they can.

    The network sees the context of each alone.
    """
    frames = [frame for clip in clips for frame in clip[:context_length]]
    pixels = frames[0].shape[-2] * frames[0].shape[-1]
    changed = min(pixels, max(FEWEST_PIXELS, math.ceil(SHARE * pixels)))
    return blankness(frames, fewest=min(FEWEST_TO_CALIBRATE, len(frames)), changed=changed)


def why_unfit_to_verify(clip: NDArray[np.float32], context_length: int) -> str | None:
    """Return why a clip [T, C, H, W] cannot tell right predictions from wrong ones, in words; None if it can.

    The network sees its context alone, which must not be blank.
    """
    return blankness(clip[:context_length], fewest=1) or blankness(clip, fewest=FEWEST_TO_VERIFY)


def blankness(frames: Iterable[NDArray[np.float32]], *, fewest: int, changed: int = 1) -> str | None:
    """Return what keeps some frames [C, H, W] from telling anything, in words; None if nothing does.

    Args:
        fewest: distinct frames that are needed.
        changed: pixels by which two frames are distinct.
    """
    contrast, kept = 0.0, list[NDArray[np.float32]]()
    for frame in frames:
        contrast = max(contrast, float(frame.max() - frame.min()))
        if len(kept) < fewest and all(_changed(frame, other) >= changed for other in kept):
            kept.append(frame)
        if len(kept) == fewest and contrast >= MIN_CONTRAST:
            return None
    if contrast < MIN_CONTRAST:
        return (
            f"has no frame with a contrast above {contrast * 255:.0f} of 255 grey levels, at least "
            f"{MIN_CONTRAST * 255:.0f} are needed"
        )
    by = f" (by {changed} pixels or more)" if changed > 1 else ""
    return f"has {len(kept)} distinct frame{'s' * (len(kept) != 1)}{by}, at least {fewest} are needed"


def _changed(frame: NDArray[np.float32], other: NDArray[np.float32]) -> int:
    """Return the number of pixels that differ between two frames [C, H, W]."""
    return int((np.abs(frame - other).max(axis=0) > MIN_STEP).sum())
