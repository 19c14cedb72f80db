"""Rollouts by single steps: over frames that were seen, then over the predictions themselves."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.frames import plain
from e3d_deploy.runtime.backends.protocol import Frame, State


class Stepper(Protocol):
    """Part of `Backend` that a rollout needs."""

    def initial_state(self, batch: int | None = None) -> State: ...

    def step(self, frame: Frame, state: State) -> tuple[NDArray[np.float32], State]: ...


def rollout(
    backend: Stepper, seen: NDArray[np.float32], steps: int, *, state: State = None
) -> Iterator[tuple[NDArray[np.float32], State]]:
    """Yield the prediction [B, C, H, W] and the state after each step.

    Args:
        seen: frames of the first steps, [B, T, C, H, W]; the steps after them see the prediction before.
        steps: number of steps, which may be fewer than T.
        state: state before the first step; None for the initial state of B streams.
    """
    seen = plain(seen, name="frames")
    state = backend.initial_state(len(seen)) if state is None else state
    prediction = seen[:, 0]
    for t in range(steps):
        frame = np.ascontiguousarray(seen[:, t]) if t < seen.shape[1] else prediction
        prediction, state = backend.step(frame, state)
        yield prediction, state


def clip_by_steps(backend: Stepper, context: NDArray[np.float32], horizon: int) -> tuple[NDArray[np.float32], State]:
    """Return the forecast [B, horizon, C, H, W] after a context [B, T, C, H, W], and the state, as `Backend.clip`."""
    return _kept(rollout(backend, context, context.shape[1] + horizon - 1), deque(maxlen=horizon), None)


def rollout_by_steps(
    backend: Stepper, prediction: NDArray[np.float32], state: State, horizon: int
) -> tuple[NDArray[np.float32], State]:
    """Return the forecast [B, horizon, C, H, W] that begins with a prediction, and the state, as `Backend.rollout`."""
    return _kept(rollout(backend, prediction[:, None], horizon - 1, state=state), deque([prediction]), state)


def _kept(
    answers: Iterable[tuple[NDArray[np.float32], State]], predictions: deque[NDArray[np.float32]], state: State
) -> tuple[NDArray[np.float32], State]:
    """Return the predictions that a queue keeps, [B, T, C, H, W], and the last state alone: states may be large."""
    for prediction, following in answers:
        predictions.append(prediction)
        state = following
    return np.stack(predictions, axis=1), state
