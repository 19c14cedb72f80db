"""Follow one stream: forecast after each picture, and measure each forecast once the truth has come."""

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
"""Frame or frames in [0, 1], channels first."""


class Forecasting(Protocol):
    """Part of a stream that is followed; `runtime.Stream` and `runtime.SlotStream` have it."""

    @property
    def age(self) -> int: ...

    def push(self, picture: Any, /) -> None: ...

    def forecast(self, horizon: int, /) -> Frame: ...

    def reset(self) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Picture that was seen, with the forecast after it and the forecasts that had been made of it."""

    index: int
    """Number of the picture among those that were seen, from 0."""
    age: int
    """Pictures that the state which forecasts has seen, this one included."""
    cut: bool
    """True if the state was reset before this picture."""
    picture: NDArray[np.uint8]
    """[H, W, C]."""
    forecast: Frame
    """Forecast of the pictures after this one, [horizon, C, H, W], clipped to [0, 1]."""
    expected: tuple[Frame, ...]
    """Forecasts of this picture made 1, 2, … pictures before, [C, H, W] each; fewer than the horizon at first."""
    errors: tuple[float, ...]
    """Squared error of each of them, summed over the frame."""
    copy_errors: tuple[float, ...]
    """Squared error of the picture that was the last one then, summed over the frame."""
    novelty: tuple[float | None, ...]
    """Novelty at each of these horizons; None until enough is known (see `Novelty`)."""
    latency_ms: float
    """Time from the picture to the whole forecast (ms)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Made:
    """Forecast whose truth has yet to come."""

    frames: Frame
    after: Frame
    """Picture after which it was made, [C, H, W]."""
    age: int


class Follower:
    """Pushes pictures into a stream, forecasts after each, and measures what was forecast once the truth has come.

    One thread at a time may use it. After an error of the stream nothing that was forecast before is judged.

    Args:
        stream: the stream, which nobody else pushes into.
        config: its network.
        horizon: frames to forecast after each picture. The attribute can be set to fewer, and back, between pictures.
        renewal: renewal of the stream, as `Predictor.renewal` returns it.
        reset_on_cut: reset the state before a picture that begins another scene (see `CutDetector`).
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
        self._made: deque[_Made] = deque(maxlen=horizon)
        self._seen = 0
        self._was_reset = False

    def see(self, picture: NDArray[np.uint8], *, begins: bool = False) -> Judged:
        """Push a picture [H, W, C], forecast the `horizon` pictures after it, and judge earlier forecasts of it.

        Args:
            begins: the picture does not continue those before, so that the state is reset first.

        Raises:
            ShapeError: a picture of another size or type.
            StreamError: the stream failed, or the network's answer is not finite.
            ResourceLimit: out of memory.
        """
        started = time.perf_counter()
        frame = frames.to_frames(picture, image_size=self.config.image_size, channels=self.config.channels)
        if begins and self._seen > 0:
            self.reset()
        if self._cuts is not None and self._cuts.is_cut(frame):
            self._forget()
        try:
            self.stream.push(picture)
            forecast = self.stream.forecast(self.horizon).clip(0, 1)
        except BaseException:
            self._made.clear()  # the picture may be in the state or not, so earlier forecasts have lost count
            raise
        latency_ms = 1000 * (time.perf_counter() - started)
        made = self._reaching()
        expected = tuple(one.frames[number] for number, one in enumerate(made))
        errors = [float(metrics.mse(one, frame)) for one in expected]
        judged = Judged(
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
        self._made.append(_Made(frames=forecast, after=frame, age=judged.age))
        self._seen, self._was_reset = self._seen + 1, False
        return judged

    def _reaching(self) -> list[_Made]:
        """Return the forecasts made 1, 2, … pictures before, up to one that did not reach this picture."""
        found: list[_Made] = []
        for ahead, made in enumerate(islice(reversed(self._made), self.horizon), 1):
            if len(made.frames) < ahead:
                break
            found.append(made)
        return found

    def reset(self) -> None:
        """Forget the video. The medians of the novelty stay, as the camera and its scene do."""
        self._forget()
        if self._cuts is not None:
            self._cuts.reset()

    def _forget(self) -> None:
        self.stream.reset()
        self._made.clear()
        self._was_reset = self._seen > 0
