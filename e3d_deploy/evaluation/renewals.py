"""Error and cost of the renewals of a stream, measured by streaming clips through each."""

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
"""Renewals that are compared unless others are named."""
REFERENCE = "replay"
"""The renewal that forecasts as a new stream fed the context of training does."""


@dataclass(frozen=True, kw_only=True)
class RenewalErrors:
    """Errors of one renewal at each place of a cycle of ages, and its cost."""

    renewal: str
    steps_per_frame: float
    """Mean steps of a push."""
    steps_per_forecast: int
    """Steps of a forecast."""
    ages: tuple[int, ...]
    """Age of the answering state at each place (frames)."""
    mse: tuple[float, ...]
    """Squared error summed over a frame, averaged over windows and frames of the forecast, at each place."""

    @property
    def mean(self) -> float:
        """Mean error over the places."""
        return fsum(self.mse) / len(self.mse)

    @property
    def worst(self) -> float:
        """Error at the worst place."""
        return max(self.mse)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Renewals compared on the same frames."""

    places: tuple[int, ...]
    """Frames that the streams had seen at each forecast: one whole cycle of ages of every renewal."""
    renewals: tuple[RenewalErrors, ...]
    copy_last: float
    """Mean error of repeating the last frame seen."""

    def report(self) -> dict[str, Any]:
        """Return errors and costs as JSON values."""
        return {
            "frames_seen": [self.places[0], self.places[-1]],
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


def places_of(predictor: Predictor, renewals: Sequence[str], *, longest: int) -> tuple[int, ...]:
    """Return the numbers of frames after which to forecast: one cycle of ages of every renewal, up to `longest`.

    Raises:
        ConfigError: no renewal, or one that there cannot be.
        ClipError: the streams would not be warmed up by then.
    """
    if not renewals:
        raise ConfigError("renewals: got none to compare; name one, such as refresh:2")
    known = [predictor.renewal(text) for text in renewals]
    first = longest - lcm(*(one.cycle for one in known)) + 1
    if first < (least := max(one.warm_up for one in known)):
        raise ClipError(
            f"renewals: got clips for ages up to {longest}, expected at least {longest + least - first}, for one "
            "cycle of ages after the first; give longer clips"
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
    """Stream the same windows through each renewal, and forecast the same frames at each place of a cycle.

    Predictions are clipped to [0, 1].

    Args:
        windows: each float [T, C, H, W] in [0, 1], T at least longest + horizon.
        renewals: as `Predictor.stream` takes them; the predictor knows their C.
        longest: frames that a stream sees before its last forecast.

    Raises:
        ConfigError, ClipError: as `places_of`, or there is no window.
        StreamError: a prediction is not finite.
    """
    renewals = tuple(dict.fromkeys(renewals))  # one that is named twice would be summed twice
    places = places_of(predictor, renewals, longest=longest)
    if not len(windows):
        raise ClipError("renewals: there is no window; give longer clips")
    errors = {text: np.zeros(len(places)) for text in renewals}
    copying = np.zeros(len(places))
    for number in range(len(windows)):
        window = np.asarray(windows[number], np.float32)
        copying += [metrics.mse(window[n - 1 : n], window[n : n + horizon]).mean() for n in places]
        for text in renewals:
            progress(f"window {number + 1} of {len(windows)}, renewal {text}")
            try:
                errors[text] += _stream(predictor, window, text, places=places, horizon=horizon)
            except StreamError as error:
                raise StreamError(f"window {number + 1}: {error}") from error
    return Comparison(
        places=places,
        renewals=tuple(
            _errors(predictor, text, errors[text] / len(windows), places=places, horizon=horizon) for text in renewals
        ),
        copy_last=float(copying.mean() / len(windows)),
    )


def _stream(predictor: Predictor, window: Frames, renewal: str, *, places: Sequence[int], horizon: int) -> Errors:
    """Push a window into a new stream; return the error of the forecast at each place."""
    stream, found = predictor.stream(renewal=renewal), []
    for pushed, picture in enumerate(np.moveaxis(window[: places[-1]], 1, -1), 1):
        stream.push(picture)
        if pushed >= places[0]:
            predicted = stream.forecast(horizon).clip(0, 1)
            found.append(metrics.mse(predicted, window[pushed : pushed + horizon]).mean())
    return np.array(found)


def _errors(predictor: Predictor, text: str, errors: Errors, *, places: Sequence[int], horizon: int) -> RenewalErrors:
    renewal = predictor.renewal(text)
    replayed = renewal.context_length if renewal.kind == "replay" else 0
    return RenewalErrors(
        renewal=str(renewal),
        steps_per_frame=renewal.steps_per_frame,
        steps_per_forecast=replayed + horizon - 1,
        ages=tuple(map(renewal.age, places)),
        mse=tuple(errors.tolist()),
    )
