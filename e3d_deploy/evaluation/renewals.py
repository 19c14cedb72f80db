"""Comparison of renewals by error and cost, measured by streaming clips.

A renewal is the rule by which a stream replaces old states by younger ones; see `runtime/renewal.py`. The age of the
state that makes the forecast repeats after a number of frames, the cycle of the renewal, so each renewal is measured at
every position of its cycle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import metrics
from e3d_deploy.errors import ClipError, ConfigError, StreamError
from e3d_deploy.evaluation.streaming import Windows
from e3d_deploy.frames import Frames
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.predictor import Predictor

Errors = NDArray[np.float64]
RENEWALS = ("none", "refresh:2", "replay")
"""Renewals that are compared by default."""
REFERENCE = "replay"
"""Renewal that the others are compared with. Its forecasts equal those of a new stream that sees only a context as long
as in training."""


@dataclass(frozen=True, kw_only=True)
class RenewalErrors:
    """Cost of one renewal, and its error at each position of the cycle."""

    renewal: str
    steps_per_frame: float
    """Mean number of steps per pushed frame."""
    steps_per_forecast: int
    """Number of steps per forecast."""
    ages: tuple[int, ...]
    """Age of the state that makes the forecast, at each position of the cycle (frames)."""
    mse: tuple[float, ...]
    """Squared error at each position: summed over a frame, averaged over windows and frames of the forecast."""

    @property
    def mean(self) -> float:
        """Mean error over all positions."""
        return fsum(self.mse) / len(self.mse)

    @property
    def worst(self) -> float:
        """Largest error at any position."""
        return max(self.mse)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Results of several renewals on the same frames."""

    positions: tuple[int, ...]
    """Number of frames that a stream has seen before each forecast. The numbers are consecutive and cover a whole cycle
    of every renewal."""
    renewals: tuple[RenewalErrors, ...]
    copy_last: float
    """Mean error of repeating the last frame that the stream has seen, in place of a forecast."""

    def report(self) -> dict[str, Any]:
        """Return the errors and costs as JSON values."""
        return {
            "frames_seen": [self.positions[0], self.positions[-1]],
            "copy_last": {"mse": self.copy_last},
            "by_renewal": {
                one.renewal: {
                    "mse": one.mean,
                    "worst_mse": one.worst,
                    "ages": [min(one.ages), max(one.ages)],
                    "steps_per_frame": one.steps_per_frame,
                    "steps_per_forecast": one.steps_per_forecast,
                }
                for one in self.renewals
            },
        }


def positions_of(predictor: Predictor, renewals: Sequence[str], *, longest: int) -> tuple[int, ...]:
    """Return the numbers of seen frames after which to forecast.

    They are consecutive, end at `longest`, and cover a whole cycle of every renewal.

    Raises:
        ConfigError: `renewals` is empty or contains an invalid renewal.
        ClipError: `longest` is too small, so that a stream would have to forecast before the warm-up of its renewal
            ends.
    """
    if not renewals:
        raise ConfigError("renewals: got none, expected at least one; name one, such as refresh:2")
    known = [predictor.renewal(text) for text in renewals]
    first = longest - lcm(*(one.cycle for one in known)) + 1
    if first < (least := max(one.warm_up for one in known)):
        raise ClipError(
            f"renewals: got clips for ages up to {longest}, expected at least {longest + least - first}, to measure a "
            "whole cycle after the warm-up of every renewal; give longer clips"
        )
    return tuple(range(first, longest + 1))


def compare_renewals(
    predictor: Predictor,
    windows: Windows,
    *,
    renewals: Sequence[str] = RENEWALS,
    longest: int,
    horizon: int,
    progress: Notify = silent,
) -> Comparison:
    """Stream the same windows under each renewal, and forecast the same frames at each position of the cycle.

    Predictions are clipped to [0, 1].

    Args:
        windows: each float [T, C, H, W] in [0, 1], T at least longest + horizon.
        renewals: renewals in the form that `Predictor.stream` accepts; C is the context length of the predictor.
        longest: number of frames that a stream has seen before its last forecast.

    Raises:
        ConfigError: as for `positions_of`.
        ClipError: as for `positions_of`, or `windows` is empty.
        StreamError: a prediction is not finite.
    """
    renewals = tuple(dict.fromkeys(renewals))  # the errors of a renewal named twice would be summed twice
    positions = positions_of(predictor, renewals, longest=longest)
    if not len(windows):
        raise ClipError("renewals: got no window, expected at least one; give longer clips")
    errors = {text: np.zeros(len(positions)) for text in renewals}
    copying = np.zeros(len(positions))
    for number in range(len(windows)):
        window = np.asarray(windows[number], np.float32)
        copying += [metrics.mse(window[n - 1 : n], window[n : n + horizon]).mean() for n in positions]
        for text in renewals:
            progress(f"window {number + 1} of {len(windows)}, renewal {text}")
            try:
                errors[text] += _stream(predictor, window, text, positions=positions, horizon=horizon)
            except StreamError as error:
                raise StreamError(f"window {number + 1}: {error}") from error
    return Comparison(
        positions=positions,
        renewals=tuple(
            _errors(predictor, text, errors[text] / len(windows), positions=positions, horizon=horizon)
            for text in renewals
        ),
        copy_last=float(copying.mean() / len(windows)),
    )


def _stream(predictor: Predictor, window: Frames, renewal: str, *, positions: Sequence[int], horizon: int) -> Errors:
    """Push a window into a new stream and return the error of the forecast at each position."""
    stream, found = predictor.stream(renewal=renewal), []
    for pushed, picture in enumerate(np.moveaxis(window[: positions[-1]], 1, -1), 1):
        stream.push(picture)
        if pushed >= positions[0]:
            predicted = stream.forecast(horizon).clip(0, 1)
            found.append(metrics.mse(predicted, window[pushed : pushed + horizon]).mean())
    return np.array(found)


def _errors(
    predictor: Predictor, text: str, errors: Errors, *, positions: Sequence[int], horizon: int
) -> RenewalErrors:
    renewal = predictor.renewal(text)
    replayed = renewal.context_length if renewal.kind == "replay" else 0
    return RenewalErrors(
        renewal=str(renewal),
        steps_per_frame=renewal.steps_per_frame,
        steps_per_forecast=replayed + horizon - 1,
        ages=tuple(map(renewal.age, positions)),
        mse=tuple(errors.tolist()),
    )
