"""A loaded bundle that streams share, and streams of one video."""

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
from e3d_deploy.runtime import pictures
from e3d_deploy.runtime.aged import Aged, advance
from e3d_deploy.runtime.arguments import Timeout, check_path
from e3d_deploy.runtime.backends.host import as_frames
from e3d_deploy.runtime.backends.protocol import Backend, Frame, State
from e3d_deploy.runtime.backends.registry import check_backend, check_threads, open_backend
from e3d_deploy.runtime.batching import Batcher, Place
from e3d_deploy.runtime.faults import plain_errors
from e3d_deploy.runtime.process import check_stack, check_usable, in_backend, listed, wait_at_exit
from e3d_deploy.runtime.renewal import Renewal, default_renewal, known_context
from e3d_deploy.runtime.snapshot import Owner, Snapshot, renewal_of, taken_over

if TYPE_CHECKING:
    from e3d_deploy.runtime.streams.queues import Policy
    from e3d_deploy.runtime.streams.scheduler import OnBadOutput, Scheduler
    from e3d_deploy.runtime.streams.streams import Streams

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@plain_errors()
def load(path: str | Path, backend: str | Backend = "auto", *, threads: int | None = None) -> "Predictor":
    """Load the bundle in `path` on a backend.

    Args:
        backend: a name that `open_backend` knows, or a backend of your own. `auto` takes the fastest that is
            installed and gives what PyTorch recorded in the first steps of the bundle's reference clip; `choose`
            says how, and `e3d doctor --bundle` which and why.
        threads: threads within a step; None leaves it to the library.

    Raises:
        BundleError: the bundle is damaged, incomplete or too new.
        BackendUnavailable: the backend's library is not installed, or with `auto` none is that agrees.
        ConfigError: an invalid path, an unknown backend, or an invalid number of threads.
        ResourceLimit: out of memory.
    """
    path, threads = check_path("path", path), check_threads(threads)
    check_stack()
    if not isinstance(backend, str):
        check_backend(backend)
    bundle = Bundle.open(path)
    if bundle.batch != 1:
        raise BundleError(f"{path}: its graphs take {bundle.batch} streams at once; export with --batch 1 for streams")
    if backend == "auto":
        from e3d_deploy.runtime.choose import choose  # looks at what is installed, which takes a third of an import

        backend, _ = choose(bundle, threads=threads)
    elif isinstance(backend, str):
        backend = open_backend(bundle, backend, threads=threads)
    return Predictor.of_bundle(bundle, backend)


