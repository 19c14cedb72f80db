"""Predictor, loaded once and shared, and Stream, one video."""

import logging
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import frames
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BackendUnavailable, BundleError, ConfigError, ShapeError, StreamError
from e3d_deploy.runtime.backend import Backend, State, open_backend
from e3d_deploy.runtime.bundle import Bundle
from e3d_deploy.runtime.choose import choose

log = logging.getLogger(__name__)


def load(path: str | Path, backend: str | Backend = "auto", *, threads: int | None = None) -> "Predictor":
    """A predictor for the bundle in `path`.

    Args:
        backend: a name that `open_backend` knows, or a backend of your own. `auto` takes the fastest that is
            installed and gives what PyTorch recorded in the first steps of the bundle's reference clip; `choose`
            says how, and `e3d doctor --bundle` which and why.
        threads: threads within a step; None leaves it to the library.

    Raises:
        BundleError: the bundle is damaged, incomplete or too new.
        BackendUnavailable: the backend's library is not installed, or with `auto` none is that agrees.
    """
    bundle = Bundle.open(path)
    if bundle.batch != 1:
        raise BundleError(f"{path}: its graphs take {bundle.batch} streams at once; export with --batch 1 for streams")
    if backend == "auto":
        backend, _ = choose(bundle, threads=threads)
    elif isinstance(backend, str):
        backend = open_backend(bundle, backend, threads=threads)
    return Predictor(
        bundle.config,
        backend,
        identity=bundle.digest,
        context_length=bundle.context_length,
        horizon=bundle.horizon,
    )


@dataclass(frozen=True)
class Snapshot:
    """A stream at one moment, as a value: restore it, fork it, pickle it to another process."""

    identity: str
    """Of the weights and graphs it belongs to."""
    state: dict[str, NDArray[Any]]
    prediction: NDArray[np.float32] | None
    pushed: int


class Predictor:
    """A network on a backend; the streams that it opens share both.

    Args:
        identity: stands for what the backend computes, so that a snapshot does not end up elsewhere.
        context_length, horizon: how many frames one usually gives and wants; streams take any.
    """

    def __init__(
        self, config: ModelConfig, backend: Backend, *, identity: str, context_length: int = 10, horizon: int = 10
    ) -> None:
        self.config, self.backend, self.identity = config, backend, identity
        self.context_length, self.horizon = context_length, horizon

    def stream(self, snapshot: Snapshot | None = None) -> "Stream":
        """A new video, or one that goes on from a snapshot.

        Raises:
            StreamError: the snapshot is of another network.
        """
        stream = Stream(self)
        if snapshot is not None:
            stream.restore(snapshot)
        return stream

    def close(self) -> None:
        """Free what the backend holds; streams cannot be used after."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Stream:
    """One video: what was seen of it, and nothing else."""

    def __init__(self, predictor: Predictor) -> None:
        self.config, self.backend, self.identity = predictor.config, predictor.backend, predictor.identity
        self.reset()

    def reset(self) -> None:
        """Forget the video."""
        self.state: State = self.backend.initial_state()
        self.prediction: NDArray[np.float32] | None = None
        self.pushed = 0

    def push(self, picture: NDArray[Any]) -> None:
        """See the next picture, [H, W, C], uint8 or float in [0, 1].

        Raises:
            ShapeError: a picture of another size or type, or with values that are no picture's.
            StreamError: the network's answer is not finite. The stream stays at the last good picture.
        """
        expected = [*self.config.image_size, self.config.channels]
        if list(picture.shape) != expected:
            raise ShapeError(
                f"picture: got {list(picture.shape)} {picture.dtype}, expected [H, W, C] = {expected}; "
                "resize it, or export a model for this size"
            )
        frame = frames.to_frames(picture[None], image_size=self.config.image_size, channels=self.config.channels)
        prediction, state = self.backend.step(frame, self.state)
        if not np.isfinite(prediction).all():
            raise StreamError(
                f"frame {self.pushed}: the prediction is not finite; reset the stream, check the precision"
            )
        self.prediction, self.state, self.pushed = prediction, state, self.pushed + 1

    def forecast(self, horizon: int) -> NDArray[np.float32]:
        """The next frames as computed, not clipped, float32 [horizon, C, H, W]; the stream does not move.

        Raises:
            ConfigError: horizon below 1.
            StreamError: nothing was pushed yet, or the network's answer is not finite.
        """
        if horizon < 1:
            raise ConfigError(f"horizon: got {horizon}, expected 1 or more")
        if self.prediction is None:
            raise StreamError("nothing was pushed yet; push at least one picture before predicting")
        prediction, state = self.prediction, self.state
        predictions = [prediction]
        for number in range(1, horizon):
            prediction, state = self.backend.step(prediction, state)
            if not np.isfinite(prediction).all():
                raise StreamError(f"forecast frame {number}: is not finite; forecast less far, check the precision")
            predictions.append(prediction)
        return np.concatenate(predictions)

    def predict(self, horizon: int) -> NDArray[np.uint8]:
        """The next pictures, uint8 [horizon, H, W, C]; the stream does not move.

        Raises:
            ConfigError, StreamError: as `forecast`.
        """
        return frames.to_pictures(self.forecast(horizon))

    def snapshot(self) -> Snapshot:
        """The stream as it is now; later pictures do not change it."""
        return Snapshot(self.identity, self.backend.to_arrays(self.state), self.prediction, self.pushed)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot.

        Raises:
            StreamError: it is of another network.
        """
        if snapshot.identity != self.identity:
            raise StreamError("snapshot: taken from another network, whose state means nothing here; load its bundle")
        self.state = self.backend.from_arrays(snapshot.state)
        self.prediction, self.pushed = snapshot.prediction, snapshot.pushed
