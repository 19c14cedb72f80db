"""Many videos on one backend, stepped together."""

from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import ConfigError, ResourceLimit, StreamError
from e3d_deploy.runtime import pictures
from e3d_deploy.runtime.backends.protocol import Backend, step_size
from e3d_deploy.runtime.renewal import NONE, Renewal
from e3d_deploy.runtime.snapshot import Owner, Snapshot, renewal_of
from e3d_deploy.runtime.streams.queues import Policy, Queues
from e3d_deploy.runtime.streams.requests import Video
from e3d_deploy.runtime.streams.scheduler import OnBadOutput, Scheduler


class Streams:
    """Videos that share a backend: a thread steps whoever is ready in one call. Close it, or leave its `with` block.

    Any thread may call it and its streams.

    Args:
        renewal: renewal of a stream that is opened without one.
        on_horizon: called with the horizon of each forecast.
        max_streams: more than these are refused.
        max_wait_ms: how long a picture waits for those of other streams, at most. None waits once every stream is
            ready, or while a forecast is on its way. 0 takes who is there.
        queue_length: pictures of a stream that may wait.
        policy: what a push does when so many do: `block` waits, `drop-oldest` drops the oldest that waits,
            `drop-newest` its own, `refuse` raises StreamError. For a camera: `drop-oldest` and a queue of 1.
        on_bad_output: what becomes of a stream whose prediction is not finite: with `raise` it fails, with `hold`
            it stays at the last good picture and goes on, with `reset` it begins anew with the next.
        memory_limit_bytes: streams whose states could take more than this are refused; None sets no limit.

    Raises:
        ConfigError: a policy that there is not, a number below its least, or a backend that steps no stream alone.
        ResourceLimit: the memory is too little for one stream.
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
        if max_streams < 1:
            raise ConfigError(f"max_streams: got {max_streams}, expected 1 or more")
        self.config, self.owner, self.max_streams = config, owner, max_streams
        self.state_bytes = states.nbytes
        self.renewal, self.on_horizon, self.memory_limit_bytes = renewal, on_horizon, memory_limit_bytes
        queues = Queues(max_wait_ms=max_wait_ms, queue_length=queue_length, policy=policy)
        self.scheduler = Scheduler(backend, config, queues, on_bad_output)
        try:
            if memory_limit_bytes is not None and self.most_bytes(1) > memory_limit_bytes:
                raise ResourceLimit(
                    f"memory_limit_bytes: got {memory_limit_bytes}, a stream can take {self.most_bytes(1)}; allow more"
                )
        except BaseException:
            self.close()
            raise

    def open(self, snapshot: Snapshot | None = None, *, renewal: str | None = None) -> "SlotStream":
        """Open a new video, or one that goes on from a snapshot.

        Args:
            renewal: `none`, `refresh:M` or `replay`; None for the default, or for that of the snapshot.

        Raises:
            ConfigError: there is no such renewal.
            ResourceLimit: there are as many as may be, or no memory for one more.
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
        video = Video(renewal)
        if not self.scheduler.queues.add(video, self._fit):
            raise ResourceLimit(self._why_full(renewal))
        return SlotStream(self, video)

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
        with self.scheduler.queues.lock:
            videos = list(self.scheduler.queues.videos)
        if len(videos) >= self.max_streams:
            return f"streams: {len(videos)} are open, which is max_streams; close one, or allow more"
        need = self._bytes(sum(video.renewal.states + 1 for video in videos) + renewal.states + 1)
        return (
            f"streams: {len(videos)} are open, which is what fits into {self.memory_limit_bytes} bytes; close one, or "
            f"raise memory_limit_bytes to {need}"
        )

    def stats(self) -> dict[str, Any]:
        """Counters of all streams since the beginning, as JSON knows them; docs/runtime.md says what each is."""
        queues, scheduler = self.scheduler.queues, self.scheduler
        with queues.lock:
            return {
                "streams": len(queues.videos),
                "failed": len(queues.failed),
                "queue": sum(video.waiting for video in queues.waiting),
                "batch_sizes": dict(scheduler.steps),
                "rows_gathered": scheduler.batcher.gathered,
                **queues.counters.to_dict(),
            }

    def close(self) -> None:
        """Close all streams, after the step that is on its way. It can be closed twice."""
        self.scheduler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SlotStream:
    """One video of many. What is asked of it is done in the order in which it was asked, whichever thread asks.

    Each call but `close` raises StreamError when the stream was closed, and each but `reset`, `restore`, `snapshot`
    and `fork` when it failed, with the reason.
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

    def push(self, picture: Any, *, deadline_ms: float | None = None) -> None:
        """Put the next picture into the queue, [H, W, C], uint8 or float in [0, 1], on the host; it is copied.

        Args:
            deadline_ms: when its step has not begun after so long, it is dropped and counted.

        Raises:
            ShapeError: a picture of another size or type, or with values that are no picture's.
            StreamError: the queue is full, and the policy `refuse`.
        """
        seen = pictures.take(picture, self._streams.config).copy()
        self._scheduler.queues.push(self._video, seen, deadline_ms)

    def predict(self, horizon: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The pictures after those that were pushed, uint8 [horizon, H, W, C]; the stream does not move.

        Raises:
            ConfigError: horizon below 1.
            ShapeError: `out` is no such array.
            StreamError: nothing was pushed yet, a step failed, or the network's answer is not finite.
        """
        return _result(self._ask(horizon, np.uint8, out))

    def forecast(self, horizon: int, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The same as computed, not clipped, float32 [horizon, C, H, W]."""
        return _result(self._ask(horizon, np.float32, out))

    async def predict_async(self, horizon: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """`predict` for asyncio, `await stream.predict_async(10)`: others run meanwhile. Cancelling it ends it."""
        import asyncio  # whoever awaits has it

        return await asyncio.wrap_future(self._ask(horizon, np.uint8, out))

    def _ask(
        self, horizon: int, dtype: type[np.uint8] | type[np.float32], out: NDArray[Any] | None
    ) -> "Future[NDArray[Any]]":
        result = pictures.forecast_array(horizon, self._streams.config, dtype, out)
        self._streams.on_horizon(horizon)
        return self._scheduler.forecast(self._video, result)

    def wait(self) -> None:
        """Wait until all that was pushed is seen.

        Raises:
            StreamError: the stream failed.
        """
        self._scheduler.call(self._video, lambda: None)
        if self._video.failure is not None:
            raise StreamError(f"stream: failed at {self._video.failure}; reset or restore it") from self._video.failure

    def reset(self) -> None:
        """Forget the video, with what waits of it; heals a stream that failed."""
        self._scheduler.begin_at(self._video, None)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot, and drop what waits; heals a stream that failed.

        Raises:
            StreamError: it is of another network, or its renewal is not that of the stream.
            ResourceLimit: there is no memory for it.
        """
        self._streams.owner.check(snapshot)
        renewal_of(snapshot, self._video.renewal)
        self._scheduler.begin_at(self._video, snapshot)

    def snapshot(self) -> Snapshot:
        """The stream after all that was pushed; of one that failed, after the last good picture."""
        identity = self._streams.owner.identity
        return self._scheduler.call(self._video, lambda: self._scheduler.snapshot(self._video, identity))

    def fork(self) -> "SlotStream":
        """Another stream that goes on from here; nothing is copied until they part.

        Raises:
            ResourceLimit: as `Streams.open`.
        """
        fork = self._streams._add(self._video.renewal)  # its C may be that of a snapshot and not the default
        try:
            self._scheduler.call(self._video, lambda: self._scheduler.put_beside(self._video, fork._video))
        except BaseException:
            fork.close()
            raise
        return fork

    def stats(self) -> dict[str, Any]:
        """Counters of this stream, as JSON knows them; docs/runtime.md says what each is."""
        with self._scheduler.queues.lock:
            failure = self._video.failure
            return {
                "pushed": self._video.pushed,
                "queue": self._video.waiting,
                "failure": None if failure is None else str(failure),
                **self._video.counters.to_dict(),
            }

    def close(self) -> None:
        """End the video: what waits is dropped, its memory is free after the step that it is in. Twice does nothing."""
        self._scheduler.end(self._video)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _result(future: "Future[NDArray[Any]]") -> NDArray[Any]:
    try:
        return future.result()
    except BaseException:  # Ctrl-C; nobody waits for the rest
        future.cancel()
        raise
