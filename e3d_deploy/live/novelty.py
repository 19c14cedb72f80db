"""Novelty score: the error of a forecast divided by its usual error."""

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.runtime.renewal import Renewal

WINDOW = 300
"""Number of recent pictures in the running medians."""
MIN_ERRORS = 8
"""Minimum number of errors for a median; with fewer errors, the novelty is unknown."""
FLOOR = 1 / (12 * 255**2)
"""Mean squared error per pixel of rounding to 8 bits. It is the lower limit of the medians, so that rounding errors do
not count as novelty."""


class Novelty:
    """Running medians of forecast errors, one for each horizon and each age of the state at the time of the forecast.

    The novelty of a picture at horizon h is e / max(m, FLOOR). e is the squared error per pixel of the forecast made h
    pictures earlier; m is the median of these errors over the last `WINDOW` pictures. A novelty of 1 is usual. Errors
    depend on the age of the state, so only errors at the same age are compared. Therefore a renewal, which changes the
    age in a cycle, does not change the novelty of a still scene. All ages above the context length in training share
    one median; with `refresh`, each age has its own, because the ages are bounded.

    Args:
        horizon: number of frames that are forecast after each picture.
        renewal: renewal of the stream.
    """

    def __init__(self, horizon: int, renewal: Renewal) -> None:
        self._oldest = renewal.warm_up if renewal.kind == "refresh" else renewal.context_length
        length = max(MIN_ERRORS, WINDOW // renewal.cycle)
        self._errors = np.full((self._oldest + 1, horizon, length), np.nan)
        self._counts = np.zeros(self._errors.shape[:2], np.int64)

    def score(self, errors: NDArray[np.float64], ages: NDArray[np.int64]) -> tuple[float | None, ...]:
        """Return the novelty of a picture at each horizon, and add its errors to the medians.

        Args:
            errors: squared error per pixel of the forecasts made 1, 2, … pictures earlier, [number of forecasts].
            ages: age of the state when it made each forecast (pictures), [number of forecasts].

        Returns:
            The novelty at horizons 1, 2, …; None at horizons with fewer than `MIN_ERRORS` errors.
        """
        horizons = np.arange(len(errors))
        phases = np.minimum(ages, self._oldest)
        counts = self._counts[phases, horizons]
        length = self._errors.shape[2]
        known = np.minimum(counts, length)
        ordered = np.sort(self._errors[phases, horizons], axis=1)  # NaN, which marks unfilled entries, sorts last
        low, high = np.maximum(known - 1, 0) // 2, known // 2
        medians = (ordered[horizons, low] + ordered[horizons, np.minimum(high, length - 1)]) / 2
        ratios = errors / np.maximum(medians, FLOOR)
        self._errors[phases, horizons, counts % length] = errors
        self._counts[phases, horizons] = counts + 1
        return tuple(
            float(ratio) if count >= MIN_ERRORS else None for ratio, count in zip(ratios, known.tolist(), strict=True)
        )
