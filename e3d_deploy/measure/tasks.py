"""Tasks that a benchmark times: one call of a backend, made again and again."""

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
    "step": "frame and state in, prediction and next state out, on the host; the history full",
    "stream": "pictures into a stream, uint8, with the renewal of the bundle or the one given: a whole cycle, in which "
    "states begin and end, its rings as full as they stay",
    "rollout": "the last prediction and the state after the bundle's context in, the forecast out, in one call",
    "clip": "the bundle's context in, the forecast out, in one call",
    "end-to-end": "the bundle's context as uint8 pictures in, stepped one by one from the empty state, the forecast as "
    "uint8 pictures out; with decoding of a video where PyAV is installed",
}
"""Tasks that can be timed, each with its description."""

Pictures = Iterator[NDArray[np.uint8]]
"""A video without end, each picture [H, W, C]."""


@dataclass(frozen=True)
class Task:
    """A call to time."""

    call: Callable[[], float | None]
    """Does the work; gives the time that it took on the device in ms, None where the backend does not tell."""
    steps: int
    """Steps of the network in a call, of one state; 0 where it only keeps what it is given."""
    fill: int
    """Calls until one costs what the next one costs: the history grows in the first ones, or memory does."""
    forecasts: bool
    """True if a call takes a context and gives its forecast."""
    frames: int | None = None
    """Frames seen or given in a call; None for as many as steps."""


def check_what(what: Sequence[str]) -> None:
    """Check that there is something to time, and that all of it is known.

    Raises:
        ConfigError: nothing is given, or something unknown.
    """
    if not what or (unknown := [one for one in what if one not in WHAT]):
        raise ConfigError(f"what: got {', '.join(unknown) if what else 'nothing'}, expected some of {', '.join(WHAT)}")


def make_task(
    what: str,
    bundle: Bundle,
    backend: Backend,
    play: Callable[[], Pictures] | None = None,
    renewal: str | None = None,
) -> Task:
    """The call that `WHAT` describes, on the reference clip of the bundle, with as many streams as its graphs take.

    Args:
        play: opens the video whose pictures `end-to-end` is to decode; without it they lie in memory.
        renewal: that of `stream`; None for the default of the bundle.

    Raises:
        ConfigError: no such thing to time, or a rollout of a bundle that takes no step for it.
        BundleError: the bundle lacks the graph.
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
                raise ConfigError("rollout: the bundle forecasts one frame, which takes no further step; time the step")
            for prediction, state in rollout(backend, batched, bundle.context_length):
                last = (prediction, state)  # alone: states may be large
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
    """Steps of a backend on frames [T, B, C, H, W], from the first on for ever."""
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
    """Let a backend on a GPU time its calls there."""
    if backend.device is not None:
        backend.device.measure(True)


def _device(backend: Backend, _result: object) -> float | None:
    """Return the time that the call behind this result took on the device (ms); None if it is not known."""
    return None if backend.device is None else backend.device.device_ms
