"""Decay of a state: the forecast error as a function of the age of the state.

    from e3d_deploy.evaluation.streaming import measure_decay

    with runtime.load("small.e3d") as predictor:
        decay = measure_decay(predictor.backend, windows, context_length=10, horizon=10, data="film.mp4")
    decay.ratio(150)  # error at age 150, as a multiple of the error at age 10
    decay.verdict     # the result in words

Needs NumPy and the libraries of the backend.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from e3d_deploy import metrics
from e3d_deploy.bundle.folder import Bundle, record_decay
from e3d_deploy.card import AGES, REACH, Decay
from e3d_deploy.errors import BundleError, CheckpointError, ClipError, ConfigError, ShapeError, StreamError
from e3d_deploy.files import sha256
from e3d_deploy.frames import Frames
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.backends.rollout import Stepper, clip_by_steps

BATCH_BYTES = 1 << 28
"""Maximum total size of the windows of a batch (bytes); a single window may be larger."""


class Windows(Protocol):
    """A list or a data set of `data.datasets`; each item is a context and the true frames after it."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


class Steps(Stepper, Protocol):
    """The members of `runtime.backends.protocol.Backend` that a forecast needs."""

    sizes: tuple[int, ...]


def decay_ages(context_length: int, ages: Iterable[int] | None = None) -> tuple[int, ...]:
    """Return `context_length` and the given `ages`, ascending.

    Args:
        context_length: length of the context in training (frames).
        ages: ages to measure; None for `card.AGES` and `card.REACH` · `context_length`. A verdict on the decay needs
            the latter.

    Raises:
        ConfigError: an age or `context_length` is below 1.
    """
    found = sorted({context_length, *((*AGES, REACH * context_length) if ages is None else ages)})
    if found[0] < 1:
        raise ConfigError(f"ages: got {found[0]}, expected 1 or more")
    return tuple(found)


def steps_of(ages: Iterable[int], *, horizon: int) -> int:
    """Return the number of steps per window that measuring these ages takes."""
    return sum(age + horizon - 1 for age in ages)


def measure_decay(
    backend: Steps,
    windows: Windows,
    *,
    ages: Iterable[int] | None = None,
    context_length: int,
    horizon: int,
    data: str,
    progress: Notify = silent,
) -> Decay:
    """Forecast the same frames from states of several ages, and compare each forecast with the true frames.

    With a largest age A, the first A frames of a window are the context, and the next `horizon` frames are forecast. A
    state of age n sees only the last n frames of the context. Predictions are clipped to [0, 1].

    Args:
        windows: arrays or tensors, each float [T, C, H, W] in [0, 1], T at least A + horizon; further frames are
            ignored. Windows are read batch by batch and not stored.
        ages: ages to measure in addition to `context_length`; None for the defaults of `decay_ages`.
        context_length: length of the context in training (frames).
        data: name of the source, stored in the result.
        progress: called before each age of each batch.

    Raises:
        ConfigError: an age, `context_length` or `horizon` is below 1.
        ClipError: `windows` is empty, or nothing moves in any window.
        ShapeError: a window is too short.
        StreamError: a prediction is not finite.
    """
    measured = decay_ages(context_length, ages)
    if horizon < 1:
        raise ConfigError(f"horizon: got {horizon}, expected 1 or more")
    if not len(windows):
        raise ClipError(f"{data}: got no window, expected at least one; give longer clips")
    mse = {age: np.zeros(horizon) for age in measured}
    copying = np.zeros(horizon)
    for first, batch in _batches(windows, backend.sizes, length=measured[-1] + horizon):
        context, truth = batch[:, :-horizon], batch[:, -horizon:]
        copying += metrics.mse(context[:, -1:], truth).sum(axis=0)
        for age in measured:
            progress(f"window {first + 1} of {len(windows)}, age {age}")
            found, _ = clip_by_steps(backend, context[:, -age:], horizon)
            if not np.isfinite(found).all():
                raise StreamError(
                    f"window {first + 1}: a prediction at age {age} is not finite; check the model and its precision"
                )
            mse[age] += metrics.mse(found.clip(0, 1), truth).sum(axis=0)
    if not copying.any():
        raise ClipError(
            f"{data}: nothing moves in the frames that are forecast, so they do not show how a state decays; give "
            "clips with motion"
        )
    count = len(windows)
    return Decay(
        context_length=context_length,
        data=data,
        clips=count,
        mse={age: tuple((total / count).tolist()) for age, total in mse.items()},
        copy_last=tuple((copying / count).tolist()),
    )


def record_with_model(path: Path, identity: str, decay: Decay) -> None:
    """Store a decay in the card of a model file or of a bundle.

    Args:
        path: model file, or folder of a bundle.
        identity: identity of the bundle, or SHA-256 of the model file, at the time of the measurement.

    Raises:
        CheckpointError: the model file has changed since the measurement.
        BundleError: the bundle has changed since the measurement.
        OSError: the card cannot be written.
    """
    if path.is_dir():
        bundle = Bundle.open(path)
        if bundle.identity != identity:
            raise BundleError(f"{path}: was exported again during the measurement; measure it again")
        record_decay(bundle, decay)
        return
    from e3d_deploy import checkpoint  # imported late: bundles are measured without PyTorch

    if sha256(path) != identity:
        raise CheckpointError(f"{path}: was written again during the measurement; measure it again")
    checkpoint.write_card(path, replace(checkpoint.read_card(path), decay=decay))


def _batches(windows: Windows, sizes: Sequence[int], *, length: int) -> Iterator[tuple[int, Frames]]:
    """Yield the number of the first window of each batch, and the batch, [B, length, C, H, W].

    Args:
        sizes: batch sizes that the backend supports.
    """
    first = 0
    while first < len(windows):
        window = _window(windows, first, length)
        most = min(len(windows) - first, max(1, BATCH_BYTES // window.nbytes))
        size = max((size for size in sizes if size <= most), default=1)
        yield first, np.stack([window, *(_window(windows, first + row, length) for row in range(1, size))])
        first += size


def _window(windows: Windows, number: int, length: int) -> Frames:
    window = np.asarray(windows[number], np.float32)
    if window.ndim != 4 or len(window) < length:
        raise ShapeError(
            f"window {number + 1}: got {list(window.shape)}, expected [T, C, H, W] with T at least {length}, the "
            "largest age plus the horizon; give longer clips, or smaller ages"
        )
    return window[:length]
