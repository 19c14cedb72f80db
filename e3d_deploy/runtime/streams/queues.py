"""Queues of streams, one each, whose pictures, forecasts and jobs are done in order.

Callers only append: to the queues of a stream, and then a message to the mailbox. One thread reads the messages and
takes things out. It takes no lock, so nothing that runs inside a caller's lock can keep it from its work: neither a
finalizer nor a signal handler, which may call anything and wait for it. A caller that Ctrl-C interrupts anywhere has
either appended or not.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, Literal, TypeVar, get_args

from e3d_deploy.errors import ConfigError, StreamError
from e3d_deploy.runtime import process
from e3d_deploy.runtime.arguments import Timeout, check_count, check_ms
from e3d_deploy.runtime.backends.protocol import Frame
from e3d_deploy.runtime.streams.counters import Counters
from e3d_deploy.runtime.streams.requests import CLOSED, AtExit, Forecast, Gone, Job, Push, Row, Video
from e3d_deploy.runtime.streams.waiting import Bell, Reply, sleep

Policy = Literal["block", "drop-oldest", "drop-newest", "refuse"]
"""Behavior of a push to a full queue: wait, drop the oldest picture there, drop its own, or fail."""
LAST = 4096
"""Number of recent pictures, and of recent forecasts, that percentiles of all streams together cover."""
ITEMS = (Push, Forecast, Job)
MOST_REQUESTS = 64
"""Most forecasts of a stream that may wait."""


class Queues:
    """The queues of all streams. Any thread may put something in; one takes it out.

    Raises:
        ConfigError: an unknown policy, or an invalid number.
    """

    def __init__(self, *, max_wait_ms: float, queue_length: int, policy: Policy) -> None:
        if not isinstance(policy, str) or policy not in get_args(Policy):
            raise ConfigError(f"policy: got {policy!r}, expected one of {', '.join(get_args(Policy))}")
        wait_ms = check_ms("max_wait_ms", max_wait_ms)
        if wait_ms is None:
            raise ConfigError("max_wait_ms: got None, expected a finite number of milliseconds of 0 or more")
        self.max_wait, self.queue_length = wait_ms / 1000, check_count("queue_length", queue_length)
        self.policy = policy
        self.pid = os.getpid()
        self.thread_id: int | None = None
        """Thread that takes things out; None before it began."""
        # For callers, who never wait while they hold it. A finalizer or a signal handler may take it a second time.
        self.lock = threading.RLock()
        self.mailbox: SimpleQueue[Any] = SimpleQueue()
        """Messages: what was put in, a closed video, a `Gone`, a `Reply` for `rest`, or None, which only wakes."""
        self.videos: dict[Video, Gone] = {}
        """Streams, closed ones until the thread knows, each with the object of the user."""
        self.closing = False
        self.broken = ""
        """Error that ended the thread; empty if none did."""
        self.counters = Counters(LAST)
        self.bell = Bell()
        """Rings when the thread ended."""
        self.ended = True
        """True before the thread begins and once it has ended."""
        # From here on the thread's alone.
        self.waiting: dict[Video, None] = {}
        """Streams with something in their queues."""
        self.first = 0.0
        """Time at which the oldest item in them came (s, of `time.perf_counter`)."""
        self.jobs: dict[Video, None] = {}
        """Streams with a job in their queue."""
        self.failed: set[Video] = set()
        self.forecasts: list[Forecast] = []
        """Forecasts on their way."""
        self.closed: list[tuple[Video, bool]] = []
        """Streams to be forgotten, and True if they were dropped without `close`."""
        self.dropped = False
        """True once `Streams`, the object that opens them, was dropped without `close`."""
        self.resting: list[Reply[None]] = []
        """Calls of `rest` to be answered."""
        self.is_quiet = False
        """True once Python ends and only exit handlers are heard."""

    # What any thread may call.

    def check(self, video: Video | None = None, *, healthy: bool = True) -> None:
        """Raise unless this thread may use a stream, or all of them, now.

        Args:
            healthy: refuse a stream that failed.

        Raises:
            StreamError: they were closed, this process was forked, Python ends, the call would wait for itself, or the
                stream failed.
        """
        process.check_usable(self.pid)
        if threading.get_ident() == self.thread_id:
            raise StreamError(
                "streams: got a call in their own thread, which would wait for itself; from a log handler or a "
                "finalizer only close them or ask for `stats`, and leave the rest to another thread"
            )
        if process.in_backend():
            raise StreamError(
                "streams: got a call inside a step, whose end it would wait for; from a finalizer or a signal handler "
                "only close them or ask for `stats`, and leave the rest to another thread"
            )
        if self.closing or (video is not None and video.closed):
            raise self.closed_error()
        if healthy and video is not None and video.failure is not None:
            raise StreamError(failed(video)) from video.failure

    def closed_error(self) -> StreamError:
        """Return the error for any use of streams after their end."""
        return StreamError(f"streams: do nothing any more ({self.broken}); make new ones" if self.broken else CLOSED)

    def open_videos(self) -> list[Video]:
        """Return the streams that are neither closed nor dropped."""
        # A copy, as a dictionary that the thread changes cannot be walked through.
        return [video for video, owner in self.videos.copy().items() if not video.closed and owner() is not None]

    def add(self, video: Video, owner: object, fits: Callable[[Collection[Video]], bool]) -> bool:
        """Let a new stream take part; return False if it does not fit beside the others."""
        self.check(video)  # before the lock, which somebody may have held for ever when this process was forked
        with self.lock:
            self.videos[video] = Gone(owner, self.mailbox.put, video)
            if fits(self.open_videos()):
                return True
            self.videos.pop(video, None)
            return False

    def push(self, video: Video, seen: Frame, deadline_ms: float | None, timeout: Timeout) -> None:
        """Put in a picture, whose memory nobody else writes to.

        Raises:
            StreamError: the stream is closed or failed, its queue is full and the policy `refuse`, or the time is over.
        """
        came = time.perf_counter()
        deadline = math.inf if deadline_ms is None else came + deadline_ms / 1000
        while not self._push(video, seen, came, deadline):
            self._wait_for_room(video, lambda: len(video.pictures) < self.queue_length, timeout, "push")

    def _push(self, video: Video, seen: Frame, came: float, deadline: float) -> bool:
        self.check(video)
        with self.lock:
            if (waiting := len(video.pictures)) >= self.queue_length:
                match self.policy:
                    case "block":
                        return False
                    case "drop-newest":
                        self.drop(video, "full")
                        return True
                    case "refuse":
                        self.drop(video, "refused")
                        raise StreamError(
                            f"stream: {waiting} pictures wait already; push less often, or take another policy"
                        )
            video.newest += 1
            self._put(video.pictures, Push(video, seen, came, deadline, video.newest))
            while len(video.pictures) > self.queue_length:
                try:
                    video.pictures.remove(video.pictures[0])
                except (IndexError, ValueError):  # the thread took it, and there is room
                    continue
                self.drop(video, "full")
        return True

    def ask(self, request: Forecast | Job, timeout: Timeout | None, what: str) -> None:
        """Put in a request, whose turn is after all pictures that were pushed before.

        Args:
            timeout: time that a forecast may wait for room with the policy `block`; None does not wait.
            what: name of the call, for errors.

        Raises:
            StreamError: the stream is closed or failed, or there is no room for another forecast.
        """
        video, is_forecast = request.video, isinstance(request, Forecast)
        while True:
            self.check(video, healthy=is_forecast)
            with self.lock:
                if not is_forecast or len(video.requests) < MOST_REQUESTS:
                    request.turn = video.newest
                    self._put(video.requests, request)
                    return
            if timeout is None or self.policy != "block":
                raise StreamError(
                    f"stream: {MOST_REQUESTS} forecasts wait already; await some before you ask for another"
                )
            self._wait_for_room(video, lambda: len(video.requests) < MOST_REQUESTS, timeout, what)

    def _put(self, queue: Any, item: Push | Forecast | Job) -> None:
        message = self._message(item)
        # Ctrl-C may strike right after the first call; the second is made even then.
        try:
            queue.append(item)
        finally:
            self.mailbox.put(message)
        if self.closing:  # maybe the thread looked into the queues for the last time before that
            raise self.closed_error()

    def _wait_for_room(self, video: Video, is_room: Callable[[], bool], timeout: Timeout, what: str) -> None:
        def is_over() -> bool:
            return is_room() or self.closing or video.closed or video.failure is not None

        if not video.room.wait(is_over, timeout):
            raise timeout.error(what)

    def _message(self, content: "Push | Forecast | Job | Video") -> Any:
        """Return a message; at the end of Python the thread hears only those of the thread that runs exit handlers."""
        if process.is_ending():
            process.check_usable(self.pid)
            return AtExit(content)
        return content

    def end(self, video: Video) -> None:
        """Close a stream; takes no lock and waits for nothing, as the garbage collector may call it anywhere."""
        try:
            process.check_usable(self.pid)
            message = self._message(video)
        except StreamError:  # a copy in a forked process, or another thread while Python ends
            return
        if not video.closed:
            video.closed = True
            self.mailbox.put(message)

    def close(self) -> None:
        """Have the thread end after the step that it is in."""
        self.closing = True
        self.mailbox.put(None)

    def rest(self) -> None:
        """Drop what waits, and wait until the thread has nothing to do; called at the end of Python."""
        reply: Reply[None] = Reply()
        self.mailbox.put(reply)
        self.bell.wait(lambda: reply.done or self.ended)

    def drop(self, video: Video, reason: str, count: int = 1) -> None:
        """Count pictures that are not seen: `full` and `refused` by callers with the lock, the others by the thread."""
        for counters in (video.counters, self.counters):
            counters.dropped[reason] += count

    # What the thread does.

    def listen(self, *, busy: bool) -> None:
        """Take all messages; unless `busy`, wait for something to do first."""
        self._read()
        while not (busy or self.closing or self.closed or self.resting) and (delay := self.delay()):
            self._heed(sleep(self.mailbox, delay))
            self._read()

    def _read(self) -> None:
        while not self.mailbox.empty():
            self._heed(self.mailbox.get_nowait())

    def _heed(self, message: Any) -> None:
        if isinstance(message, Reply):
            self.resting.append(message)
            return
        if isinstance(message, AtExit):
            message = message.message
        elif self.is_quiet:
            return
        if isinstance(message, ITEMS):
            self._heed_item(message)
        elif isinstance(message, Video):
            self.closed.append((message, False))
        elif isinstance(message, Gone):
            if message.video is None:
                self.closing, self.dropped = True, not self.closing
            else:
                self.closed.append((message.video, not message.video.closed))

    def _heed_item(self, item: Push | Forecast | Job) -> None:
        video = item.video
        if video.closed:  # put in when it was just being closed
            self.closed.append((video, False))
            return
        if video.failure is not None:  # or when it just failed
            self.clear(video, "failed", StreamError(failed(video)))
        if not self.waiting:
            self.first = item.came
        self.waiting[video] = None
        if isinstance(item, Job):
            self.jobs[video] = None

    def clear(self, video: Video, reason: str, error: StreamError, *, jobs: bool = False) -> None:
        """Empty the queues of a stream, of jobs only if asked to; callers that wait get an error."""
        self._drop_before(video, None, reason, error)
        while jobs and video.requests:
            video.requests.popleft().reply.give(StreamError(str(error)))

    def _drop_before(self, video: Video, job: Job | None, reason: str, error: StreamError) -> None:
        """Drop pictures and forecasts before a job, or all of them."""
        while (push := first(video.pictures)) is not None and (job is None or push.number <= job.turn):
            if self._took(push):
                self.drop(video, reason)
        kept: list[Forecast | Job] = []
        while (request := first(video.requests)) is not None and request is not job:
            video.requests.popleft()
            if isinstance(request, Forecast):
                request.reply.give(StreamError(str(error)))
            else:
                kept.append(request)
        video.requests.extendleft(reversed(kept))
        video.room.ring()

    def _took(self, push: Push) -> bool:
        """Take a picture out of its queue; False if a push has dropped it meanwhile."""
        try:
            push.video.pictures.remove(push)
        except ValueError:
            return False
        return True

    def fail(self, video: Video, failure: StreamError) -> None:
        """Let a stream do nothing more until it is reset or restored."""
        if not video.closed:
            video.failure = failure
            self.failed.add(video)
            for counters in (video.counters, self.counters):
                counters.failures += 1
            self.clear(video, "failed", StreamError(failed(video)))

    def heal(self, video: Video) -> None:
        """Let a stream that failed go on."""
        video.failure = None
        self.failed.discard(video)

    def delay(self) -> float:
        """Return the time to wait for more streams before the next step (s); infinite when nothing is ready."""
        if self.forecasts or self.jobs:
            return 0
        if not self.waiting:
            return math.inf
        if len(self.waiting) >= len(self.videos) - len(self.failed):
            return 0
        return max(0.0, self.first + self.max_wait - time.perf_counter())

    def take_jobs(self) -> Iterator[Job]:
        """Yield the jobs whose turn it is and whose caller still waits."""
        for video in list(self.jobs) if self.jobs else ():
            for job in _jobs(video):
                if job.drops and job.claim("thread"):
                    self._drop_before(video, job, "reset", StreamError("stream: was reset before this forecast began"))
            while isinstance(request := first(video.requests), Job) and _is_due(request):
                video.requests.popleft()
                if request.claim("thread"):
                    yield request
            if not _jobs(video):
                self.jobs.pop(video, None)

    def take(self, begin: Callable[[Forecast], None]) -> list[Push | Forecast]:
        """Return the items to step now: the next picture of each stream, and all forecasts on their way.

        Args:
            begin: called with forecasts whose turn it is.
        """
        now = time.perf_counter()
        pushes = [push for video in self.waiting if (push := self._next_push(video, begin, now)) is not None]
        came = {video: one.came for video in self.waiting if (one := first(video.pictures) or first(video.requests))}
        self.waiting = dict.fromkeys(came)
        self.first = min(came.values(), default=now)
        return [*pushes, *self.forecasts]

    def _next_push(self, video: Video, begin: Callable[[Forecast], None], now: float) -> Push | None:
        while True:
            # The picture first: whoever asked for something before it was pushed is seen by the next line then.
            push = first(video.pictures)
            request = first(video.requests)
            if request is not None:
                if _is_due(request):
                    if isinstance(request, Job) or video.forecast is not None:
                        return None
                    video.requests.popleft()
                    video.room.ring()
                    begin(request)
                    continue
                push = first(video.pictures)
            if push is None:
                return None
            if self._took(push):
                video.room.ring()
                if now <= push.deadline:
                    return push
                self.drop(video, "late")

    def in_time(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that are stepped now, and drop pictures whose deadline is over before their first step."""
        now = time.perf_counter()
        for row in rows:
            if isinstance(push := row.owner, Push) and not push.over:
                if push.started is None and now > push.deadline:
                    push.over, push.rows = True, []
                    self.drop(push.video, "late")
                push.started = push.started or now
        return [row for row in rows if isinstance(row.owner, Forecast) or not row.owner.over]


T = TypeVar("T")


def first(queue: "deque[T]") -> T | None:
    """Return what is in front; for the thread, the only one that may leave a queue empty."""
    return queue[0] if queue else None


def failed(video: Video) -> str:
    """Return why a stream that failed cannot be used."""
    return f"stream: failed at {video.failure}; reset or restore it"


def _jobs(video: Video) -> list[Job]:
    # A copy, as callers may add to the queue.
    return [request for request in list(video.requests) if isinstance(request, Job)]


def _is_due(request: Forecast | Job) -> bool:
    """Return True if no picture waits that it is to have seen."""
    push = first(request.video.pictures)
    return push is None or push.number > request.turn
