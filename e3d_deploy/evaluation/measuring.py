"""Evaluation of a model's forecasts, clip by clip; the memory does not grow with the number of clips.

    from e3d_deploy.evaluation import evaluate

    with runtime.load("small.e3d") as predictor:
        found = evaluate(predictor, clips, context_length=10, horizon=10)   # clips: float32 [T, C, H, W] in [0, 1]
    found.overall("openstl", "mse", "forecast")
    found.to_dict()                                                         # all results, for JSON

Needs NumPy and the libraries of the predictor's backend.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import ClipError, ConfigError, ShapeError, StreamError
from e3d_deploy.evaluation.conventions import CONVENTIONS, Convention
from e3d_deploy.frames import Frames, to_frames
from e3d_deploy.runtime.predictor import Predictor

FORECAST = "forecast"
Key = tuple[str, str, str]
"""Names of a convention, of one of its measures, and of a forecast or baseline."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measures of the model's forecasts and of two baselines."""

    backend: str
    """Name of the backend that made the forecasts."""
    clips: int
    """Number of clips evaluated."""
    context_length: int
    horizon: int
    conventions: Sequence[Convention]
    frames: Mapping[Key, Sequence[float]]
    """One number per predicted frame, averaged over the clips, for each key."""

    @property
    def forecasters(self) -> list[str]:
        """Names of the forecast and the baselines."""
        return list(dict.fromkeys(who for _, _, who in self.frames))

    def overall(self, convention: str, measure: str, who: str = FORECAST) -> float:
        """Return one number for all predicted frames: the mean, or the sum if `Measure.overall` is `sum`."""
        (found,) = (one for one in self.conventions if one.name == convention)
        values = np.array(self.frames[convention, measure, who])
        return float(values.sum() if found.measures[measure].overall == "sum" else values.mean())

    def rows(self, convention: Convention) -> list[tuple[str, list[float]]]:
        """Return a table with one column per measure.

        The first rows are the frames of the forecast. The last rows are the overall numbers of the forecast and of the
        baselines.
        """
        names = list(convention.measures)
        lines = np.transpose([self.frames[convention.name, name, FORECAST] for name in names]).tolist()
        return [(f"{FORECAST}, frame {number}", line) for number, line in enumerate(lines, 1)] + [
            (f"{who}, overall", [self.overall(convention.name, name, who) for name in names])
            for who in self.forecasters
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return all results as JSON values; None replaces the infinite PSNR of equal frames."""

        def numbers(convention: Convention, measure: str) -> dict[str, Any]:
            return {
                who: {
                    "frames": [_finite(value) for value in self.frames[convention.name, measure, who]],
                    "overall": _finite(self.overall(convention.name, measure, who)),
                }
                for who in self.forecasters
            }

        return {
            "backend": self.backend,
            "clips": self.clips,
            "context_length": self.context_length,
            "horizon": self.horizon,
            "conventions": {
                convention.name: {
                    "meaning": convention.meaning,
                    "measures": {
                        name: {
                            "meaning": measure.meaning,
                            "overall": f"{measure.overall} over frames",
                            **numbers(convention, name),
                        }
                        for name, measure in convention.measures.items()
                    },
                }
                for convention in self.conventions
            },
        }


def evaluate(
    predictor: Predictor,
    clips: Iterable[Frames],
    *,
    context_length: int,
    horizon: int,
    conventions: Sequence[Convention] = tuple(CONVENTIONS.values()),
    each: Callable[[int, Frames, Frames], None] = lambda _number, _clip, _forecast: None,
) -> Evaluation:
    """Forecast each clip from its context and compare the forecast with the frames that follow.

    Clips are read one at a time and not stored.

    Args:
        clips: each float [T, C, H, W] in [0, 1], T at least context_length + horizon; further frames are ignored.
        each: called after each clip with its number, from 1, the clip [context_length + horizon, C, H, W],
            and the unclipped forecast [horizon, C, H, W].

    Raises:
        ConfigError: `context_length` or `horizon` is below 1.
        ClipError: `clips` is empty.
        ShapeError: a clip is too short, its frames do not have the size that the model expects, or a value is not
            finite or is outside [0, 1]; the message names the clip.
        StreamError: a prediction of the model is not finite; the message names the clip.
    """
    if min(context_length, horizon) < 1:
        raise ConfigError(f"context and horizon: got {context_length} and {horizon}, expected 1 or more")
    sums: defaultdict[Key, Any] = defaultdict(float)
    count = 0
    for count, clip in enumerate(clips, 1):
        clip = _checked(clip, predictor.config, length=context_length + horizon, number=count)
        context, truth = clip[:context_length], clip[context_length:]
        forecast = _forecast(predictor, context, horizon, number=count)
        for who, answer in {FORECAST: forecast, **baselines(context, horizon)}.items():
            for convention in conventions:
                for name, measure in convention.measures.items():
                    sums[convention.name, name, who] += measure.function(answer, truth)
        each(count, clip, forecast)
    if count == 0:
        raise ClipError("evaluation: got no clip, expected at least one; give data that contains one")
    return Evaluation(
        backend=predictor.backend.name,
        clips=count,
        context_length=context_length,
        horizon=horizon,
        conventions=conventions,
        frames={key: (total / count).tolist() for key, total in sums.items()},
    )


def baselines(context: Frames, horizon: int) -> dict[str, Frames]:
    """Return two forecasts that need no model: the last frame of the context, and the mean of the context.

    Each repeats one frame, [horizon, C, H, W].
    """
    return {
        "copy last": context[-1:].repeat(horizon, axis=0),
        "mean of context": context.mean(axis=0, keepdims=True).repeat(horizon, axis=0),
    }


def _checked(clip: Frames, config: ModelConfig, *, length: int, number: int) -> Frames:
    if clip.ndim != 4 or len(clip) < length:
        raise ShapeError(
            f"clip {number}: got {list(clip.shape)}, expected [T, C, H, W] with T at least {length}, context plus "
            "horizon; give longer clips, or a smaller --context or --horizon"
        )
    pictures = np.moveaxis(clip[:length], 1, -1)
    return to_frames(pictures, image_size=config.image_size, channels=config.channels, name=f"clip {number}")


def _forecast(predictor: Predictor, context: Frames, horizon: int, *, number: int) -> Frames:
    stream = predictor.stream(renewal="none")
    try:
        for picture in np.moveaxis(context, 1, -1):
            stream.push(picture)
        return stream.forecast(horizon)
    except StreamError as error:
        raise StreamError(f"clip {number}: {error}") from error


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