class Predictor:
    """A network on a backend; the streams that it opens share both.

    Args:
        identity: identity of the network, so that a snapshot does not end up elsewhere.
        earlier: identities that older versions gave to snapshots of the same network.
        states: states of a stream; None for those of `config`, which snapshots are not compared with.
        context_length, horizon: how many frames one usually gives and wants; streams take any.
        card: facts about the model; the default renewal of streams follows from them.
        has_clip: the backend has a clip graph for these two lengths.
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
        self._said: set[str] = set()
        self.calls: dict[Stream, int] = {}
        """Streams that are in a call, each with its thread."""
        this = ref(self)
        wait_at_exit(self, lambda: None if (predictor := this()) is None else predictor._wait(Timeout(None)))

    @classmethod
    def of_bundle(cls, bundle: Bundle, backend: Backend) -> Self:
        """Return a predictor for a bundle that runs on an opened backend."""
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
        """Open a new video, or one that goes on from a snapshot.

        Args:
            renewal: `none`, `refresh:M` or `replay`, see docs/streams.md; None for that of the snapshot, or the
                default, which follows from the measured decay of the model.

        Raises:
            ConfigError: there is no such renewal.
            StreamError: the snapshot is of another network or has another renewal, or this was closed.
            SnapshotError: its states have other names, shapes or types.
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
        """Return the renewal that a text names, or the default; the reason for the default is logged once.

        Raises:
            ConfigError: there is no such renewal.
        """
        if text is not None:
            found = Renewal.parse(text, known_context(self.card, self.context_length))
        else:
            found, reason = default_renewal(self.card, self.context_length)
            if found.kind != "none":
                self.say_once(f"streams: renewal {found}, {found.steps_per_frame:.2f} steps a frame, as {reason}")
        if found.context_length > self.states.slots and found.kind != "none":
            self.say_once(
                f"streams: the context of training, {found.context_length} frames, is longer than the history of "
                f"{self.states.slots} entries; what is older is not recalled"
            )
        return found

    def check_horizon(self, horizon: int) -> None:
        """Log once if a forecast is longer than those of training."""
        window = self.card.window
        if window is not None and horizon > window.horizon:
            self.say_once(f"forecast: got a horizon above {window.horizon}, that of training; errors may grow quickly")

    def say_once(self, text: str) -> None:
        """Log a warning unless it was logged before."""
        if text not in self._said:
            self._said.add(text)
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
        """Open many videos that are stepped together, for several threads; see `Streams` for the other arguments.

        Args:
            renewal: default of the streams, as `stream` takes it.

        Raises:
            ConfigError, ResourceLimit: as `Streams`.
            StreamError: this was closed.
        """
        from e3d_deploy.runtime.streams.streams import Streams  # a plain stream needs no scheduler

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
            self._check_open()  # it may have been closed by another thread meanwhile
        except StreamError:
            streams.close()
            raise
        return streams

    def _check_open(self) -> None:
        check_usable(self.pid)
        if self.closed:
            raise StreamError("predictor: was closed; load the bundle again")

    def close(self, timeout_ms: float | None = None) -> None:
        """Free what the backend holds, after the steps that are on their way; streams cannot be used after.

        It can be closed twice. In the middle of a call of the same thread, as garbage collection may do it, the rest
        of that call fails.

        Args:
            timeout_ms: time to wait for calls of other threads; None waits for ever.

        Raises:
            ConfigError: not a finite number of 0 or more.
            StreamError: the time is over. Nothing can be asked any more; close it again to free the backend.
        """
        timeout = Timeout(timeout_ms)
        self.closed = True
        if os.getpid() != self.pid:
            return  # a copy by fork: the threads that hold its locks are not here
        for scheduler in listed(lambda: self._schedulers):
            scheduler.close(timeout.left_ms)
        self._wait(timeout)
        self.backend.close()

    def _wait(self, timeout: Timeout) -> None:
        """Wait for the calls of plain streams that other threads are in, unless they may wait for this one."""
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
class Moment:
    """All that a stream knows after a picture. A call replaces it as a whole or, whatever interrupts it, not at all."""

    aged: Aged
    """Its states; with `replay` the one that the last forecast made of the pictures."""
    frames: tuple[Any, ...] = ()
    """Last pictures of a stream that replays them, the oldest first."""
    clip: NDArray[np.float32] | None = None
    """Forecast of the clip graph from these pictures, [horizon, C, H, W]."""


