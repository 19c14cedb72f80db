"""Queues of streams, one each, whose pictures, forecasts and jobs are done in order."""

import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Literal, get_args

from e3d_deploy.errors import ConfigError, StreamError
from e3d_deploy.runtime.backends.protocol import Frame
from e3d_deploy.runtime.streams.counters import Counters
from e3d_deploy.runtime.streams.requests import CLOSED, Forecast, Job, Push, Row, Video, give

Policy = Literal["block", "drop-oldest", "drop-newest", "refuse"]
"""Behavior of a push to a full queue: wait, drop the oldest picture there, drop its own, or fail."""
LAST = 4096
"""Number of recent pictures, and of recent forecasts, that percentiles of all streams together cover."""


class Queues:
    """The queues of all streams. Any thread may put something in; one takes it out.

    Raises:
        ConfigError: a policy that there is not, or a number that is too small.
    """

    def __init__(self, *, max_wait_ms: float, queue_length: int, policy: Policy) -> None:
        if policy not in get_args(Policy):
            raise ConfigError(f"policy: got {policy!r}, expected one of {', '.join(get_args(Policy))}")
        if queue_length < 1 or not max_wait_ms >= 0:
            raise ConfigError(f"got queue_length {queue_length}, max_wait_ms {max_wait_ms}; expected 1 and 0 or more")
        self.max_wait, self.queue_length, self.policy = max_wait_ms / 1000, queue_length, policy
        self._make_locks()
        self.counters = Counters(LAST)
        self.videos: set[Video] = set()
        self.failed: set[Video] = set()
        self.waiting: dict[Video, None] = {}
        """Streams with something in their queue."""
        self.first = 0.0
        """When the first of that came."""
        self.jobs = 0
        """In queues."""
        self.forecasts: list[Forecast] = []
        """On their way."""
        self.closing = False
        self.broken = ""
        """Why nothing is done any more, unless it was asked for."""
        ALL.add(self)

    def _make_locks(self) -> None:
        self.lock = threading.Lock()
        """Held by whoever changes a stream's queue, failure or counters."""
        self.work, self.room = threading.Condition(self.lock), threading.Condition(self.lock)

    def forked(self) -> None:
        """Let the copy in a new process refuse everything: the thread is not there, and somebody may hold the lock."""
        self._make_locks()
        self.closing, self.broken = True, "this process was forked from the one that they run in"

    def add(self, video: Video, fits: Callable[[Collection[Video]], bool]) -> bool:
        """Let a new stream take part if it fits beside the others."""
        with self.lock:
            self.check(video)
            if not fits({*self.videos, video}):
                return False
            self.videos.add(video)
            return True

    def push(self, video: Video, seen: Frame, deadline_ms: float | None) -> None:
        """Put in a picture, whose memory nobody else writes to.

        Raises:
            StreamError: the stream is closed or failed, or its queue is full and the policy `refuse`.
        """
        came = time.perf_counter()
        deadline = math.inf if deadline_ms is None else came + deadline_ms / 1000
        with self.lock:
            self.check(video)
            while video.waiting >= self.queue_length:
                match self.policy:
                    case "block":
                        self.room.wait()
                        self.check(video)
                    case "drop-oldest":
                        video.queue.remove(next(item for item in video.queue if isinstance(item, Push)))
                        video.waiting -= 1
                        self.drop(video, "full")
                    case "drop-newest":
                        self.drop(video, "full")
                        return
                    case "refuse":
                        self.drop(video, "refused")
                        raise StreamError(
                            f"stream: {video.waiting} pictures wait already; push less often, or take another policy"
                        )
            self.put(video, Push(video, seen, came, deadline))

    def put(self, video: Video, item: Push | Forecast | Job) -> None:
        """Put something in, with the lock held."""
        if not self.waiting:
            self.first = item.came
        self.jobs += isinstance(item, Job)
        video.waiting += isinstance(item, Push)
        video.queue.append(item)
        self.waiting[video] = None
        if len(self.waiting) == 1 or self.delay() == 0:
            self.work.notify()

    def check(self, video: Video, *, healthy: bool = True) -> None:
        """Raise what keeps a stream from being used."""
        if video.closed or self.closing:
            raise self.closed()
        if healthy and video.failure is not None:
            raise StreamError(f"stream: failed at {video.failure}; reset or restore it") from video.failure

    def closed(self) -> StreamError:
        """Return the error for any use of streams after their end."""
        return StreamError(f"streams: do nothing any more ({self.broken}); make new ones" if self.broken else CLOSED)

    def clear(self, video: Video, reason: str, error: StreamError) -> None:
        """Empty the queue of a stream but for jobs; forecasts there get an error."""
        self.drop(video, reason, video.waiting)
        for item in video.queue:
            if isinstance(item, Forecast):
                give(item.future, error)
        video.queue, video.waiting = deque(item for item in video.queue if isinstance(item, Job)), 0
        if not video.queue:
            self.waiting.pop(video, None)
        self.room.notify_all()

    def drop(self, video: Video, reason: str, count: int = 1) -> None:
        """Count pictures that are not seen."""
        for counters in (video.counters, self.counters):
            counters.dropped[reason] += count

    def fail(self, video: Video, failure: StreamError) -> None:
        """Let a stream do nothing more until it is reset or restored."""
        if not video.closed:
            video.failure = failure
            self.failed.add(video)
            for counters in (video.counters, self.counters):
                counters.failures += 1
            self.clear(video, "failed", StreamError(f"stream: failed at {failure}; reset or restore it"))

    def delay(self) -> float:
        """Return the time to wait for more streams before the next step (s); infinite when nothing is ready."""
        if self.forecasts or self.jobs:
            return 0
        if not self.waiting:
            return math.inf
        if len(self.waiting) >= len(self.videos) - len(self.failed):
            return 0
        return max(0.0, self.first + self.max_wait - time.perf_counter())

    def take_jobs(self) -> list[Job]:
        """The jobs whose turn it is."""
        jobs = []
        for video in list(self.waiting) if self.jobs else ():
            if isinstance(job := video.queue[0], Job):
                video.queue.popleft()
                jobs.append(job)
            if not video.queue:
                del self.waiting[video]
        self.jobs -= len(jobs)
        return jobs

    def take(self, begin: Callable[[Forecast], None]) -> list[Push | Forecast]:
        """Return the items to step now: the next picture of each stream, and all forecasts on their way.

        Args:
            begin: called with forecasts whose turn it is.
        """
        now = time.perf_counter()
        pushes = [push for video in self.waiting if (push := self._next_push(video, begin, now)) is not None]
        self.waiting = {video: None for video in self.waiting if video.queue}
        self.first = min((video.queue[0].came for video in self.waiting), default=now)
        return [*pushes, *self.forecasts]

    def in_time(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that are stepped now, and drop pictures whose deadline is over before their first step."""
        now = time.perf_counter()
        late = set()
        for row in rows:
            if isinstance(push := row.owner, Push) and not push.over:
                if push.started is None and now > push.deadline:
                    push.over, push.rows = True, []
                    late.add(push)
                push.started = push.started or now
        if late:
            with self.lock:
                for push in late:
                    self.drop(push.video, "late")
        return [row for row in rows if isinstance(row.owner, Forecast) or not row.owner.over]

    def _next_push(self, video: Video, begin: Callable[[Forecast], None], now: float) -> Push | None:
        while video.queue:
            item = video.queue[0]
            if isinstance(item, Job) or (isinstance(item, Forecast) and video.forecast is not None):
                return None
            video.queue.popleft()
            if isinstance(item, Forecast):
                begin(item)
                continue
            video.waiting -= 1
            self.room.notify_all()
            if now <= item.deadline:
                return item
            self.drop(video, "late")
        return None

    def end(self) -> list[Video]:
        """Fail all that waits, and whoever comes after; returns the streams that hold something yet."""
        with self.lock:
            self.closing = True
            everyone = [*self.videos, *self.waiting]
            self.videos.clear()
            for video in everyone:
                for item in video.queue:
                    if isinstance(item, Job):
                        give(item.future, self.closed())
                video.queue = deque(item for item in video.queue if not isinstance(item, Job))
                self.clear(video, "closed", self.closed())
            return everyone


ALL: "weakref.WeakSet[Queues]" = weakref.WeakSet()


def _forked() -> None:
    for queues in list(ALL):
        queues.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
