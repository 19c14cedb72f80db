"""Many videos on one backend, stepped together."""

import time
from collections.abc import Callable, Collection, Coroutine, Generator
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import ResourceLimit, StreamError
from e3d_deploy.runtime import pictures, process
from e3d_deploy.runtime.arguments import Timeout, check_count, check_ms
from e3d_deploy.runtime.backends.protocol import Backend, step_size
from e3d_deploy.runtime.faults import clear
from e3d_deploy.runtime.renewal import NONE, Renewal
from e3d_deploy.runtime.snapshot import Owner, Snapshot, renewal_of
from e3d_deploy.runtime.streams.queues import Policy, Queues, failed
from e3d_deploy.runtime.streams.requests import Forecast, Video
from e3d_deploy.runtime.streams.scheduler import OnBadOutput, Scheduler
from e3d_deploy.runtime.streams.waiting import FOREVER, Answer, awaited


class Streams:
    """Videos that share a backend: a thread steps whoever is ready in one call. Close it, or leave its `with` block.

    Any thread may call it and its streams. If it is dropped instead of closed, it ends with a ResourceWarning.

    Args:
        renewal: renewal of a stream that is opened without one.
        on_horizon: called with the horizon of each forecast.
        max_streams: more than these are refused.
        max_wait_ms: longest time that a picture waits for those of other streams. Pictures do not wait once all streams
            are ready or while a forecast is on its way; 0 never waits.
        queue_length: most pictures of a stream that may wait.
        policy: behavior of a push to a full queue: `block` waits, `drop-oldest` drops the oldest picture there,
            `drop-newest` its own, `refuse` raises StreamError. For a camera: `drop-oldest` and a queue of 1.
        on_bad_output: what becomes of a stream whose prediction is not finite: with `raise` it fails, with `hold`
            it stays at the last good picture and goes on, with `reset` it begins anew with the next.
        memory_limit_bytes: streams whose states could take more than this are refused; None sets no limit.

    Raises:
        ConfigError: an unknown policy, an invalid number, or a backend that cannot step one stream alone.
        ResourceLimit: the memory is too little for one stream, or no thread can be started.
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
                f"memory_limit_bytes: got {memory_limit_bytes}, a stream can take {self.most_bytes(1)}; allow more"
            )
        self.scheduler.start(self)

    def open(self, snapshot: Snapshot | None = None, *, renewal: str | None = None) -> "SlotStream":
        """Open a new video, or one that goes on from a snapshot.

        Args:
            renewal: `none`, `refresh:M` or `replay`; None for the default, or for that of the snapshot.

        Raises:
            ConfigError: an unknown renewal.
            ResourceLimit: `max_streams` are open, or there is no memory for one more.
            StreamError: the snapshot is of another network or has another renewal, or this was closed.
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
        """Open a new video.

        Raises:
            ResourceLimit, StreamError: as `open`.
        """
        stream = SlotStream(self, Video(renewal))
        if not self.scheduler.queues.add(stream._video, stream, self._fit):
            raise ResourceLimit(self._why_full(renewal))
        return stream

    def most_bytes(self, streams: int) -> int:
        """Return the most memory that the states of so many streams take (bytes), each with a forecast on its way.

        A state and a forecast hold a row each, for as long as a step lasts rows that others just left may be
        held as well, and a step writes one state and may gather another. Usually it is a third of this. The renewal
        says how many states a stream has; pictures that it keeps are not counted.
        """
        return self._bytes(streams * (self.renewal.states + 1))

    def _bytes(self, runners: int) -> int:
        """Return the most memory that so many states and forecasts take (bytes)."""
        backend = self.scheduler.batcher.backend
        held = 2 * runners * (2 if backend.pads else 1)
        rows = held + 2 * step_size(backend, runners)
        return rows * self.state_bytes

    def _fit(self, videos: Collection[Video]) -> bool:
        if len(videos) > self.max_streams:
            return False
        runners = sum(video.renewal.states + 1 for video in videos)
        return self.memory_limit_bytes is None or self._bytes(runners) <= self.memory_limit_bytes

    def _why_full(self, renewal: Renewal) -> str:
        videos = self.scheduler.queues.open_videos()
        if len(videos) >= self.max_streams:
            return f"streams: {len(videos)} are open, which is max_streams; close one, or allow more"
        need = self._bytes(sum(video.renewal.states + 1 for video in videos) + renewal.states + 1)
        return (
            f"streams: {len(videos)} are open, which is what fits into {self.memory_limit_bytes} bytes; close one, or "
            f"raise memory_limit_bytes to {need}"
        )

    def stats(self) -> dict[str, Any]:
        """Return counters of all streams since the beginning, as JSON values; docs/runtime.md explains each."""
        queues, scheduler = self.scheduler.queues, self.scheduler
        videos = queues.open_videos()
        return {
            "streams": len(videos),
            "failed": sum(video.failure is not None for video in videos),
            "queue": sum(len(video.pictures) for video in videos),
            "batch_sizes": dict(scheduler.steps),
            "rows_gathered": scheduler.batcher.gathered,
            **queues.counters.to_dict(),
        }

    def close(self, timeout_ms: float | None = None) -> None:
        """Close all streams, after the step that is on its way. It can be closed twice.

        Args:
            timeout_ms: how long to wait for that step; None waits for ever. From the streams' own thread, such as in a
                log handler or a finalizer, it does not wait.

        Raises:
            StreamError: the time is over; the streams end after the step, and closing again waits for it.
        """
        self.scheduler.close(timeout_ms)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(CANNOT_BE_COPIED)


