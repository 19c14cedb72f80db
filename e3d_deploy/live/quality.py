"""Forecast errors of a running stream, compared with copying the last picture."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from e3d_deploy.live.follower import FollowedPicture

WINDOW = 300
"""Number of recent pictures in the means."""
ENOUGH = 30
"""Minimum number of compared pictures before `verdict` returns a sentence."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mean errors of the forecasts and of copying the last picture, at one horizon."""

    horizon: int
    frames: int
    """Number of pictures in the means, at most `WINDOW`."""
    mse: float
    """Mean squared error of the forecasts, summed over the frame."""
    copy_mse: float
    """Mean squared error of copying the last picture, summed over the frame."""

    @property
    def beats_copying(self) -> bool:
        return self.mse < self.copy_mse


class Quality:
    """Running means of errors at each horizon, over the last `WINDOW` pictures.

    Args:
        horizon: number of frames that are forecast after each picture.
    """

    def __init__(self, horizon: int) -> None:
        self._errors: list[deque[tuple[float, float]]] = [deque(maxlen=WINDOW) for _ in range(horizon)]

    def add(self, followed: FollowedPicture) -> None:
        """Add the errors of a picture."""
        for errors, pair in zip(self._errors, zip(followed.errors, followed.copy_errors, strict=True), strict=False):
            errors.append(pair)

    def at(self, horizon: int) -> Comparison | None:
        """Return the mean errors at a horizon; None before a picture is compared with a forecast at this horizon."""
        errors = self._errors[horizon - 1]
        if not errors:
            return None
        mse, copy_mse = np.mean(errors, axis=0).tolist()
        return Comparison(horizon=horizon, frames=len(errors), mse=mse, copy_mse=copy_mse)

    def verdict(self, horizon: int) -> str | None:
        """Return a sentence if the model does not beat copying the last picture at a horizon.

        Return None if the model beats copying, or if fewer than `ENOUGH` pictures have been compared.
        """
        found = self.at(horizon)
        if found is None or found.frames < ENOUGH or found.beats_copying:
            return None
        ahead = "1 frame ahead" if horizon == 1 else f"{horizon} frames ahead"
        if found.mse == found.copy_mse:
            return f"{ahead}, the forecast is no better than copying the last picture (MSE {found.mse:.4g} for both)"
        return (
            f"{ahead}, copying the last picture is better than the forecast (MSE {found.copy_mse:.4g} against "
            f"{found.mse:.4g}, over {found.frames} pictures)"
        )
