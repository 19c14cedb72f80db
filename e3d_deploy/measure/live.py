"""Follow a video: after each picture, forecast the next ones, and see later how good that was."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import frames, metrics
from e3d_deploy.json_values import json_object
from e3d_deploy.progress import Notify, Pace, duration, silent
from e3d_deploy.runtime.predictor import Predictor, Stream

Clip = NDArray[np.float32]

SAMPLE = 50
"""Frames by which the time of longer forecasts is estimated."""
LONG_S = 5.0
"""Time of a forecast that is told before it begins (s)."""


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
    show: Callable[[Clip, Clip], None] | None = None,
    progress: Notify = silent,
    remark: Notify = silent,
) -> tuple[Followed, Clip, Clip]:
    """Push each picture into a new stream and forecast the `horizon` pictures after it.

    Args:
        pictures: each uint8 [H, W, C].
        renewal: renewal of the stream; None for the default of the model.
        keep: return the pictures and forecasts, which takes memory.
        show: called with each picture and with what had been forecast for it, [C, H, W]; black where nothing was.
        progress: called after each picture.
        remark: called if a forecast takes long, before the first one.

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
    aside_s, pace, started = 0.0, Pace(), time.perf_counter()
    for picture in pictures:
        frame = frames.to_frames(picture, image_size=config.image_size, channels=config.channels)
        expected = black
        if len(pending) == horizon:
            expected, before = pending.popleft()
            errors.append(float(metrics.mse(expected, frame)))
            copy_errors.append(float(metrics.mse(before, frame)))
        if show is not None:
            show_started = time.perf_counter()
            show(frame, expected)
            aside_s += time.perf_counter() - show_started
        if keep:
            seen.append(frame)
            forecasts.append(expected)
        push_started = time.perf_counter()
        stream.push(picture)
        pushed = time.perf_counter()
        if not push_ms:
            _warn_of_time(stream, horizon, remark)
        forecast_started = time.perf_counter()
        aside_s += forecast_started - pushed
        forecast = stream.forecast(horizon)
        now = time.perf_counter()
        push_ms.append(1000 * (pushed - push_started))
        forecast_ms.append(1000 * (now - forecast_started))
        pending.append((forecast[-1].clip(0, 1), frame))
        progress(pace.text(len(push_ms)))
    summary = Followed(
        backend=predictor.backend.name,
        frames=len(push_ms),
        horizon=horizon,
        renewal=stream.renewal,
        frames_per_second=len(push_ms) / (time.perf_counter() - started - aside_s),
        push_ms=_percentiles(push_ms),
        forecast_ms=_percentiles(forecast_ms),
        mse=float(np.mean(errors)) if errors else None,
        copy_mse=float(np.mean(copy_errors)) if errors else None,
    )
    empty = np.zeros((0, *black.shape), np.float32)
    return summary, np.stack(seen) if keep else empty, np.stack(forecasts) if keep else empty


def _warn_of_time(stream: Stream, horizon: int, remark: Notify) -> None:
    """Say how long the forecast of a stream takes, if it is longer than anybody waits for without a word."""
    if horizon <= SAMPLE:
        return
    started = time.perf_counter()
    stream.forecast(SAMPLE)
    seconds = (time.perf_counter() - started) / SAMPLE * horizon
    if seconds > LONG_S:
        remark(f"each picture takes about {duration(seconds)}: that long is a forecast of {horizon} frames")


def _percentiles(values: list[float]) -> Percentiles:
    return Percentiles(p50=float(np.percentile(values, 50)), p99=float(np.percentile(values, 99)))
