"""Follow a video: after each picture, forecast the next ones, and see later how good that was."""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import frames, metrics
from e3d_deploy.json_values import json_object
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.predictor import Predictor

Clip = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Percentiles of times (ms)."""

    p50: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Summary of a video that was followed."""

    backend: str
    frames: int
    """Pictures that came."""
    horizon: int
    renewal: str
    frames_per_second: float
    """Pictures per second of push, forecast and reading together."""
    push_ms: Percentiles
    forecast_ms: Percentiles
    mse: float | None
    """Squared error of the last forecast frame, summed over the frame; None for a video of at most `horizon` frames."""
    copy_mse: float | None
    """Squared error of copying the last frame instead."""

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return json_object(self)


def follow(
    predictor: Predictor,
    pictures: Iterable[NDArray[np.uint8]],
    *,
    horizon: int,
    renewal: str | None = None,
    keep: bool = False,
    progress: Notify = silent,
) -> tuple[Followed, Clip, Clip]:
    """Push each picture into a new stream and forecast the `horizon` pictures after it.

    Args:
        pictures: each uint8 [H, W, C].
        renewal: renewal of the stream; None for the default of the model.
        keep: return the pictures and forecasts, which takes memory.
        progress: called after each picture.

    Returns:
        A summary; the pictures that came, and the last frame
        of the forecast made for each, `horizon` pictures before it: [T, C, H, W], black where there was
        none yet, empty unless kept.
    """
    stream, config = predictor.stream(renewal=renewal), predictor.config
    push_ms: list[float] = []
    forecast_ms: list[float] = []
    errors: list[float] = []
    copy_errors: list[float] = []
    pending: deque[tuple[Clip, Clip]] = deque()  # the last frame of a forecast, and the picture it was made after
    black = np.zeros((config.channels, *config.image_size), np.float32)
    seen, forecasts = [], []
    started = time.perf_counter()
    for picture in pictures:
        frame = frames.to_frames(picture, image_size=config.image_size, channels=config.channels)
        expected = black
        if len(pending) == horizon:
            expected, before = pending.popleft()
            errors.append(float(metrics.mse(expected, frame)))
            copy_errors.append(float(metrics.mse(before, frame)))
        if keep:
            seen.append(frame)
            forecasts.append(expected)
        push_started = time.perf_counter()
        stream.push(picture)
        forecast_started = time.perf_counter()
        forecast = stream.forecast(horizon)
        now = time.perf_counter()
        push_ms.append(1000 * (forecast_started - push_started))
        forecast_ms.append(1000 * (now - forecast_started))
        pending.append((forecast[-1].clip(0, 1), frame))
        progress(f"{len(push_ms)} frames, {len(push_ms) / (now - started):.1f} frames/s")
    summary = Followed(
        backend=predictor.backend.name,
        frames=len(push_ms),
        horizon=horizon,
        renewal=stream.renewal,
        frames_per_second=len(push_ms) / (time.perf_counter() - started),
        push_ms=_percentiles(push_ms),
        forecast_ms=_percentiles(forecast_ms),
        mse=float(np.mean(errors)) if errors else None,
        copy_mse=float(np.mean(copy_errors)) if errors else None,
    )
    empty = np.zeros((0, *black.shape), np.float32)
    return summary, np.stack(seen) if keep else empty, np.stack(forecasts) if keep else empty


def _percentiles(values: list[float]) -> Percentiles:
    return Percentiles(p50=float(np.percentile(values, 50)), p99=float(np.percentile(values, 99)))
