"""Tasks of a benchmark: calls of a backend that are repeated and timed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import ConfigError
from e3d_deploy.frames import to_pictures
from e3d_deploy.runtime.backends.protocol import Backend, State
from e3d_deploy.runtime.backends.rollout import rollout
from e3d_deploy.runtime.predictor import Predictor

WHAT = {
    "step": "one step: from a frame and a state to the prediction and the next state, on the host, with a full history",
    "stream": "one cycle of the renewal of a stream: uint8 pictures are pushed, and states begin and end; the rings "
    "are as full as in a long stream",
    "rollout": "one call: from the last prediction and the state after the context to the forecast",
    "clip": "one call: from the context of the bundle to the forecast",
    "end-to-end": "from the context as uint8 pictures, stepped one by one from the initial state, to the forecast as "
    "uint8 pictures; includes decoding of a video if PyAV is installed",
}
"""Descriptions of the tasks that can be timed, by name."""

Pictures = Iterator[NDArray[np.uint8]]
"""Endless video of pictures [H, W, C]."""


@dataclass(frozen=True)
class Task:
    """Call that is timed."""

    call: Callable[[], float | None]
    """Function that does the work; returns its time on the device (ms), or None if the backend does not report it."""
    steps: int
    """Network steps per call and stream; 0 if the call only stores pictures."""
    fill: int
    """Calls until the cost of a call is constant: during the first calls, the history or the memory grows."""
    forecasts: bool
    """True if a call makes a forecast from a context."""
    frames: int | None = None
    """Frames seen or predicted per call; None if the number equals `steps`."""


def check_what(what: Sequence[str]) -> None:
    """Check the names of the tasks to time.

    Raises:
        ConfigError: There is no task, or a task is unknown.
    """
    if not what or (unknown := [one for one in what if one not in WHAT]):
        raise ConfigError(
            f"what: got {', '.join(unknown) if what else 'nothing'}, expected one or more of {', '.join(WHAT)}"
        )


def make_task(
    what: str,
    bundle: Bundle,
    backend: Backend,
    play: Callable[[], Pictures] | None = None,
    renewal: str | None = None,
) -> Task:
    """Return a task of `WHAT` that runs on the reference clip of the bundle, with the batch size of its graphs.

    Args:
        play: function that opens the video that `end-to-end` decodes; None to read pictures from memory.
        renewal: renewal of the stream in `stream`; None for the default of the bundle.

    Raises:
        ConfigError: The task is unknown, or it is a rollout and the bundle forecasts only one frame.
        BundleError: The bundle lacks the graph of the task.
    """
    check_what([what])
    _measure_device(backend)
    frames = np.repeat(bundle.reference()["frames"][:, None], bundle.batch, axis=1)  # [T, B, C, H, W]
    batched = np.ascontiguousarray(np.swapaxes(frames[: bundle.context_length], 0, 1))  # [B, T, C, H, W]
    match what:
        case "step":
            return step_task(backend, backend.initial_state(), frames, fill=bundle.states.frames_to_fill + 2)
        case "stream":
            return _stream_task(bundle, backend, renewal)
        case "clip":
            steps = bundle.context_length + bundle.horizon - 1
            return Task(lambda: _device(backend, backend.clip(batched)), steps, fill=2, forecasts=True)
        case "rollout":
            if bundle.horizon < 2:
                raise ConfigError("rollout: the bundle forecasts one frame, which needs no rollout; time the step")
            for prediction, state in rollout(backend, batched, bundle.context_length):
                last = (prediction, state)  # keep only the last pair, because states may be large
            return Task(lambda: _device(backend, backend.rollout(*last)), bundle.horizon - 1, 2, forecasts=False)
        case "end-to-end":
            return _end_to_end(bundle, backend, play)
    raise AssertionError(f"{what} passed check_what")


def _stream_task(bundle: Bundle, backend: Backend, text: str | None) -> Task:
    if bundle.batch != 1:
        raise ConfigError(f"stream: the graphs take {bundle.batch} streams at once; export with --batch 1 or any")
    predictor = Predictor.of_bundle(bundle, backend)
    renewal = predictor.renewal(text)
    stream = predictor.stream(renewal=str(renewal))
    seen = cycle(to_pictures(bundle.reference()["frames"]))

    def call() -> None:
        for _ in range(renewal.cycle):
            stream.push(next(seen))

    until_full = bundle.states.frames_to_fill + 1 + renewal.warm_up
    steps = round(renewal.steps_per_frame * renewal.cycle)
    return Task(call, steps, until_full // renewal.cycle + 1, forecasts=False, frames=renewal.cycle)


def step_task(backend: Backend, state: State, frames: NDArray[np.float32], *, fill: int) -> Task:
    """Return the task of one step of a backend. The steps repeat the frames [T, B, C, H, W] endlessly."""
    seen = cycle(frames)

    def call() -> float | None:
        nonlocal state
        _, state = result = backend.step(next(seen), state)
        return _device(backend, result)

    return Task(call, 1, fill, forecasts=False)


def _end_to_end(bundle: Bundle, backend: Backend, play: Callable[[], Pictures] | None) -> Task:
    if play is None:
        shown = to_pictures(bundle.reference()["frames"])
        videos: list[Pictures] = [cycle(shown) for _ in range(bundle.batch)]
    else:
        videos = [play() for _ in range(bundle.batch)]

    def call() -> float | None:
        times, state = [], backend.initial_state()
        for _ in range(bundle.context_length):
            seen = np.stack([next(video) for video in videos])
            prediction, state = stepped = backend.step(seen, state)
            times.append(_device(backend, stepped))
        forecast, _ = rolled = backend.rollout(prediction, state)
        times.append(_device(backend, rolled))
        to_pictures(forecast)
        known = [time for time in times if time is not None]
        return sum(known) if len(known) == len(times) else None

    return Task(call, bundle.context_length + bundle.horizon - 1, fill=2, forecasts=True)


def _measure_device(backend: Backend) -> None:
    """Enable the timing of calls on the GPU, if the backend runs on one."""
    if backend.device is not None:
        backend.device.measure(True)


def _device(backend: Backend, _result: object) -> float | None:
    """Return the time on the device of the call that returned this result (ms); None if unknown."""
    return None if backend.device is None else backend.device.device_ms
