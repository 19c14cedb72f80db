"""Checks that clips have enough contrast and change to calibrate or verify a network. Needs only NumPy."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

MIN_CONTRAST = 8 / 255
"""Minimum contrast, largest minus smallest value, of at least one frame; lower contrast is noise on a blank picture."""
MIN_STEP = 2.5 / 255
"""Minimum change of a pixel that counts as a difference; smaller changes are rounding of a codec, or noise."""
FEWEST_PIXELS, SHARE = 3, 0.005
"""Minimum number, and minimum share, of pixels in which two frames for calibration must differ. The number is 3,
because one moving pixel changes two pixels; docs/precision.md lists the numbers of real clips."""
FEWEST_TO_CALIBRATE = 6
"""Minimum number of distinct frames for calibration; with fewer frames, all of them must be distinct."""
FEWEST_TO_VERIFY = 2
"""Minimum number of distinct frames in a clip for verification: something has to move."""


def why_unfit_to_calibrate(clips: Sequence[NDArray[np.float32]], context_length: int) -> str | None:
    """Return why clips [T, C, H, W] are unfit for calibration, in words; None if they are fit.

    Only the context of each clip counts, because the network sees only the context.
    """
    frames = [frame for clip in clips for frame in clip[:context_length]]
    pixels = frames[0].shape[-2] * frames[0].shape[-1]
    changed = min(pixels, max(FEWEST_PIXELS, math.ceil(SHARE * pixels)))
    return blankness(frames, fewest=min(FEWEST_TO_CALIBRATE, len(frames)), changed=changed)


def why_unfit_to_verify(clip: NDArray[np.float32], context_length: int) -> str | None:
    """Return why a clip [T, C, H, W] cannot distinguish right from wrong predictions, in words; None if it can.

    The context must not be blank, because the network sees only the context.
    """
    return blankness(clip[:context_length], fewest=1) or blankness(clip, fewest=FEWEST_TO_VERIFY)


def blankness(frames: Iterable[NDArray[np.float32]], *, fewest: int, changed: int = 1) -> str | None:
    """Return why frames [C, H, W] have too little contrast or change, in words; None if they have enough.

    Args:
        fewest: minimum number of distinct frames.
        changed: minimum number of pixels in which distinct frames differ.
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
    by = f" (distinct means: differs in {changed} pixels or more)" if changed > 1 else ""
    return f"has {len(kept)} distinct frame{'s' * (len(kept) != 1)}{by}, at least {fewest} are needed"


def _changed(frame: NDArray[np.float32], other: NDArray[np.float32]) -> int:
    """Return the number of pixels that differ between two frames [C, H, W]."""
    return int((np.abs(frame - other).max(axis=0) > MIN_STEP).sum())
