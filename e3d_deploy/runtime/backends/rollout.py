"""Rollouts by single steps, which take true frames first and then the previous prediction."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.frames import as_array
from e3d_deploy.runtime.backends.protocol import Frame, State


class Stepper(Protocol):
    """Methods of `Backend` that a rollout needs."""

    def initial_state(self, batch: int | None = None) -> State: ...

    def step(self, frame: Frame, state: State) -> tuple[NDArray[np.float32], State]: ...


def rollout(
    backend: Stepper, seen: NDArray[np.float32], steps: int, *, state: State = None
) -> Iterator[tuple[NDArray[np.float32], State]]:
    """Yield the prediction [B, C, H, W] and the state after each step.

    Args:
        seen: frames for the first T steps, [B, T, C, H, W]. Each later step takes the previous prediction.
        steps: number of steps; it may be less than T.
        state: state before the first step; None for the initial state of B streams.
    """
    seen = as_array(seen, name="frames")
    state = backend.initial_state(len(seen)) if state is None else state
    prediction = seen[:, 0]
    for t in range(steps):
        frame = np.ascontiguousarray(seen[:, t]) if t < seen.shape[1] else prediction
        prediction, state = backend.step(frame, state)
        yield prediction, state


def clip_by_steps(backend: Stepper, context: NDArray[np.float32], horizon: int) -> tuple[NDArray[np.float32], State]:
    """Implement `Backend.clip` by single steps, with a context [B, T, C, H, W] of any length T."""
    return _collected(rollout(backend, context, context.shape[1] + horizon - 1), deque(maxlen=horizon), None)


def rollout_by_steps(
    backend: Stepper, prediction: NDArray[np.float32], state: State, horizon: int
) -> tuple[NDArray[np.float32], State]:
    """Implement `Backend.rollout` by single steps."""
    return _collected(rollout(backend, prediction[:, None], horizon - 1, state=state), deque([prediction]), state)


def _collected(
    steps: Iterable[tuple[NDArray[np.float32], State]], predictions: deque[NDArray[np.float32]], state: State
) -> tuple[NDArray[np.float32], State]:
    """Run the steps; return the predictions left in the queue, [B, T, C, H, W], and the last state.

    Earlier states are dropped at once, because states may be large.

    Args:
        steps: prediction and state after each step.
        predictions: queue to which each prediction is appended; its `maxlen` limits T.
        state: returned if there are no steps.
    """
    for prediction, following in steps:
        predictions.append(prediction)
        state = following
    return np.stack(predictions, axis=1), state