class Stream:
    """One video: what was seen of it, and nothing else. One thread at a time; for several see `Predictor.streams`.

    Each call raises StreamError when the predictor was closed, when another thread is in the same stream, or when this
    one is, as in a finalizer or a signal handler. After Ctrl-C the stream is at its last good picture.
    """

    def __init__(self, predictor: Predictor, renewal: Renewal) -> None:
        self.predictor, self.config = predictor, predictor.config
        self.backend = predictor.backend
        self._lock = threading.Lock()
        self._batcher = Batcher(self.backend, self.config, shares=False)
        self._now = Moment(Aged(renewal))

    @property
    def renewal(self) -> str:
        """Renewal of the stream, such as `refresh:2`."""
        return str(self._now.aged.renewal)

    @property
    def pushed(self) -> int:
        """Number of pictures seen."""
        return self._now.aged.pushed

    @property
    def age(self) -> int:
        """Number of pictures that the state which answers has seen."""
        aged = self._now.aged
        return aged.renewal.age(aged.pushed)

    @property
    def prediction(self) -> NDArray[np.float32] | None:
        """Prediction of the next frame, [1, C, H, W], read-only; None before the first picture, and with `replay` until
        a forecast was asked for."""
        if (prediction := self._now.aged.prediction) is None:
            return None
        view = prediction.view()
        view.flags.writeable = False
        return view

    def reset(self) -> None:
        """Forget the video."""
        self._alone(self._reset)

    def _reset(self) -> None:
        self._now = Moment(Aged(self._now.aged.renewal))

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
        self._alone(self._push, picture)

    def _push(self, picture: Any) -> None:
        seen = pictures.take(picture, self.config, gpu=self.backend.device is not None)
        now, aged = self._now, self._now.aged
        if aged.renewal.kind == "replay":
            kept = np.array(seen) if isinstance(seen, np.ndarray) else self._keep(seen)
            frames = (*now.frames, kept)[-aged.renewal.context_length :]
            self._now = Moment(Aged(aged.renewal, pushed=aged.pushed + 1), frames)
            return
        if aged.renewal.states > 1 and not isinstance(seen, np.ndarray):
            seen = self._keep(seen)
        [following] = advance(self._batcher, [aged], [seen])
        self._now = Moment(following)

    def _keep(self, picture: Any) -> Any:
        """Copy a picture on the GPU, which its owner may overwrite."""
        device = self.backend.device
        assert device is not None, "`take` refused the picture"
        return device.keep(picture)

    def _on_host(self, picture: Any) -> NDArray[Any]:
        if isinstance(picture, np.ndarray):
            return picture
        device = self.backend.device
        assert device is not None, "`take` refused the picture"
        return device.fetch(picture)

    def forecast(
        self, horizon: int, out: NDArray[np.float32] | None = None, *, timeout_ms: float | None = None
    ) -> NDArray[np.float32]:
        """Forecast the next frames as computed, not clipped, float32 [horizon, C, H, W]; the stream does not move.

        Args:
            out: where to write them, returned then; after an error it may be written in part.
            timeout_ms: time to make them in, looked at between steps; None sets no limit.

        Raises:
            ConfigError: a horizon below 1, or a time that is not a finite number of 0 or more.
            ShapeError: `out` is no such array.
            ResourceLimit: out of memory.
            StreamError: nothing was pushed yet, the network's answer is not finite, or the time is over.
        """
        return self._alone(self._forecast, horizon, np.float32, out, Timeout(timeout_ms))

    def predict(
        self, horizon: int, out: NDArray[np.uint8] | None = None, *, timeout_ms: float | None = None
    ) -> NDArray[np.uint8]:
        """Predict the next pictures, uint8 [horizon, H, W, C]; the stream does not move.

        Args, Raises: as `forecast`.
        """
        return self._alone(self._forecast, horizon, np.uint8, out, Timeout(timeout_ms))

    def snapshot(self) -> Snapshot:
        """Take a snapshot of the stream; later pictures do not change it."""
        return self._alone(self._snapshot)

    def _snapshot(self) -> Snapshot:
        now, aged = self._now, self._now.aged
        replays = aged.renewal.kind == "replay"
        to_arrays, alone = self.backend.to_arrays, self._batcher.alone
        places = () if replays else aged.places or (self._batcher.place(),)
        return Snapshot(
            self.predictor.identity,
            tuple(taken_over(to_arrays(alone(place))) for place in places),
            None if replays else copy(aged.prediction),
            aged.pushed,
            str(aged.renewal),
            aged.renewal.context_length,
            pictures.stack(map(self._on_host, now.frames), self.config) if replays else None,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot.

        Raises:
            StreamError: it is of another network, or its renewal is not that of the stream.
            SnapshotError: it is damaged, or its states have other names, shapes or types.
        """
        self._alone(self._restore, snapshot)

    def _restore(self, snapshot: Snapshot) -> None:
        self.predictor.owner.check(snapshot)
        own = self._now.aged.renewal
        renewal_of(snapshot, own)
        states = [self.backend.from_arrays(arrays) for arrays in snapshot.states if snapshot.pushed]
        places = tuple(Place(self._batcher.batch(state)) for state in states)
        frames = () if snapshot.frames is None else tuple(frame[None] for frame in snapshot.frames)
        self._now = Moment(Aged(own, places, snapshot.pushed, copy(snapshot.prediction)), frames)

    def _forecast(self, horizon: int, dtype: "type[Any]", out: NDArray[Any] | None, timeout: Timeout) -> NDArray[Any]:
        result = pictures.forecast_array(horizon, self.config, dtype, out)
        if self._now.aged.pushed == 0:
            raise StreamError("nothing was pushed yet; push at least one picture before predicting")
        self.predictor.check_horizon(len(result))
        if not self._now.aged.places:
            if (clip := self._clip(len(result))) is not None:
                for frame, place in zip(clip, result, strict=True):
                    pictures.put(frame, place)
                return result
            self._replay(timeout)
        aged = self._now.aged
        assert aged.prediction is not None
        prediction, state = aged.prediction, self._batcher.alone(aged.places[0])
        for number in range(len(result)):
            if number > 0:
                prediction, state = self._step(prediction, state, timeout)
                if not np.isfinite(prediction).all():
                    raise StreamError(f"forecast frame {number}: is not finite; forecast less far, check the precision")
            pictures.put(prediction[0], result[number])
        return result

    def _clip(self, horizon: int) -> NDArray[np.float32] | None:
        """Forecast the pictures that were kept by the clip graph; return None if it is not made for their number."""
        predictor, now = self.predictor, self._now
        lengths = (len(now.frames), horizon)
        if not predictor.has_clip or lengths != (predictor.context_length, predictor.horizon):
            return None
        if now.clip is None:
            seen = np.stack([as_frames(self._on_host(one), self.config)[0] for one in now.frames])
            forecast, _ = self.backend.clip(seen[None])
            if not np.isfinite(forecast).all():
                raise StreamError("forecast: is not finite; forecast less far, check the precision")
            self._now = Moment(replace(now.aged, prediction=forecast[:, 0]), now.frames, forecast[0])
        return self._now.clip

    def _replay(self, timeout: Timeout) -> None:
        """Make a state of the pictures that were kept."""
        now, aged = self._now, self._now.aged
        state, prediction = self.backend.initial_state(1), None
        for number, seen in enumerate(now.frames, aged.pushed - len(now.frames)):
            prediction, state = self._step(seen, state, timeout)
            if not np.isfinite(prediction).all():
                raise StreamError(f"frame {number}: the prediction is not finite; check the precision")
        made = replace(aged, places=(Place(self._batcher.batch(state)),), prediction=prediction)
        self._now = replace(now, aged=made)

    def _step(self, seen: Frame, state: State, timeout: Timeout) -> tuple[NDArray[np.float32], State]:
        if timeout.over:
            raise timeout.error("forecast")
        self._check_usable()
        return self.backend.step(seen, state)

    def _alone(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the work of a call, with the stream to itself.

        A signal handler runs neither between a lock and its block nor in a plain assignment, so that Ctrl-C finds
        either all of this undone or nothing.
        """
        self._check_usable()
        calls = self.predictor.calls
        if self._lock.locked():
            if calls.get(self) == threading.get_ident():
                raise StreamError(
                    "stream: was called inside its own call, by a finalizer or signal handler; call it later"
                )
            raise StreamError(
                "stream: another thread is in it; give each its own, or take predictor.streams(), which several may use"
            )
        with self._lock:
            calls[self] = threading.get_ident()
            try:
                self._check_usable()  # who closes it, and the end of Python, wait for calls that are among them
                with plain_errors():
                    return work(*args, **kwargs)
            finally:
                del calls[self]

    def _check_usable(self) -> None:
        check_usable(self.predictor.pid)
        if self.predictor.closed:
            raise StreamError("stream: its predictor was closed; load the bundle again")

    def wait_for_call(self, timeout: Timeout) -> None:
        """Wait until another thread has left the stream.

        Raises:
            StreamError: the time is over.
        """
        left = timeout.left()
        if not self._lock.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX)):
            raise timeout.error("close")
        self._lock.release()

    def __reduce__(self) -> NoReturn:
        raise TypeError("Stream: cannot be pickled or copied; take a snapshot(), and open a stream from it elsewhere")
