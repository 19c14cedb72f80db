"""Streams of many videos that share one backend and are stepped together."""

import time
from collections.abc import Callable, Collection, Coroutine, Generator
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import ResourceLimit, StreamError
from e3d_deploy.runtime import pictures, process
from e3d_deploy.runtime.arguments import Timeout, check_count, check_ms
from e3d_deploy.runtime.backends.protocol import Backend, step_size
from e3d_deploy.runtime.faults import translated
from e3d_deploy.runtime.renewal import NONE, Renewal
from e3d_deploy.runtime.snapshot import Owner, Snapshot, renewal_of
from e3d_deploy.runtime.streams.queues import Policy, Queues, failed
from e3d_deploy.runtime.streams.requests import Forecast, ScheduledStream
from e3d_deploy.runtime.streams.scheduler import OnBadOutput, Scheduler
from e3d_deploy.runtime.streams.waiting import FOREVER, Answer, awaited


class Streams:
    """Streams that share a backend. One thread steps all streams that are ready, in one call to the backend.

    Any thread may use the object and its streams. Call `close`, or use the object in a `with` block. An object that is
    dropped without being closed closes itself, with a ResourceWarning.

    Args:
        owner: network that snapshots are compared with.
        states: description of a stream's state.
        renewal: renewal of streams that are opened without one.
        on_horizon: function that is called with the horizon of each forecast.
        max_streams: maximum number of open streams.
        max_wait_ms: maximum time that a picture waits for pictures of other streams (ms). Pictures do not wait once all
            streams are ready or while a forecast is in progress; 0 never waits.
        queue_length: maximum number of pictures in the queue of a stream.
        policy: behavior of a push to a full queue. `block` waits for room, `drop-oldest` drops the oldest picture in
            the queue, `drop-newest` drops the pushed picture, `refuse` raises StreamError. For a camera, use
            `drop-oldest` and a queue of 1.
        on_bad_output: handling of a stream whose prediction is not finite. With `raise` the stream fails; with `hold`
            the stream stays in the state before the picture; with `reset` the stream returns to the initial state.
        memory_limit_bytes: maximum memory of the states of all streams (bytes); None sets no limit.

    Raises:
        ConfigError: `policy` or `on_bad_output` is unknown; or a number is invalid; or the backend cannot step a single
            stream.
        ResourceLimit: `memory_limit_bytes` is too small for one stream, or no thread can be started.
    """

    def __init__(
        self,
        backend: Backend,
        config: ModelConfig,
        owner: Owner,
        *,
        states: contract.States,
        renewal: Renewal = NONE,
        on_horizon: Callable[[int], None] = lambda _: None,
        max_streams: int = 32,
        max_wait_ms: float = 2.0,
        queue_length: int = 4,
        policy: Policy = "block",
        on_bad_output: OnBadOutput = "raise",
        memory_limit_bytes: int | None = None,
    ) -> None:
        self.config, self.owner, self.max_streams = config, owner, check_count("max_streams", max_streams)
        self.state_bytes = states.nbytes
        if memory_limit_bytes is not None:
            memory_limit_bytes = check_count("memory_limit_bytes", memory_limit_bytes)
        self.renewal, self.on_horizon, self.memory_limit_bytes = renewal, on_horizon, memory_limit_bytes
        queues = Queues(max_wait_ms=max_wait_ms, queue_length=queue_length, policy=policy)
        self.scheduler = Scheduler(backend, config, queues, on_bad_output)
        if memory_limit_bytes is not None and self.most_bytes(1) > memory_limit_bytes:
            raise ResourceLimit(
                f"memory_limit_bytes: got {memory_limit_bytes}, one stream can take {self.most_bytes(1)} bytes; "
                "raise the limit"
            )
        self.scheduler.start(self)

    def open(self, snapshot: Snapshot | None = None, *, renewal: str | None = None) -> "SlotStream":
        """Open a stream for a new video, or a stream that continues from a snapshot.

        Args:
            renewal: `none`, `refresh:M` or `replay`. None uses the renewal of the snapshot, or without a snapshot the
                default of these streams.

        Raises:
            ConfigError: `renewal` is invalid.
            ResourceLimit: `max_streams` streams are open; or another stream could exceed `memory_limit_bytes`; or there
                is not enough memory for the states of the snapshot.
            StreamError: the snapshot belongs to another network; or its renewal differs from `renewal`; or the streams
                were closed.
            SnapshotError: the snapshot is damaged; or the names, shapes or types of its states differ from those of the
                network's states.
        """
        own = self.renewal if renewal is None else Renewal.parse(renewal, self.renewal.context_length)
        if snapshot is not None:
            own = renewal_of(snapshot, None if renewal is None else own)
        stream = self._add(own)
        try:
            if snapshot is not None:
                stream.restore(snapshot)
        except BaseException:
            stream.close()
            raise
        return stream

    def _add(self, renewal: Renewal) -> "SlotStream":
        """Open a stream for a new video; errors are those of `open`."""
        stream = SlotStream(self, ScheduledStream(renewal))
        if not self.scheduler.queues.add(stream._scheduled, stream, self._fit):
            raise ResourceLimit(self._why_full(renewal))
        return stream

    def most_bytes(self, streams: int) -> int:
        """Return an upper bound on the memory that the states of `streams` streams take (bytes).

        Each stream is assumed to have a forecast in progress. A state and a forecast take one row each. During a step,
        an equal number of rows that are no longer in use may still be in memory. The step also writes one batch, and
        may gather another batch first. The streams usually take a third of this bound. The renewal decides the number
        of states per stream. Pictures in queues, and pictures that `replay` streams store, are not counted.
        """
        return self._bytes(streams * (self.renewal.states + 1))

    def _bytes(self, runners: int) -> int:
        """Return an upper bound on the memory of `runners` states and forecasts, counted together (bytes)."""
        backend = self.scheduler.batcher.backend
        held = 2 * runners * (2 if backend.pads else 1)
        rows = held + 2 * step_size(backend, runners)
        return rows * self.state_bytes

    def _fit(self, streams: Collection[ScheduledStream]) -> bool:
        if len(streams) > self.max_streams:
            return False
        runners = sum(scheduled.renewal.states + 1 for scheduled in streams)
        return self.memory_limit_bytes is None or self._bytes(runners) <= self.memory_limit_bytes

    def _why_full(self, renewal: Renewal) -> str:
        streams = self.scheduler.queues.open_streams()
        if len(streams) >= self.max_streams:
            return f"streams: {len(streams)} are open, which is max_streams; close a stream, or raise max_streams"
        need = self._bytes(sum(scheduled.renewal.states + 1 for scheduled in streams) + renewal.states + 1)
        return (
            f"streams: {len(streams)} are open, and another does not fit into memory_limit_bytes = "
            f"{self.memory_limit_bytes}; close a stream, or raise memory_limit_bytes to {need}"
        )

    def together(self) -> AbstractContextManager[None]:
        """Return a block whose pictures and forecasts are stepped together once it ends, without waiting for others.

        Inside, push pictures and request forecasts with `predict_async` and `forecast_async`. A call that waits for
        a step, such as `predict`, is held up by the block itself. So is the step of any other stream, for at most
        0.1 s. The block does not delay steps while a forecast is in progress.

        Raises:
            StreamError: the streams were closed.
        """
        return self.scheduler.queues.held()

    def stats(self) -> dict[str, Any]:
        """Return counters over all streams since this object was created, as JSON values.

        docs/runtime.md explains each counter.
        """
        queues, scheduler = self.scheduler.queues, self.scheduler
        streams = queues.open_streams()
        return {
            "streams": len(streams),
            "failed": sum(scheduled.failure is not None for scheduled in streams),
            "queue": sum(len(scheduled.pictures) for scheduled in streams),
            "batch_sizes": dict(scheduler.steps),
            "rows_gathered": scheduler.batcher.gathered,
            **queues.counters.to_dict(),
        }

    def close(self, timeout_ms: float | None = None) -> None:
        """Close all streams once the step in progress has finished; a second call does nothing.

        Args:
            timeout_ms: maximum time to wait for the step (ms); None waits without a limit. A call from the thread that
                steps the streams, for example from a log handler or a finalizer, never waits.

        Raises:
            StreamError: the step did not finish in time. The streams close after the step; call `close` again to wait
                for that.
        """
        self.scheduler.close(timeout_ms)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(CANNOT_BE_COPIED)


