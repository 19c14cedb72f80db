"""A loaded bundle that streams share, and streams of one video."""

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.card import Card
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BundleError, StreamError
from e3d_deploy.runtime import pictures
from e3d_deploy.runtime.aged import Aged, advance, plain_errors
from e3d_deploy.runtime.backends.host import as_frames
from e3d_deploy.runtime.backends.protocol import Backend, Frame, State
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.batching import Batcher, Member
from e3d_deploy.runtime.renewal import Renewal, default_renewal, known_context
from e3d_deploy.runtime.snapshot import Owner, Snapshot, renewal_of

if TYPE_CHECKING:
    from e3d_deploy.runtime.streams.queues import Policy
    from e3d_deploy.runtime.streams.scheduler import OnBadOutput, Scheduler
    from e3d_deploy.runtime.streams.streams import Streams

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
        self.owner = Owner(identity=identity, earlier=earlier, states=states)
        self.context_length, self.horizon, self.card = context_length, horizon, card or Card()
        self.has_clip = has_clip
        self.closed, self._lock = False, threading.Lock()
        self._schedulers: WeakSet[Scheduler] = WeakSet()
        self._said: set[str] = set()

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
        """
        self._check_open()
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
        with self._lock:
            known = text in self._said
            self._said.add(text)
        if not known:
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

        own = self.renewal(renewal)
        with self._lock:
            self._check_open()
            streams = Streams(
                self.backend,
                self.config,
                self.owner,
                states=self.states,
                renewal=own,
                on_horizon=self.check_horizon,
                max_streams=max_streams,
                max_wait_ms=max_wait_ms,
                queue_length=queue_length,
                policy=policy,
                on_bad_output=on_bad_output,
                memory_limit_bytes=memory_limit_bytes,
            )
            self._schedulers.add(streams.scheduler)
        return streams

    def _check_open(self) -> None:
        if self.closed:
            raise StreamError("predictor: was closed; load the bundle again")

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

    def __init__(self, predictor: Predictor, renewal: Renewal) -> None:
        self.predictor, self.config = predictor, predictor.config
        self.backend = predictor.backend
        self._lock = threading.Lock()
        self._batcher = Batcher(self.backend, self.config, shares=False)
        self._aged = Aged(renewal)
        """Its states; with `replay` the one that the last forecast made of the pictures."""
        self._frames: deque[Any] = deque(maxlen=renewal.context_length)
        """Last pictures of a stream that replays them."""
        self._prediction: NDArray[np.float32] | None = None
        self._clip: NDArray[np.float32] | None = None
        """Forecast of the clip graph from these pictures, [horizon, C, H, W]."""

    @property
    def renewal(self) -> str:
        """Renewal of the stream, such as `refresh:2`."""
        return str(self._aged.renewal)

    @property
    def pushed(self) -> int:
        """Number of pictures seen."""
        return self._aged.pushed

    @property
    def age(self) -> int:
        """Number of pictures that the state which answers has seen."""
        return self._aged.renewal.age(self._aged.pushed)

    @property
    def prediction(self) -> NDArray[np.float32] | None:
        """Prediction of the next frame, [1, C, H, W]; None before the first picture, and with `replay` until a forecast
        was asked for."""
        return self._prediction

    def reset(self) -> None:
        """Forget the video."""
        with self._alone():
            self._aged, self._prediction, self._clip = Aged(self._aged.renewal), None, None
            self._frames.clear()

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
        seen = pictures.take(picture, self.config, gpu=self.backend.device is not None)
        with self._alone():
            if self._aged.renewal.kind == "replay":
                self._frames.append(np.array(seen) if isinstance(seen, np.ndarray) else self._keep(seen))
                self._aged.members, self._prediction, self._clip = [], None, None
                self._aged.pushed += 1
                return
            if self._aged.renewal.states > 1 and not isinstance(seen, np.ndarray):
                seen = self._keep(seen)
            [self._prediction] = advance(self._batcher, [self._aged], [seen])

    def _keep(self, picture: Any) -> Any:
        """Copy a picture on the GPU, which its owner may overwrite."""
        device = self.backend.device
        assert device is not None, "`take` refused the picture"
        with plain_errors():
            return device.keep(picture)

    def _on_host(self, picture: Any) -> NDArray[Any]:
        if isinstance(picture, np.ndarray):
            return picture
        device = self.backend.device
        assert device is not None, "`take` refused the picture"
        return device.fetch(picture)

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
        """Take a snapshot of the stream; later pictures do not change it."""
        with self._alone():
            replays = self._aged.renewal.kind == "replay"
            to_arrays, alone = self.backend.to_arrays, self._batcher.alone
            members = [] if replays else self._aged.members or [self._batcher.member()]
            return Snapshot(
                self.predictor.identity,
                tuple(to_arrays(alone(member)) for member in members),
                None if replays else copy(self._prediction),
                self._aged.pushed,
                str(self._aged.renewal),
                self._aged.renewal.context_length,
                pictures.stack(map(self._on_host, self._frames), self.config) if replays else None,
            )

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot.

        Raises:
            StreamError: it is of another network, or its renewal is not that of the stream.
            SnapshotError: it is damaged, or its states have other names, shapes or types.
        """
        self.predictor.owner.check(snapshot)
        renewal_of(snapshot, self._aged.renewal)
        with self._alone():
            states = [self.backend.from_arrays(arrays) for arrays in snapshot.states if snapshot.pushed]
            self._aged.members = [Member(self._batcher.batch(state)) for state in states]
            self._frames.clear()
            self._frames.extend(frame[None] for frame in (() if snapshot.frames is None else snapshot.frames))
            self._prediction, self._clip, self._aged.pushed = copy(snapshot.prediction), None, snapshot.pushed

    def _roll(self, result: NDArray[Any]) -> NDArray[Any]:
        with self._alone():
            if self._aged.pushed == 0:
                raise StreamError("nothing was pushed yet; push at least one picture before predicting")
            self.predictor.check_horizon(len(result))
            if not self._aged.members:
                if self._forecast_clip(len(result)):
                    assert self._clip is not None
                    for frame, place in zip(self._clip, result, strict=True):
                        pictures.put(frame, place)
                    return result
                self._replay()
            assert self._prediction is not None
            prediction, state = self._prediction, self._batcher.alone(self._aged.members[0])
            for number in range(len(result)):
                if number > 0:
                    prediction, state = self._step(prediction, state)
                    if not np.isfinite(prediction).all():
                        raise StreamError(
                            f"forecast frame {number}: is not finite; forecast less far, check the precision"
                        )
                pictures.put(prediction[0], result[number])
        return result

    def _forecast_clip(self, horizon: int) -> bool:
        """Forecast the pictures that were kept by the clip graph; return False if it is not made for their number."""
        predictor = self.predictor
        lengths = (len(self._frames), horizon)
        if not predictor.has_clip or lengths != (predictor.context_length, predictor.horizon):
            return False
        if self._clip is None:
            seen = np.stack([as_frames(self._on_host(one), self.config)[0] for one in self._frames])
            with plain_errors():
                forecast, _ = self.backend.clip(seen[None])
            if not np.isfinite(forecast).all():
                raise StreamError("forecast: is not finite; forecast less far, check the precision")
            self._clip, self._prediction = forecast[0], forecast[:, 0]
        return True

    def _replay(self) -> None:
        """Make a state of the pictures that were kept."""
        state, prediction = self.backend.initial_state(1), None
        for number, seen in enumerate(self._frames, self._aged.pushed - len(self._frames)):
            prediction, state = self._step(seen, state)
            if not np.isfinite(prediction).all():
                raise StreamError(f"frame {number}: the prediction is not finite; check the precision")
        self._aged.members, self._prediction = [Member(self._batcher.batch(state))], prediction

    def _step(self, seen: Frame, state: State) -> tuple[NDArray[np.float32], State]:
        with plain_errors():
            return self.backend.step(seen, state)

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