CANNOT_BE_COPIED = (
    "streams: cannot be copied or pickled, as they hold a thread and memory of the backend; pickle "
    "`stream.snapshot()`, load the bundle in the other process, and open a stream from the snapshot there"
)


class SlotStream:
    """One video of many. What is asked of it is done in the order in which it was asked, whichever thread asks.

    Each call but `close` and `stats` raises StreamError when the stream was closed, when its process was forked, and
    where it might wait for itself: in the streams' own thread, and in a finalizer or a signal handler that interrupts
    its thread in a step, unless that is of `torch`, which runs several calls at a time. Elsewhere these may make every
    call, even while their thread is in a call of the same stream. When the stream failed, all but `reset`, `restore`,
    `snapshot` and `fork` raise StreamError with the reason. `timeout_ms` limits how long a call takes: when it is over,
    the call raises StreamError, and nothing of it is done later. A stream that is dropped is closed, with a
    ResourceWarning.
    """

    def __init__(self, streams: Streams, video: Video) -> None:
        self._streams, self._video, self._scheduler = streams, video, streams.scheduler

    @property
    def pushed(self) -> int:
        """Number of pictures seen; those that wait are not among them."""
        return self._video.pushed

    @property
    def renewal(self) -> str:
        """Renewal of the stream, such as `refresh:2`."""
        return str(self._video.renewal)

    @property
    def age(self) -> int:
        """Number of pictures that the state which answers has seen."""
        return self._video.renewal.age(self._video.pushed)

    def push(self, picture: Any, *, deadline_ms: float | None = None, timeout_ms: float | None = None) -> None:
        """Put the next picture into the queue, [H, W, C], uint8 or float in [0, 1], on the host; it is copied.

        Args:
            deadline_ms: time within which its step has to begin; after it the picture is dropped and counted.
            timeout_ms: how long to wait for room with the policy `block`; None waits for ever.

        Raises:
            ConfigError: an invalid time.
            ShapeError: a picture of another size or type, or with values that are no picture's.
            ResourceLimit: there is no memory for the copy.
            StreamError: the queue is full, and the policy `refuse` or the time over.
        """
        queues, timeout = self._scheduler.queues, _timeout(timeout_ms)
        if deadline_ms is not None:
            deadline_ms = check_ms("deadline_ms", deadline_ms)
        try:
            seen = pictures.take(picture, self._streams.config).copy()
        except MemoryError as error:
            raise clear(error) from error
        queues.push(self._video, seen, deadline_ms, timeout)
        if process.is_ending():  # the thread has to be idle when Python goes away
            self.wait()

    def predict(
        self, horizon: int, out: NDArray[np.uint8] | None = None, *, timeout_ms: float | None = None
    ) -> NDArray[np.uint8]:
        """Predict the pictures after those that were pushed, uint8 [horizon, H, W, C]; the stream does not move.

        Args:
            out: where to write them once all are there, returned then; after an error it is as it was.
            timeout_ms: how long it may take; None waits for ever.

        Raises:
            ConfigError: a horizon below 1, or an invalid time.
            ShapeError: `out` is no such array.
            ResourceLimit: there is no memory for so many pictures.
            StreamError: nothing was pushed yet, a step failed, the network's answer is not finite, the time is over, or
                the most forecasts wait already and the policy is not `block`.
        """
        return self._forecast(horizon, np.uint8, out, timeout_ms, "predict")

    def forecast(
        self, horizon: int, out: NDArray[np.float32] | None = None, *, timeout_ms: float | None = None
    ) -> NDArray[np.float32]:
        """Forecast the next frames as computed, not clipped, float32 [horizon, C, H, W]; else as `predict`."""
        return self._forecast(horizon, np.float32, out, timeout_ms, "forecast")

    def predict_async(
        self, horizon: int, out: NDArray[np.uint8] | None = None, *, timeout_ms: float | None = None
    ) -> Coroutine[Any, Any, NDArray[np.uint8]]:
        """Ask for `predict` now, and return a coroutine that waits for it: `await stream.predict_async(10)`.

        Pictures that are pushed after the call are not seen, whenever the coroutine is awaited. Others run meanwhile.
        Cancelling its task, closing or dropping the coroutine ends the forecast.

        Raises:
            StreamError: the most forecasts wait already, or Python ends. The other errors are those of `predict`; most
                come when it is awaited.
        """
        if process.is_ending():
            raise StreamError("predict_async: Python ends, and nothing may be left on its way; call predict")
        timeout = _timeout(timeout_ms)
        forecast = self._new_forecast(horizon, np.uint8, out)
        answer = Answer(self._awaited(forecast, out, timeout))
        self._scheduler.queues.ask(forecast, None, "predict_async")
        return answer

    def _awaited(
        self, forecast: Forecast, out: NDArray[np.uint8] | None, timeout: Timeout
    ) -> Generator[Any, Any, NDArray[np.uint8]]:
        return _written((yield from awaited(forecast.reply, timeout, "predict_async")), out)

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
        self._scheduler.queues.check(self._video)
        try:
            result = pictures.forecast_array(horizon, self._streams.config, dtype, out)
            if out is not None:
                result = np.empty(result.shape, dtype)
        except MemoryError as error:
            raise clear(error) from error
        self._streams.on_horizon(horizon)
        return Forecast(self._video, result, time.perf_counter())

    def wait(self, *, timeout_ms: float | None = None) -> None:
        """Wait until all that was pushed is seen.

        Args:
            timeout_ms: how long to wait; None waits for ever.

        Raises:
            StreamError: the stream failed, or the time is over.
        """
        self._scheduler.call(self._video, lambda: None, what="wait", timeout=_timeout(timeout_ms))
        if self._video.failure is not None:
            raise StreamError(failed(self._video)) from self._video.failure

    def reset(self) -> None:
        """Forget the video, with what waits of it; heals a stream that failed."""
        self._scheduler.begin_at(self._video, None, what="reset")

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot, and drop what waits; heals a stream that failed.

        Raises:
            StreamError: the snapshot is of another network, or its renewal is not that of the stream.
            ResourceLimit: there is no memory for it.
        """
        self._streams.owner.check(snapshot)
        renewal_of(snapshot, self._video.renewal)
        self._scheduler.begin_at(self._video, snapshot, what="restore")

    def snapshot(self, *, timeout_ms: float | None = None) -> Snapshot:
        """Take a snapshot after all that was pushed; of a stream that failed, after the last good picture.

        Args:
            timeout_ms: how long it may take; None waits for ever.

        Raises:
            ResourceLimit: there is no memory for it.
            StreamError: the time is over.
        """
        identity, scheduler = self._streams.owner.identity, self._scheduler
        return scheduler.call(
            self._video,
            lambda: scheduler.snapshot(self._video, identity),
            what="snapshot",
            timeout=_timeout(timeout_ms),
        )

    def fork(self) -> "SlotStream":
        """Open another stream that goes on from here; nothing is copied until they part.

        Raises:
            ResourceLimit: as `Streams.open`.
        """
        fork = self._streams._add(self._video.renewal)  # its C may be that of a snapshot and not the default
        try:
            self._scheduler.call(self._video, lambda: self._scheduler.put_beside(self._video, fork._video), what="fork")
        except BaseException:
            fork.close()
            raise
        return fork

    def stats(self) -> dict[str, Any]:
        """Return counters of this stream, as JSON values; docs/runtime.md explains each."""
        failure = self._video.failure
        return {
            "pushed": self._video.pushed,
            "queue": len(self._video.pictures),
            "failure": None if failure is None else str(failure),
            **self._video.counters.to_dict(),
        }

    def close(self) -> None:
        """End the video: what waits is dropped, its memory is free after the step that it is in. Twice does nothing.

        It never waits, and may be called anywhere, from a finalizer or a signal handler too.
        """
        self._scheduler.end(self._video)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(CANNOT_BE_COPIED)


def _timeout(timeout_ms: float | None) -> Timeout:
    return FOREVER if timeout_ms is None else Timeout(timeout_ms)


def _written(result: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """Return a forecast that is whole, in the array of the caller if there is one."""
    if out is None:
        return result
    out[...] = result
    return out
