"""Forecasts of clips, and their errors for the frames whose truth is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import metrics
from e3d_deploy.errors import StreamError
from e3d_deploy.frames import to_frames
from e3d_deploy.progress import Notify, Pace, silent
from e3d_deploy.runtime.backends.rollout import rollout
from e3d_deploy.runtime.faults import translated_errors
from e3d_deploy.runtime.predictor import Predictor

Clip = NDArray[np.float32]
COPIES = 3
"""Number of arrays, each as large as all forecasts together, that are in memory at once: the single forecasts, the
stacked forecasts and the truth. Writing files takes little memory, because they are written piece by piece."""


@dataclass(frozen=True, kw_only=True)
class Forecasts:
    """Forecasts of clips, with their truth."""

    frames: Clip
    """Predictions, not clipped, [B, T, C, H, W]."""
    truth: Clip
    """True frames, [B, T, C, H, W]; NaN after the end of the source."""
    last: Clip
    """Last frame of each context, [B, C, H, W]."""
    backend: str | None = None
    """Name of the backend that made the forecasts; None if it is not known."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """Mask of the frames whose truth is known, [B, T]."""
        return ~np.isnan(self.truth[:, :, 0, 0, 0])

    @property
    def mse(self) -> float:
        """Squared error of the predictions, clipped to [0, 1]: summed over a frame, averaged over the known frames."""
        return self._mean_error(lambda clip, t: self.frames[clip, t].clip(0, 1))

    @property
    def copy_mse(self) -> float:
        """Squared error of copying the last frame of the context, averaged like `mse`."""
        return self._mean_error(lambda clip, _: self.last[clip])

    def _mean_error(self, predicted: Callable[[int, int], Clip]) -> float:
        """Return the mean error over the known frames. Copies of all frames at once could fill the memory."""
        places = np.argwhere(self.known).tolist()
        return float(np.mean([metrics.mse(predicted(clip, t), self.truth[clip, t]) for clip, t in places]))


def needed_bytes(predictor: Predictor, clips: int, horizon: int) -> int:
    """Return the memory that forecasts and truth need until they are written (bytes)."""
    height, width = predictor.config.image_size
    return COPIES * clips * horizon * predictor.config.channels * height * width * np.dtype(np.float32).itemsize


def forecast_clip(predictor: Predictor, pictures: NDArray[Any], horizon: int, *, progress: Notify = silent) -> Clip:
    """Forecast the frames that follow pictures [T, H, W, C]; return predictions, not clipped, [horizon, C, H, W].

    Args:
        progress: called after each step.

    Raises:
        ShapeError: The pictures do not have the size, channels or type that the network takes, or have values outside
            [0, 1].
        StreamError: A prediction is not finite.
        ResourceLimit: Memory is used up.
    """
    config = predictor.config
    seen = to_frames(pictures, image_size=config.image_size, channels=config.channels)
    predictor.check_horizon(horizon)
    result = np.empty((horizon, *seen.shape[1:]), np.float32)
    pace = Pace(total=len(seen) + horizon - 1)
    with translated_errors():
        for step, (prediction, _) in enumerate(rollout(predictor.backend, seen[None], len(seen) + horizon - 1)):
            number = step - len(seen) + 1
            if not np.isfinite(prediction).all():
                place = f"frame {step}" if number < 0 else f"forecast frame {number}"
                raise StreamError(f"{place}: is not finite; use a shorter horizon, or check the precision")
            if number >= 0:
                result[number] = prediction[0]
            progress(pace.text(step + 1))
    return result


def with_truth(
    forecasts: Sequence[Clip], contexts: Sequence[NDArray[Any]], true_pictures: Sequence[NDArray[Any]]
) -> Forecasts:
    """Combine forecasts [T, C, H, W] of clips with their true pictures.

    Args:
        contexts: context of each forecast, pictures [T, H, W, C].
        true_pictures: true pictures after each context, [T, H, W, C]; fewer than the horizon if the source has ended.
    """
    frames = np.stack(forecasts)
    _, _, C, H, W = frames.shape
    truth = np.full(frames.shape, np.nan, np.float32)
    last = np.empty((len(frames), C, H, W), np.float32)
    for number, (context, pictures) in enumerate(zip(contexts, true_pictures, strict=True)):
        last[number] = to_frames(context[-1], image_size=(H, W), channels=C)
        truth[number, : len(pictures)] = to_frames(pictures, image_size=(H, W), channels=C)
    return Forecasts(frames=frames, truth=truth, last=last)
