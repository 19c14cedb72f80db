"""Fake backend. Its results can be computed by hand, a step takes microseconds, and a test can make it fail."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.card import Card, Decay
from e3d_deploy.config import ModelConfig
from e3d_deploy.runtime import Predictor, SlotStream
from e3d_deploy.runtime.backends.host import as_frames
from e3d_deploy.runtime.backends.protocol import Frame
from e3d_deploy.runtime.streams.waiting import Reply

CONFIG = ModelConfig(image_size=(4, 8), hidden=(1,))
AGELESS = Card(decay=Decay(context_length=10, data="", clips=1, mse={10: (1.0,), 60: (1.0,)}, copy_last=(1.0,)))
"""Card of a model that does not decay, so that its streams need no renewal."""
Arrays = dict[str, NDArray[Any]]


class FakeState:
    """Running mean and number of the frames that each row has seen."""

    def __init__(self, backend: "FakeBackend", mean: NDArray[np.float32], count: NDArray[np.int32]) -> None:
        self.backend, self.mean, self.count = backend, mean, count
        backend.live_rows += len(count)
        backend.most_rows = max(backend.most_rows, backend.live_rows)

    def __del__(self) -> None:
        self.backend.live_rows -= len(self.count)


class FakeBackend:
    """Backend that predicts a quarter of the frame plus half of the running mean, row by row.

    Args:
        sizes: batch sizes, as in `Backend`.
        pads: as in `Backend`.
    """

    name, device = "fake", None

    def __init__(self, sizes: tuple[int, ...] = (1, 2, 4, 8), *, pads: bool = False) -> None:
        self.sizes, self.pads = sizes, pads
        self.live_rows = self.most_rows = self.gathers = 0
        self.calls: list[int] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        """Event that each step waits for. It is set initially, so steps run at once until a test clears it."""
        self.gate.set()
        self.entered = threading.Event()
        self.answer: Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]] = lambda _, found: found
        """Function of the frames and predictions of a step that returns the final predictions, or raises."""

    def initial_state(self, batch: int | None = None) -> FakeState:
        batch = batch or 1
        return FakeState(self, np.zeros((batch, 1, 4, 8), np.float32), np.zeros(batch, np.int32))

    def gather(self, rows: Sequence[tuple[FakeState, int]]) -> FakeState:
        assert len(rows) in self.sizes
        self.gathers += 1
        mean = np.stack([state.mean[row] for state, row in rows])
        return FakeState(self, mean, np.array([state.count[row] for state, row in rows], np.int32))

    def step(self, frame: Frame, state: FakeState) -> tuple[NDArray[np.float32], FakeState]:
        self.entered.set()
        self.gate.wait(60)
        assert len(frame) == len(state.count)
        self.calls.append(len(frame))
        self.threads.add(threading.get_ident())
        seen = as_frames(frame, CONFIG)
        mean = state.mean / 2 + seen / 2
        prediction = self.answer(seen, seen / 4 + mean / 2)
        return prediction, FakeState(self, mean, state.count + 1)

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], FakeState]:
        raise NotImplementedError

    def rollout(self, prediction: NDArray[np.float32], state: FakeState) -> tuple[NDArray[np.float32], FakeState]:
        raise NotImplementedError

    def to_arrays(self, state: FakeState) -> Arrays:
        return {"mean": state.mean.copy(), "count": state.count.copy()}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> FakeState:
        return FakeState(self, arrays["mean"].copy(), arrays["count"].copy())

    def close(self) -> None:
        self.name = "closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def predictor_of(backend: FakeBackend) -> Predictor:
    return Predictor(CONFIG, backend, identity="fake", card=AGELESS)


def picture(value: int) -> NDArray[np.uint8]:
    return np.full((4, 8, 1), value, np.uint8)


def pushed(stream: SlotStream, *values: int) -> SlotStream:
    for value in values:
        stream.push(picture(value))
    return stream


def alone(values: list[int], horizon: int) -> NDArray[np.float32]:
    """Return the forecast of a stream that has a backend of its own."""
    stream = predictor_of(FakeBackend()).stream()
    for value in values:
        stream.push(picture(value))
    return stream.forecast(horizon)


def asked(
    stream: SlotStream, horizon: int, dtype: type[np.float32] | type[np.uint8] = np.float32
) -> Reply[NDArray[Any]]:
    """Request a forecast and return its pending reply."""
    forecast = stream._new_forecast(horizon, dtype, None)
    stream._scheduler.queues.ask(forecast, None, "predict")
    return forecast.reply


def together(slots: list[SlotStream], value: int) -> None:
    """Push a picture to every stream, so that all are stepped together, and wait for the steps."""
    for slot in slots:
        slot.push(picture(value))
    for slot in slots:
        slot.wait()


def until(true: Callable[[], bool]) -> None:
    """Wait until a condition is true, for at most 60 s."""
    end = time.perf_counter() + 60
    while not true():
        assert time.perf_counter() < end
        time.sleep(0.001)
