"""Forecast quality of a running stream, beside copying the last picture."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from e3d_deploy.live.follower import Judged

WINDOW = 300
"""Recent pictures that the means cover."""
ENOUGH = 30
"""Pictures before which nothing is said about a model."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mean errors at one horizon."""

    horizon: int
    frames: int
    """Pictures whose truth has come, at most `WINDOW`."""
    mse: float
    """Squared error of the forecasts, summed over the frame."""
    copy_mse: float
    """Squared error of copying the last picture."""

    @property
    def beats_copying(self) -> bool:
        return self.mse < self.copy_mse


class Quality:
    """Running means of errors at each horizon, over the last `WINDOW` pictures.

    Args:
        horizon: frames that are forecast.
    """

    def __init__(self, horizon: int) -> None:
        self._errors: list[deque[tuple[float, float]]] = [deque(maxlen=WINDOW) for _ in range(horizon)]

    def add(self, judged: Judged) -> None:
        """Note the errors of a picture."""
        for errors, pair in zip(self._errors, zip(judged.errors, judged.copy_errors, strict=True), strict=False):
            errors.append(pair)

    def at(self, horizon: int) -> Comparison | None:
        """Return the means at a horizon; None before the first truth."""
        errors = self._errors[horizon - 1]
        if not errors:
            return None
        mse, copy_mse = np.mean(errors, axis=0).tolist()
        return Comparison(horizon=horizon, frames=len(errors), mse=mse, copy_mse=copy_mse)

    def verdict(self, horizon: int) -> str | None:
        """Return a sentence if the model does not beat copying the last picture; None if it does, or too early."""
        found = self.at(horizon)
        if found is None or found.frames < ENOUGH or found.beats_copying:
            return None
        ahead = "1 frame ahead" if horizon == 1 else f"{horizon} frames ahead"
        if found.mse == found.copy_mse:
            return f"{ahead}, the forecast is no better than copying the last picture (MSE {found.mse:.4g} both)"
        return (
            f"{ahead}, copying the last picture is better than the forecast (MSE {found.copy_mse:.4g} against "
            f"{found.mse:.4g} over {found.frames} pictures)"
        )
