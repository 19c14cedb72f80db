"""Predictor, a loaded bundle that streams share, and Stream, which follows one video."""

import logging
import os
import threading
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Self, TypeVar
from weakref import WeakSet, ref

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.card import Card
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BundleError, StreamError
from e3d_deploy.paths import check_path
from e3d_deploy.runtime import pictures
from e3d_deploy.runtime.aged import Aged, advance
from e3d_deploy.runtime.arguments import Timeout
from e3d_deploy.runtime.backends.host import as_frames
from e3d_deploy.runtime.backends.protocol import Backend, Frame, State
from e3d_deploy.runtime.backends.registry import check_backend, check_threads, open_backend
from e3d_deploy.runtime.batching import Batcher, Place
from e3d_deploy.runtime.faults import translated_errors
from e3d_deploy.runtime.process import check_stack, check_usable, in_backend, listed, wait_at_exit
from e3d_deploy.runtime.renewal import Renewal, default_renewal, known_context
from e3d_deploy.runtime.snapshot import Owner, Snapshot, freeze_owned, renewal_of

if TYPE_CHECKING:
    from e3d_deploy.runtime.streams.queues import Policy
    from e3d_deploy.runtime.streams.scheduler import OnBadOutput, Scheduler
    from e3d_deploy.runtime.streams.streams import Streams

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@translated_errors()
def load(path: Bundle | str | Path, backend: str | Backend = "auto", *, threads: int | None = None) -> "Predictor":
    """Load a bundle on a backend.

    Args:
        path: bundle, opened or as the path of its folder.
        backend: name of a backend, or a backend object of your own. `auto` selects the fastest installed backend that
            reproduces the recorded outputs of PyTorch on the first frames of the reference clip. `choose` describes
            the rule, and `e3d doctor --bundle` shows the selected backend and the reasons.
        threads: number of threads within a step; None leaves the number to the library.

    Raises:
        BundleError: the bundle is damaged, incomplete or too new; or its graphs take more than one stream at once.
        BackendUnavailable: the backend's library is not installed; or, with `auto`, no installed backend agrees with
            the reference clip.
        ConfigError: `path`, `backend` or `threads` is invalid.
        ResourceLimit: there is not enough memory, or the stack of this thread is too small for a step.
    """
    threads = check_threads(threads)
    bundle = path if isinstance(path, Bundle) else check_path("path", path)
    check_stack()
    if not isinstance(backend, str):
        check_backend(backend)
    bundle = Bundle.of(bundle)
    if bundle.batch != 1:
        raise BundleError(
            f"{bundle.path}: its graphs take {bundle.batch} streams at once; export with --batch 1 for streams"
        )
    if backend == "auto":
        from e3d_deploy.runtime.choose import choose  # imported here because a named backend does not need it

        backend, _ = choose(bundle, threads=threads)
    elif isinstance(backend, str):
        backend = open_backend(bundle, backend, threads=threads)
    return Predictor.of_bundle(bundle, backend)