CANNOT_BE_COPIED = (
    "streams: cannot be copied or pickled, because they own a thread and memory of the backend; pickle "
    "`stream.snapshot()`, load the bundle in the other process, and open a stream from the snapshot there"
)


class SlotStream:
    """Stream of one video, opened by `Streams`; its calls take effect in the order in which threads make them.

    Every call except `close` and `stats` raises StreamError

    - if the stream was closed, or the process was forked after the streams were created;
    - if the call would wait for itself: in the thread that steps the streams, and in a finalizer or a signal handler
      that interrupts a step of its own thread. Outside a step, finalizers and signal handlers may make any call, even
      during a call to the same stream. During a step of the backend `torch` they may do so too, because `torch` allows
      several calls at a time;
    - if the stream has failed; the error gives the reason. `reset`, `restore`, `snapshot` and `fork` still work.

    `timeout_ms` limits the duration of a call (ms). A call that exceeds the limit raises StreamError and has no effect
    later. A stream that is dropped without being closed is closed, with a ResourceWarning.
    """

    def __init__(self, streams: Streams, scheduled: ScheduledStream) -> None:
        self._streams, self._scheduled, self._scheduler = streams, scheduled, streams.scheduler

    @property
    def pushed(self) -> int:
        """Number of pictures that the stream has seen; pictures in the queue are not counted."""
        return self._scheduled.pushed

    @property
    def renewal(self) -> str:
        """Renewal of the stream, such as `refresh:2`."""
        return str(self._scheduled.renewal)

    @property
    def age(self) -> int:
        """Age of the state that makes the next forecast (number of pictures)."""
        return self._scheduled.renewal.age(self._scheduled.pushed)

    def push(self, picture: Any, *, deadline_ms: float | None = None, timeout_ms: float | None = None) -> None:
        """Append a copy of the next picture to the queue.

        Args:
            picture: [H, W, C], uint8 or float in [0, 1]; a NumPy array, or an array of another library that supports
                DLPack, in host memory.
            deadline_ms: maximum time until the picture's step begins (ms). After that time the picture is dropped and
                counted as `late`; None sets no limit.
            timeout_ms: maximum time to wait for room in the queue with the policy `block` (ms); None waits without a
                limit.

        Raises:
            ConfigError: `deadline_ms` or `timeout_ms` is not a finite number of 0 or more.
            ShapeError: the picture has an unexpected size or type; or is on a GPU; or contains values that are masked,
                not finite or outside [0, 1].
            ResourceLimit: there is not enough memory for the copy.
            StreamError: the queue is full and the policy is `refuse`, or there was no room in time.
        """
        queues, timeout = self._scheduler.queues, _timeout(timeout_ms)
        if deadline_ms is not None:
            deadline_ms = check_ms("deadline_ms", deadline_ms)
        try:
            seen = pictures.to_array(picture, self._streams.config).copy()
        except MemoryError as error:
            raise translated(error) from error
        queues.push(self._scheduled, seen, deadline_ms, timeout)
        if process.is_ending():  # The thread must be idle when the interpreter is destroyed.
            self.wait()

    def predict(
        self, horizon: int, out: NDArray[np.uint8] | None = None, *, timeout_ms: float | None = None
    ) -> NDArray[np.uint8]:
        """Predict the pictures that follow all pushed pictures, uint8 [horizon, H, W, C].

        The stream itself does not advance.

        Args:
            out: array that receives the finished pictures and is returned; it is unchanged after an error. None
                allocates a new array.
            timeout_ms: maximum duration of the call (ms); None waits without a limit.

        Raises:
            ConfigError: `horizon` is below 1, or `timeout_ms` is not a finite number of 0 or more.
            ShapeError: `out` is not a writable uint8 array of this shape.
            ResourceLimit: there is not enough memory for the pictures.
            StreamError: no picture was pushed yet; or a step failed; or a prediction is not finite; or the call took
                too long; or the maximum number of forecasts is queued, and the policy is not `block`.
        """
        return self._forecast(horizon, np.uint8, out, timeout_ms, "predict")

    def forecast(
        self, horizon: int, out: NDArray[np.float32] | None = None, *, timeout_ms: float | None = None
    ) -> NDArray[np.float32]:
        """Forecast the next frames, float32 [horizon, C, H, W], not clipped to [0, 1]; otherwise like `predict`."""
        return self._forecast(horizon, np.float32, out, timeout_ms, "forecast")

    def predict_async(
        self, horizon: int, out: NDArray[np.uint8] | None = None, *, timeout_ms: float | None = None
    ) -> Coroutine[Any, Any, NDArray[np.uint8]]:
        """Request a prediction, and return a coroutine that waits for it: `await stream.predict_async(10)`.

        The prediction follows the pictures that were pushed before this call, even if the coroutine is awaited later.
        Other tasks run while the coroutine waits. To cancel the prediction, cancel the task, or close or drop the
        coroutine. Arguments are those of `predict`.

        Raises:
            StreamError: the maximum number of forecasts is queued, or Python is shutting down. The other errors are
                those of `predict`; most of them are raised when the coroutine is awaited.
        """
        return self._forecast_async(horizon, np.uint8, out, timeout_ms, "predict_async")

    def forecast_async(
        self, horizon: int, out: NDArray[np.float32] | None = None, *, timeout_ms: float | None = None
    ) -> Coroutine[Any, Any, NDArray[np.float32]]:
        """Request the next frames, float32 [horizon, C, H, W], not clipped to [0, 1]; otherwise like `predict_async`.

        The first frame is the prediction after the last picture, and takes no step of its own unless the stream has
        the renewal `replay`.
        """
        return self._forecast_async(horizon, np.float32, out, timeout_ms, "forecast_async")

    def _forecast_async(
        self,
        horizon: int,
        dtype: type[np.uint8] | type[np.float32],
        out: NDArray[Any] | None,
        timeout_ms: float | None,
        what: str,
    ) -> Coroutine[Any, Any, NDArray[Any]]:
        if process.is_ending():
            raise StreamError(
                f"{what}: Python is shutting down, so no request may be left unfinished; call "
                f"{what.removesuffix('_async')} instead"
            )
        timeout = _timeout(timeout_ms)
        forecast = self._new_forecast(horizon, dtype, out)
        answer = Answer(self._awaited(forecast, out, timeout, what), what)
        self._scheduler.queues.ask(forecast, None, what)
        return answer

    def _awaited(
        self, forecast: Forecast, out: NDArray[Any] | None, timeout: Timeout, what: str
    ) -> Generator[Any, Any, NDArray[Any]]:
        return _written((yield from awaited(forecast.reply, timeout, what)), out)

    def _forecast(
        self,
        horizon: int,
        dtype: type[np.uint8] | type[np.float32],
        out: NDArray[Any] | None,
        timeout_ms: float | None,
        what: str,
    ) -> NDArray[Any]:
        timeout = _timeout(timeout_ms)
        return _written(self._scheduler.forecast(self._new_forecast(horizon, dtype, out), timeout, what), out)

    def _new_forecast(
        self, horizon: int, dtype: type[np.uint8] | type[np.float32], out: NDArray[Any] | None
    ) -> Forecast:
        self._scheduler.queues.check(self._scheduled)
        try:
            result = pictures.forecast_array(horizon, self._streams.config, dtype, out)
            if out is not None:
                result = np.empty(result.shape, dtype)
        except MemoryError as error:
            raise translated(error) from error
        self._streams.on_horizon(horizon)
        return Forecast(self._scheduled, result, time.perf_counter())

    def wait(self, *, timeout_ms: float | None = None) -> None:
        """Wait until the stream has seen or dropped all pushed pictures.

        Args:
            timeout_ms: maximum time to wait (ms); None waits without a limit.

        Raises:
            StreamError: the stream has failed, or the pictures were not done in time.
        """
        self._scheduler.call(self._scheduled, lambda: None, what="wait", timeout=_timeout(timeout_ms))
        if self._scheduled.failure is not None:
            raise StreamError(failed(self._scheduled)) from self._scheduled.failure

    def reset(self) -> None:
        """Return to the state before the first picture, and drop queued pictures and forecasts.

        A stream that has failed can be used again afterwards.
        """
        self._scheduler.begin_at(self._scheduled, None, what="reset")

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot, and drop queued pictures and forecasts.

        A stream that has failed can be used again afterwards.

        Raises:
            StreamError: the snapshot belongs to another network, or its renewal differs from the stream's renewal.
            SnapshotError: the snapshot is damaged; or the names, shapes or types of its states differ from those of the
                network's states.
            ResourceLimit: there is not enough memory for the states.
        """
        self._streams.owner.check(snapshot)
        renewal_of(snapshot, self._scheduled.renewal)
        self._scheduler.begin_at(self._scheduled, snapshot, what="restore")

    def snapshot(self, *, timeout_ms: float | None = None) -> Snapshot:
        """Return a snapshot of the stream after all pushed pictures.

        For a stream that has failed, it is the snapshot after the last good picture.

        Args:
            timeout_ms: maximum duration of the call (ms); None waits without a limit.

        Raises:
            ResourceLimit: there is not enough memory for the snapshot.
            StreamError: the snapshot was not done in time.
        """
        identity, scheduler = self._streams.owner.identity, self._scheduler
        return scheduler.call(
            self._scheduled,
            lambda: scheduler.snapshot(self._scheduled, identity),
            what="snapshot",
            timeout=_timeout(timeout_ms),
        )

    def fork(self) -> "SlotStream":
        """Open another stream that continues from the current state of this stream.

        The two streams share their states until one of them takes its next step.

        Raises:
            ResourceLimit: the limits of `Streams.open` allow no other stream.
        """
        # The renewal is that of this stream, because its context length may come from a snapshot and differ from the
        # default.
        fork = self._streams._add(self._scheduled.renewal)
        try:
            self._scheduler.call(
                self._scheduled, lambda: self._scheduler.fork(self._scheduled, fork._scheduled), what="fork"
            )
        except BaseException:
            fork.close()
            raise
        return fork

    def stats(self) -> dict[str, Any]:
        """Return counters of this stream, as JSON values; docs/runtime.md explains each counter."""
        failure = self._scheduled.failure
        return {
            "pushed": self._scheduled.pushed,
            "queue": len(self._scheduled.pictures),
            "failure": None if failure is None else str(failure),
            **self._scheduled.counters.to_dict(),
        }

    def close(self) -> None:
        """Close the stream and drop its queued pictures and forecasts; a second call does nothing.

        The memory of the stream is freed after the step in progress. The call never waits, and may be made anywhere,
        even in a finalizer or a signal handler.
        """
        self._scheduler.end(self._scheduled)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(CANNOT_BE_COPIED)


def _timeout(timeout_ms: float | None) -> Timeout:
    return FOREVER if timeout_ms is None else Timeout(timeout_ms)


def _written(result: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """Return a finished forecast; if the caller gave an array `out`, copy the forecast to it and return `out`."""
    if out is None:
        return result
    out[...] = result
    return out
