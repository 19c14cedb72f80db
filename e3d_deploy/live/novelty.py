"""Novelty score: how much worse than usual a forecast missed the picture that came."""

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.runtime.renewal import Renewal

WINDOW = 300
"""Recent pictures that the running medians cover."""
LEAST = 8
"""Errors that a median needs; before, the novelty is unknown."""
FLOOR = 1 / (12 * 255**2)
"""Squared error a pixel that rounding to 8 bits causes; a smaller median would turn rounding into novelty."""


class Novelty:
    """Running medians of forecast errors, one for each horizon and each age of the state that forecast.

    The novelty of a picture at horizon h is e / max(m, FLOOR): e is the squared error a pixel of the forecast made h
    pictures before, m the median of such errors among the last `WINDOW` pictures. 1 is as usual. Errors depend on how
    many pictures the state had seen, so only errors of the same age are compared: a renewal of the state, which
    changes its age in a cycle, does not show in a still scene. Ages above the context of training are taken as one
    unless the renewal is `refresh`, whose ages are bounded.

    Args:
        horizon: frames that are forecast.
        renewal: renewal of the stream.
    """

    def __init__(self, horizon: int, renewal: Renewal) -> None:
        self._oldest = renewal.warm_up if renewal.kind == "refresh" else renewal.context_length
        length = max(LEAST, WINDOW // renewal.cycle)
        self._errors = np.full((self._oldest + 1, horizon, length), np.nan)
        self._counts = np.zeros(self._errors.shape[:2], np.int64)

    def score(self, errors: NDArray[np.float64], ages: NDArray[np.int64]) -> tuple[float | None, ...]:
        """Return the novelty of a picture at each horizon, None where too few errors are known, and note its errors.

        Args:
            errors: squared error a pixel of the forecasts made 1, 2, … pictures before, [known].
            ages: pictures that the state had seen when it made each, [known].
        """
        horizons = np.arange(len(errors))
        phases = np.minimum(ages, self._oldest)
        counts = self._counts[phases, horizons]
        length = self._errors.shape[2]
        known = np.minimum(counts, length)
        ordered = np.sort(self._errors[phases, horizons], axis=1)  # what is not known yet comes last
        low, high = np.maximum(known - 1, 0) // 2, known // 2
        medians = (ordered[horizons, low] + ordered[horizons, np.minimum(high, length - 1)]) / 2
        ratios = errors / np.maximum(medians, FLOOR)
        self._errors[phases, horizons, counts % length] = errors
        self._counts[phases, horizons] = counts + 1
        return tuple(
            float(ratio) if count >= LEAST else None for ratio, count in zip(ratios, known.tolist(), strict=True)
        )
