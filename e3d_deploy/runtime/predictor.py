"""Predictor, loaded once and shared, and Stream, one video."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BundleError, StreamError
from e3d_deploy.runtime import pictures
from e3d_deploy.runtime.backend import Backend, Frame, State, open_backend
from e3d_deploy.runtime.bundle import Bundle
from e3d_deploy.runtime.faults import clear
from e3d_deploy.runtime.queues import Policy
from e3d_deploy.runtime.scheduler import OnBadOutput, Scheduler
from e3d_deploy.runtime.snapshot import Snapshot
from e3d_deploy.runtime.streams import Streams

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
        from e3d_deploy.runtime.choose import choose  # looks at what is installed, which takes a third of an import

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
        self.closed, self._lock = False, threading.Lock()
        self._schedulers: WeakSet[Scheduler] = WeakSet()

    def stream(self, snapshot: Snapshot | None = None) -> "Stream":
        """A new video, or one that goes on from a snapshot.

        Raises:
            StreamError: the snapshot is of another network.
        """
        stream = Stream(self)
        if snapshot is not None:
            stream.restore(snapshot)
        return stream

    def streams(
        self,
        *,
        max_streams: int = 32,
        max_wait_ms: float = 2.0,
        queue_length: int = 4,
        policy: Policy = "block",
        on_bad_output: OnBadOutput = "raise",
        memory_limit_bytes: int | None = None,
    ) -> Streams:
        """Many videos that are stepped together, for several threads; `Streams` says what the arguments are.

        Raises:
            ConfigError, ResourceLimit: as `Streams`.
            StreamError: this was closed.
        """
        with self._lock:
            if self.closed:
                raise StreamError("predictor: was closed; load the bundle again")
            streams = Streams(
                self.backend,
                self.config,
                self.identity,
                max_streams=max_streams,
                max_wait_ms=max_wait_ms,
                queue_length=queue_length,
                policy=policy,
                on_bad_output=on_bad_output,
                memory_limit_bytes=memory_limit_bytes,
            )
            self._schedulers.add(streams.scheduler)
        return streams

    def close(self) -> None:
        """Free what the backend holds; streams cannot be used after. It can be closed twice."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
        for scheduler in list(self._schedulers):
            scheduler.close()
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream:
    """One video: what was seen of it, and nothing else. One thread at a time; for several see `Predictor.streams`.

    Each call raises StreamError when the predictor was closed, or another thread is in the same stream.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.config = predictor, predictor.config
        self.backend, self.identity = predictor.backend, predictor.identity
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget the video."""
        with self._alone():
            self.state: State = self.backend.initial_state()
            self.prediction: NDArray[np.float32] | None = None
            self.pushed = 0

    def push(self, picture: Any) -> None:
        """See the next picture, [H, W, C], uint8 or float in [0, 1].

        Args:
            picture: a NumPy array, or one of another library that gives its memory by DLPack; of uint8 it may lie
                on the GPU that the backend runs on.

        Raises:
            ShapeError: a picture of another size or type, on a GPU where the backend is not, or with values that are
                no picture's.
            ResourceLimit: out of memory.
            StreamError: the network's answer is not finite.

        Whatever is raised, the stream stays at the last good picture.
        """
        seen = pictures.take(picture, self.config, gpu=hasattr(self.backend, "step_on_device"))
        with self._alone():
            prediction, state = self._step(seen, self.state)
            if not np.isfinite(prediction).all():
                raise StreamError(
                    f"frame {self.pushed}: the prediction is not finite; reset the stream, check the precision"
                )
            self.prediction, self.state, self.pushed = prediction, state, self.pushed + 1

    def forecast(self, horizon: int, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The next frames as computed, not clipped, float32 [horizon, C, H, W]; the stream does not move.

        Args:
            out: where to write them, returned then; after an error it may be written in part.

        Raises:
            ConfigError: horizon below 1.
            ShapeError: `out` is no such array.
            ResourceLimit: out of memory.
            StreamError: nothing was pushed yet, or the network's answer is not finite.
        """
        return self._roll(pictures.forecast_array(horizon, self.config, np.float32, out))

    def predict(self, horizon: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The next pictures, uint8 [horizon, H, W, C]; the stream does not move.

        Args, Raises: as `forecast`.
        """
        return self._roll(pictures.forecast_array(horizon, self.config, np.uint8, out))

    def snapshot(self) -> Snapshot:
        """The stream as it is now; later pictures do not change it."""
        with self._alone():
            return Snapshot(self.identity, self.backend.to_arrays(self.state), copy(self.prediction), self.pushed)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot.

        Raises:
            StreamError: it is of another network.
        """
        if snapshot.identity != self.identity:
            raise StreamError("snapshot: taken from another network, whose state means nothing here; load its bundle")
        with self._alone():
            self.state = self.backend.from_arrays(snapshot.state)
            self.prediction, self.pushed = copy(snapshot.prediction), snapshot.pushed

    def _roll(self, result: NDArray[Any]) -> NDArray[Any]:
        with self._alone():
            if self.prediction is None:
                raise StreamError("nothing was pushed yet; push at least one picture before predicting")
            prediction, state = self.prediction, self.state
            for number in range(len(result)):
                if number > 0:
                    prediction, state = self._step(prediction, state)
                    if not np.isfinite(prediction).all():
                        raise StreamError(
                            f"forecast frame {number}: is not finite; forecast less far, check the precision"
                        )
                pictures.put(prediction[0], result[number])
        return result

    def _step(self, seen: Frame, state: State) -> tuple[NDArray[np.float32], State]:
        try:
            return self.backend.step(seen, state)
        except Exception as error:
            if (cleared := clear(error)) is error:
                raise
            raise cleared from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise StreamError(
                "stream: another thread is in it; give each its own, or take predictor.streams(), which several may use"
            )
        try:
            if self.predictor.closed:
                raise StreamError("stream: its predictor was closed; load the bundle again")
            yield
        finally:
            self._lock.release()
