"""Follow one stream: forecast after each picture, and compare earlier forecasts with each picture that arrives."""

import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import frames, metrics
from e3d_deploy.config import ModelConfig
from e3d_deploy.live.cuts import CutDetector
from e3d_deploy.live.novelty import Novelty
from e3d_deploy.runtime.renewal import Renewal

Frame = NDArray[np.float32]
"""Type of one or several frames: float32 [..., C, H, W], in [0, 1]."""


class Forecasting(Protocol):
    """Interface of the streams that a `Follower` accepts, such as `runtime.Stream` and `runtime.SlotStream`."""

    @property
    def age(self) -> int: ...

    def push(self, picture: Any, /) -> None: ...

    def forecast(self, horizon: int, /) -> Frame: ...

    def reset(self) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FollowedPicture:
    """Picture that a `Follower` has processed, with the forecast after it and the errors of earlier forecasts of it.

    Entry i of `expected`, `errors`, `copy_errors` and `novelty` belongs to the forecast made i + 1 pictures earlier,
    which is the forecast at horizon i + 1. After a start or a reset, there are fewer entries than the horizon.
    """

    index: int
    """Index among the pictures that the follower has processed, from 0."""
    age: int
    """Age of the state that made the forecast (pictures, including this one)."""
    cut: bool
    """True if the state was reset after the previous picture."""
    picture: NDArray[np.uint8]
    """Picture, [H, W, C]."""
    forecast: Frame
    """Forecast of the next pictures, clipped to [0, 1], [horizon, C, H, W]."""
    expected: tuple[Frame, ...]
    """Earlier forecasts of this picture, [C, H, W] each."""
    errors: tuple[float, ...]
    """Squared error of each earlier forecast, summed over the frame."""
    copy_errors: tuple[float, ...]
    """Squared error of copying the picture after which the forecast was made, summed over the frame."""
    novelty: tuple[float | None, ...]
    """Novelty at each horizon; None at horizons with fewer than `MIN_ERRORS` earlier errors (see `Novelty`)."""
    latency_ms: float
    """Time from the call with the picture to the complete forecast (ms)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _PendingForecast:
    """Forecast that waits for its true pictures."""

    frames: Frame
    """Forecast frames, [horizon, C, H, W]."""
    after: Frame
    """Frame after which the forecast was made, [C, H, W]."""
    age: int
    """Age of the state that made the forecast (pictures)."""


class Follower:
    """Pushes pictures into a stream, forecasts after each picture, and measures the errors of earlier forecasts.

    Only one thread at a time may use a follower. After an error of the stream, the follower discards earlier forecasts.

    Args:
        stream: stream that receives the pictures; no other code may push into it.
        config: configuration of the network.
        horizon: number of frames to forecast after each picture. Between pictures, the attribute may be set to any
            value from 1 to this number.
        renewal: renewal of the stream, as `Predictor.renewal` returns it.
        reset_on_cut: reset the state before a picture that begins a new scene (see `CutDetector`).
    """

    def __init__(
        self,
        stream: Forecasting,
        config: ModelConfig,
        *,
        horizon: int,
        renewal: Renewal,
        reset_on_cut: bool = False,
    ) -> None:
        self.stream, self.config, self.horizon = stream, config, horizon
        self._pixels = config.channels * config.image_size[0] * config.image_size[1]
        self._cuts = CutDetector() if reset_on_cut else None
        self._novelty = Novelty(horizon, renewal)
        self._pending: deque[_PendingForecast] = deque(maxlen=horizon)
        self._seen = 0
        self._was_reset = False

    def follow(self, picture: NDArray[np.uint8], *, begins_video: bool = False) -> FollowedPicture:
        """Push a picture, forecast the next pictures, and measure the errors of earlier forecasts of this picture.

        Args:
            picture: uint8 [H, W, C].
            begins_video: True if the picture does not continue the previous picture; the state is then reset first.

        Raises:
            ShapeError: the shape or the type of the picture is not that of the network.
            StreamError: the stream failed, or the output of the network is not finite.
            ResourceLimit: memory is exhausted.
        """
        started = time.perf_counter()
        frame = frames.to_frames(picture, image_size=self.config.image_size, channels=self.config.channels)
        if begins_video and self._seen > 0:
            self.reset()
        if self._cuts is not None and self._cuts.is_cut(frame):
            self._forget()
        try:
            self.stream.push(picture)
            forecast = self.stream.forecast(self.horizon).clip(0, 1)
        except BaseException:
            # The state may or may not have seen this picture, so later pictures cannot be matched to earlier forecasts.
            self._pending.clear()
            raise
        latency_ms = 1000 * (time.perf_counter() - started)
        made = self._forecasts_of_this_picture()
        expected = tuple(one.frames[number] for number, one in enumerate(made))
        errors = [float(metrics.mse(one, frame)) for one in expected]
        followed = FollowedPicture(
            index=self._seen,
            age=self.stream.age,
            cut=self._was_reset,
            picture=picture,
            forecast=forecast,
            expected=expected,
            errors=tuple(errors),
            copy_errors=tuple(float(metrics.mse(one.after, frame)) for one in made),
            novelty=self._novelty.score(np.array(errors) / self._pixels, np.array([one.age for one in made], np.int64)),
            latency_ms=latency_ms,
        )
        self._pending.append(_PendingForecast(frames=forecast, after=frame, age=followed.age))
        self._seen, self._was_reset = self._seen + 1, False
        return followed

    def _forecasts_of_this_picture(self) -> list[_PendingForecast]:
        """Return the forecasts made 1, 2, … pictures earlier, up to the first one that does not reach this picture."""
        found: list[_PendingForecast] = []
        for ahead, made in enumerate(islice(reversed(self._pending), self.horizon), 1):
            if len(made.frames) < ahead:
                break
            found.append(made)
        return found

    def reset(self) -> None:
        """Reset the state and discard earlier forecasts, but keep the medians of the novelty: the scene is the same."""
        self._forget()
        if self._cuts is not None:
            self._cuts.reset()

    def _forget(self) -> None:
        self.stream.reset()
        self._pending.clear()
        self._was_reset = self._seen > 0