class Predictor:
    """A network on a backend, shared by all streams that the predictor opens.

    Args:
        identity: hash that identifies the network; a snapshot can be restored only into the network that made it.
        earlier: identities that older versions gave to snapshots of the same network.
        states: description of a stream's state; None derives the description from `config`, and leaves the states of
            snapshots unchecked.
        context_length: number of context frames that the model was exported for; streams accept other numbers too.
        horizon: number of forecast frames that the model was exported for; streams accept other numbers too.
        card: facts about the model, which decide the default renewal of streams.
        has_clip: True if the backend has a clip graph, which maps `context_length` frames to `horizon` frames.
    """

    def __init__(
        self,
        config: ModelConfig,
        backend: Backend,
        *,
        identity: str,
        earlier: tuple[str, ...] = (),
        states: contract.States | None = None,
        context_length: int = 10,
        horizon: int = 10,
        card: Card | None = None,
        has_clip: bool = False,
    ) -> None:
        self.config, self.backend, self.identity = config, backend, identity
        self.states = states or contract.states_of(config)
        self.owner = Owner(identity=identity, earlier=earlier, states=states, config=config)
        self.context_length, self.horizon, self.card = context_length, horizon, card or Card()
        self.has_clip = has_clip
        self.closed, self.pid = False, os.getpid()
        self._schedulers: WeakSet[Scheduler] = WeakSet()
        self._warned: set[str] = set()
        self.calls: dict[Stream, int] = {}
        """Streams with a call in progress, each with the id of the calling thread."""
        this = ref(self)
        wait_at_exit(self, lambda: None if (predictor := this()) is None else predictor._wait(Timeout(None)))

    @classmethod
    def of_bundle(cls, bundle: Bundle, backend: Backend) -> Self:
        """Return a predictor for a bundle and a backend that was opened with it."""
        return cls(
            bundle.config,
            backend,
            identity=bundle.identity,
            earlier=bundle.earlier_identities,
            states=bundle.states,
            context_length=bundle.context_length,
            horizon=bundle.horizon,
            card=bundle.card,
            has_clip=bundle.manifest.entry("clip", backend.name) is not None,
        )

    def stream(self, snapshot: Snapshot | None = None, *, renewal: str | None = None) -> "Stream":
        """Open a stream for a new video, or a stream that continues from a snapshot.

        Args:
            renewal: `none`, `refresh:M` or `replay`, see docs/streams.md. None uses the renewal of the snapshot, or
                without a snapshot the default, which follows from the measured decay of the model.

        Raises:
            ConfigError: `renewal` is invalid.
            StreamError: the snapshot belongs to another network; or its renewal differs from `renewal`; or the
                predictor was closed.
            SnapshotError: the snapshot is damaged; or the names, shapes or types of its states differ from those of the
                network's states.
            ResourceLimit: the stack of this thread is too small for a step.
        """
        self._check_open()
        check_stack()
        own = None if snapshot is not None and renewal is None else self.renewal(renewal)
        if snapshot is not None:
            own = renewal_of(snapshot, own)
        assert own is not None
        stream = Stream(self, own)
        if snapshot is not None:
            stream.restore(snapshot)
        return stream

    def renewal(self, text: str | None = None) -> Renewal:
        """Return the renewal that `text` names, or the default if `text` is None.

        The reason for the default is logged once.

        Raises:
            ConfigError: `text` is not a renewal.
        """
        if text is not None:
            found = Renewal.parse(text, known_context(self.card, self.context_length))
        else:
            found, reason = default_renewal(self.card, self.context_length)
            if found.kind != "none":
                self.warn_once(
                    f"streams: renewal {found} takes {found.steps_per_frame:.2f} steps per frame; it is the default "
                    f"because {reason}"
                )
        if found.context_length > self.states.slots and found.kind != "none":
            self.warn_once(
                f"streams: the training context of {found.context_length} frames is longer than the history of "
                f"{self.states.slots} cell states; older cell states are not recalled"
            )
        return found

    def check_horizon(self, horizon: int) -> None:
        """Log a warning, at most once, if a forecast is longer than the forecasts in training."""
        window = self.card.window
        if window is not None and horizon > window.horizon:
            self.warn_once(
                f"forecast: the horizon is longer than the {window.horizon} frames in training; errors may grow quickly"
            )

    def warn_once(self, text: str) -> None:
        """Log a warning unless it was logged before."""
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)

    def streams(
        self,
        *,
        renewal: str | None = None,
        max_streams: int = 32,
        max_wait_ms: float = 2.0,
        queue_length: int = 4,
        policy: "Policy" = "block",
        on_bad_output: "OnBadOutput" = "raise",
        memory_limit_bytes: int | None = None,
    ) -> "Streams":
        """Return an object that opens many streams, steps them together, and may be used by several threads.

        Args:
            renewal: default renewal of the streams, as in `stream`. `Streams` describes the other arguments.

        Raises:
            ConfigError: an argument is invalid.
            ResourceLimit: `memory_limit_bytes` is too small for one stream; or no thread can be started; or the stack
                of a new thread is too small for a step.
            StreamError: the predictor was closed.
        """
        from e3d_deploy.runtime.streams.streams import (
            Streams,
        )  # imported here because a plain stream needs no scheduler

        self._check_open()
        check_stack(starts_thread=True)
        streams = Streams(
            self.backend,
            self.config,
            self.owner,
            states=self.states,
            renewal=self.renewal(renewal),
            on_horizon=self.check_horizon,
            max_streams=max_streams,
            max_wait_ms=max_wait_ms,
            queue_length=queue_length,
            policy=policy,
            on_bad_output=on_bad_output,
            memory_limit_bytes=memory_limit_bytes,
        )
        self._schedulers.add(streams.scheduler)
        try:
            self._check_open()  # Another thread may have closed the predictor before the scheduler was registered.
        except StreamError:
            streams.close()
            raise
        return streams

    def _check_open(self) -> None:
        check_usable(self.pid)
        if self.closed:
            raise StreamError("predictor: was closed; load the bundle again")

    def close(self, timeout_ms: float | None = None) -> None:
        """Close all streams and free the backend once the steps in progress have finished.

        Closing the predictor again does nothing. If a finalizer closes the predictor during a call in the same thread,
        that call raises StreamError when it next uses the backend.

        Args:
            timeout_ms: maximum time to wait for calls in other threads (ms); None waits without a limit.

        Raises:
            ConfigError: `timeout_ms` is not a finite number of 0 or more.
            StreamError: a call in another thread did not finish in time. The predictor accepts no more calls; call
                `close` again to free the backend.
        """
        timeout = Timeout(timeout_ms)
        self.closed = True
        if os.getpid() != self.pid:
            return  # In a forked process, the threads that hold the predictor's locks do not exist.
        for scheduler in listed(lambda: self._schedulers):
            scheduler.close(timeout.left_ms)
        self._wait(timeout)
        self.backend.close()

    def _wait(self, timeout: Timeout) -> None:
        """Wait for calls to plain streams in other threads, unless this thread is itself inside a step.

        Inside a step this thread holds the backend's lock, and the other threads may be waiting for that lock.
        """
        if in_backend():
            return
        for stream, thread in list(self.calls.items()):
            if thread != threading.get_ident():
                stream.wait_for_call(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("Predictor: cannot be pickled or copied; give the other process the path, and load it there")


@dataclass(frozen=True, eq=False)
class StreamState:
    """Everything that a stream stores between calls.

    Each call replaces the whole StreamState in one assignment. A call that is interrupted before the assignment leaves
    the old StreamState in place.
    """

    aged: Aged
    """States of the stream; with `replay`, the state that the last forecast computed from `frames`, if any."""
    frames: tuple[Any, ...] = ()
    """Pictures that the next forecast replays, oldest first; empty unless the renewal is `replay`."""
    clip: NDArray[np.float32] | None = None
    """Forecast that the clip graph computed from `frames`, [horizon, C, H, W]; None until a forecast runs the graph."""


class Stream:
    """Stream of one video, opened by `Predictor.stream`; it contains only the state of the video.

    Only one thread may use a stream at a time; `Predictor.streams` opens streams that several threads may share. After
    Ctrl-C the stream is in the state after its last good picture. Every call raises StreamError

    - if the predictor was closed;
    - if another call to the same stream is in progress in another thread;
    - if a finalizer or a signal handler makes the call during another call to the same stream.
    """

    def __init__(self, predictor: Predictor, renewal: Renewal) -> None:
        self.predictor, self.config = predictor, predictor.config
        self.backend = predictor.backend
        self._lock = threading.Lock()
        self._batcher = Batcher(self.backend, self.config, shares=False)
        self._now = StreamState(Aged(renewal))

    @property
    def renewal(self) -> str:
        """Renewal of the stream, such as `refresh:2`."""
        return str(self._now.aged.renewal)

    @property
    def pushed(self) -> int:
        """Number of pictures that the stream has seen."""
        return self._now.aged.pushed

    @property
    def age(self) -> int:
        """Age of the state that makes the next forecast (number of pictures)."""
        aged = self._now.aged
        return aged.renewal.age(aged.pushed)

    @property
    def prediction(self) -> NDArray[np.float32] | None:
        """Prediction of the next frame, [1, C, H, W], read-only.

        None before the first picture; with `replay` also after each picture until the next forecast.
        """
        if (prediction := self._now.aged.prediction) is None:
            return None
        view = prediction.view()
        view.flags.writeable = False
        return view

    def reset(self) -> None:
        """Return to the state before the first picture."""
        self._exclusively(self._reset)

    def _reset(self) -> None:
        self._now = StreamState(Aged(self._now.aged.renewal))

    def push(self, picture: Any) -> None:
        """Advance the stream by the next picture, [H, W, C], uint8 or float in [0, 1].

        After an error the stream is in the state after its last good picture.

        Args:
            picture: a NumPy array, or an array of another library that supports DLPack. A uint8 array may be in the
                memory of the GPU that the backend runs on.

        Raises:
            ShapeError: the picture has an unexpected size or type; or contains values that are masked, not finite or
                outside [0, 1]; or is on a GPU from which the backend cannot read it.
            ResourceLimit: there is not enough memory.
            StreamError: the prediction is not finite.
        """
        self._exclusively(self._push, picture)

    def _push(self, picture: Any) -> None:
        seen = pictures.to_array(picture, self.config, gpu=self.backend.device is not None)
        now, aged = self._now, self._now.aged
        if aged.renewal.kind == "replay":
            kept = np.array(seen) if isinstance(seen, np.ndarray) else self._keep(seen)
            frames = (*now.frames, kept)[-aged.renewal.context_length :]
            self._now = StreamState(Aged(aged.renewal, pushed=aged.pushed + 1), frames)
            return
        if aged.renewal.states > 1 and not isinstance(seen, np.ndarray):
            seen = self._keep(seen)
        [following] = advance(self._batcher, [aged], [seen])
        self._now = StreamState(following)

    def _keep(self, picture: Any) -> Any:
        """Return a copy of a picture on the GPU, because the caller may overwrite the original."""
        device = self.backend.device
        assert device is not None, "`to_array` refuses pictures on a GPU that the backend cannot read"
        return device.keep(picture)

    def _on_host(self, picture: Any) -> NDArray[Any]:
        if isinstance(picture, np.ndarray):
            return picture
        device = self.backend.device
        assert device is not None, "`to_array` refuses pictures on a GPU that the backend cannot read"
        return device.fetch(picture)

    def forecast(
        self, horizon: int, out: NDArray[np.float32] | None = None, *, timeout_ms: float | None = None
    ) -> NDArray[np.float32]:
        """Forecast the next frames, float32 [horizon, C, H, W]; the stream itself does not advance.

        Values are not clipped, so they may be slightly outside [0, 1].

        Args:
            out: array that receives the frames and is returned; after an error it may be partly written. None
                allocates a new array.
            timeout_ms: time limit (ms), checked before each step; None sets no limit.

        Raises:
            ConfigError: `horizon` is below 1, or `timeout_ms` is not a finite number of 0 or more.
            ShapeError: `out` is not a writable float32 array of this shape.
            ResourceLimit: there is not enough memory.
            StreamError: no picture was pushed yet, a prediction is not finite, or the time limit was exceeded.
        """
        return self._exclusively(self._forecast, horizon, np.float32, out, Timeout(timeout_ms))

    def predict(
        self, horizon: int, out: NDArray[np.uint8] | None = None, *, timeout_ms: float | None = None
    ) -> NDArray[np.uint8]:
        """Predict the next pictures, uint8 [horizon, H, W, C]; the stream itself does not advance.

        Arguments and errors are those of `forecast`; `out` is a uint8 array.
        """
        return self._exclusively(self._forecast, horizon, np.uint8, out, Timeout(timeout_ms))

    def snapshot(self) -> Snapshot:
        """Return a snapshot of the stream; later pictures do not change the snapshot."""
        return self._exclusively(self._snapshot)

    def _snapshot(self) -> Snapshot:
        now, aged = self._now, self._now.aged
        replays = aged.renewal.kind == "replay"
        to_arrays, alone = self.backend.to_arrays, self._batcher.alone
        places = () if replays else aged.places or (self._batcher.place(),)
        return Snapshot(
            self.predictor.identity,
            tuple(freeze_owned(to_arrays(alone(place))) for place in places),
            None if replays else copy(aged.prediction),
            aged.pushed,
            str(aged.renewal),
            aged.renewal.context_length,
            pictures.stack(map(self._on_host, now.frames), self.config) if replays else None,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot; the stream's own state is discarded.

        Raises:
            StreamError: the snapshot belongs to another network, or its renewal differs from the stream's renewal.
            SnapshotError: the snapshot is damaged; or the names, shapes or types of its states differ from those of the
                network's states.
        """
        self._exclusively(self._restore, snapshot)

    def _restore(self, snapshot: Snapshot) -> None:
        self.predictor.owner.check(snapshot)
        own = self._now.aged.renewal
        renewal_of(snapshot, own)
        states = [self.backend.from_arrays(arrays) for arrays in snapshot.states if snapshot.pushed]
        places = tuple(Place(self._batcher.batch(state)) for state in states)
        frames = () if snapshot.frames is None else tuple(frame[None] for frame in snapshot.frames)
        self._now = StreamState(Aged(own, places, snapshot.pushed, copy(snapshot.prediction)), frames)

    def _forecast(self, horizon: int, dtype: "type[Any]", out: NDArray[Any] | None, timeout: Timeout) -> NDArray[Any]:
        result = pictures.forecast_array(horizon, self.config, dtype, out)
        if self._now.aged.pushed == 0:
            raise StreamError("stream: no picture was pushed yet; push at least one picture before a forecast")
        self.predictor.check_horizon(len(result))
        if not self._now.aged.places:
            if (clip := self._clip(len(result))) is not None:
                for frame, place in zip(clip, result, strict=True):
                    pictures.write_frame(frame, place)
                return result
            self._replay(timeout)
        aged = self._now.aged
        assert aged.prediction is not None
        prediction, state = aged.prediction, self._batcher.alone(aged.places[0])
        for number in range(len(result)):
            if number > 0:
                prediction, state = self._step(prediction, state, timeout)
                if not np.isfinite(prediction).all():
                    raise StreamError(
                        f"forecast frame {number}: the prediction is not finite; use a shorter horizon, or export with "
                        "another precision"
                    )
            pictures.write_frame(prediction[0], result[number])
        return result

    def _clip(self, horizon: int) -> NDArray[np.float32] | None:
        """Run the clip graph on the pictures of a `replay` stream and return its forecast.

        Returns:
            The forecast, [horizon, C, H, W]; None if there is no clip graph, or if the graph takes a different number
            of pictures or forecasts a different number of frames.
        """
        predictor, now = self.predictor, self._now
        lengths = (len(now.frames), horizon)
        if not predictor.has_clip or lengths != (predictor.context_length, predictor.horizon):
            return None
        if now.clip is None:
            seen = np.stack([as_frames(self._on_host(one), self.config)[0] for one in now.frames])
            forecast, _ = self.backend.clip(seen[None])
            if not np.isfinite(forecast).all():
                raise StreamError(
                    "forecast: a prediction is not finite; use a shorter horizon, or export with another precision"
                )
            self._now = StreamState(replace(now.aged, prediction=forecast[:, 0]), now.frames, forecast[0])
        return self._now.clip

    def _replay(self, timeout: Timeout) -> None:
        """Step through the pictures of a `replay` stream, and store the state and the prediction after them."""
        now, aged = self._now, self._now.aged
        state, prediction = self.backend.initial_state(1), None
        for number, seen in enumerate(now.frames, aged.pushed - len(now.frames)):
            prediction, state = self._step(seen, state, timeout)
            if not np.isfinite(prediction).all():
                raise StreamError(
                    f"frame {number}: the prediction is not finite; check the weights, or export with another precision"
                )
        made = replace(aged, places=(Place(self._batcher.batch(state)),), prediction=prediction)
        self._now = replace(now, aged=made)

    def _step(self, seen: Frame, state: State, timeout: Timeout) -> tuple[NDArray[np.float32], State]:
        if timeout.over:
            raise timeout.error("forecast")
        self._check_usable()
        return self.backend.step(seen, state)

    def _exclusively(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the function of a call; until it returns, every other call to the stream raises StreamError.

        Python runs no signal handler between taking a lock and entering its `with` block, nor within a plain
        assignment. Ctrl-C therefore never leaves the stream locked or `calls` half changed.
        """
        self._check_usable()
        calls = self.predictor.calls
        if self._lock.locked():
            if calls.get(self) == threading.get_ident():
                raise StreamError(
                    "stream: a finalizer or a signal handler called it during another call in the same thread; call it "
                    "after that call returns"
                )
            raise StreamError(
                "stream: another thread is using it; open one stream per thread, or use predictor.streams(), whose "
                "streams threads may share"
            )
        with self._lock:
            calls[self] = threading.get_ident()
            try:
                # Check again, because `close` and interpreter shutdown wait only for calls that are registered by then.
                self._check_usable()
                with translated_errors():
                    return work(*args, **kwargs)
            finally:
                del calls[self]

    def _check_usable(self) -> None:
        check_usable(self.predictor.pid)
        if self.predictor.closed:
            raise StreamError("stream: its predictor was closed; load the bundle again")

    def wait_for_call(self, timeout: Timeout) -> None:
        """Wait until the call in progress in another thread returns.

        Raises:
            StreamError: the call did not finish within `timeout`.
        """
        left = timeout.left()
        if not self._lock.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX)):
            raise timeout.error("close")
        self._lock.release()

    def __reduce__(self) -> NoReturn:
        raise TypeError("Stream: cannot be pickled or copied; take a snapshot(), and open a stream from the snapshot")
