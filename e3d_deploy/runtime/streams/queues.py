"""Queues of the streams: pictures, forecasts and jobs, which are done in the order of the calls.

Callers append an item to a queue of their stream, and then put a message into the mailbox, a queue that all streams
share. One thread, which also steps the streams, reads the messages and takes items out of the queues. The thread takes
no lock: a finalizer or a signal handler may interrupt a caller that holds the lock, make a call, and wait for the
thread, which must then make progress. After Ctrl-C, a caller has appended both its item and its message, or neither.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Literal, TypeVar, get_args

from e3d_deploy.errors import ConfigError, StreamError
from e3d_deploy.runtime import process
from e3d_deploy.runtime.arguments import Timeout, check_count, check_ms
from e3d_deploy.runtime.backends.protocol import Frame
from e3d_deploy.runtime.streams.counters import Counters
from e3d_deploy.runtime.streams.requests import CLOSED, AtExit, Forecast, Gone, Job, Push, Row, ScheduledStream
from e3d_deploy.runtime.streams.waiting import Bell, Reply, sleep

Policy = Literal["block", "drop-oldest", "drop-newest", "refuse"]
"""Behavior of a push to a full queue.

In the order of the names: wait for room, drop the oldest picture in the queue, drop the pushed picture, raise an error.
"""
LAST = 4096
"""The percentiles over all streams cover this number of the most recent pictures, and the same number of forecasts."""
ITEMS = (Push, Forecast, Job)
MAX_REQUESTS = 64
"""Number of queued requests at which a stream accepts no further forecast."""
MAX_HOLD_S = 0.1
"""Maximum time that `Streams.together` holds an item in a queue (s)."""


class Queues:
    """Queues of all streams. Any thread may append items; only the thread that steps the streams takes items out.

    The exception is a push with the policy `drop-oldest`, which removes the oldest picture from a full queue.

    Args:
        max_wait_ms: maximum time that a picture waits for pictures of other streams (ms).
        queue_length: maximum number of pictures in the queue of a stream.
        policy: behavior of a push to a full queue.

    Raises:
        ConfigError: `policy` is unknown, or a number is invalid.
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
        """Id of the thread that steps the streams; None before it starts."""
        # Only callers take the lock, and no caller waits with the lock held. It is reentrant, because a finalizer or a
        # signal handler may interrupt the holder and take the lock again in the same thread.
        self.lock = threading.RLock()
        self.mailbox: SimpleQueue[Any] = SimpleQueue()
        """Messages: an appended item, a closed stream, a `Gone`, a `Reply` for `drain`, or None to wake the thread."""
        self.streams: dict[ScheduledStream, Gone] = {}
        """Streams, each with a weak reference to the user's object. The thread removes closed streams."""
        self.holds = 0
        """Number of `together` blocks that callers are in."""
        self.closing = False
        self.broken = ""
        """Error that ended the thread; empty if there was no error."""
        self.counters = Counters(LAST)
        self.bell = Bell()
        """Wakes callers that wait until the thread has ended or, during interpreter shutdown, is idle."""
        self.ended = True
        """True before the thread starts and after it has ended."""
        # Only the thread that steps the streams uses the attributes below.
        self.waiting: dict[ScheduledStream, None] = {}
        """Streams with a picture or a request in their queues."""
        self.first = 0.0
        """Time of the oldest item in the queues of `waiting` (s, of `time.perf_counter`)."""
        self.jobs: dict[ScheduledStream, None] = {}
        """Streams with a job in their queue."""
        self.failed: set[ScheduledStream] = set()
        self.forecasts: list[Forecast] = []
        """Forecasts in progress."""
        self.closed: list[tuple[ScheduledStream, bool]] = []
        """Streams to be removed, each with True if it was dropped without `close`."""
        self.dropped = False
        """True once the `Streams` object was dropped without `close`."""
        self.draining: list[Reply[None]] = []
        """Replies that calls to `drain` wait for."""
        self.ignores_messages = False
        """True once Python is shutting down and only messages of exit handlers are read."""

    # Any thread may call the methods below.

    def check(self, stream: ScheduledStream | None = None, *, healthy: bool = True) -> None:
        """Check that this thread may use the streams now, and, if it is given, `stream`.

        Args:
            healthy: also refuse a stream that has failed.

        Raises:
            StreamError: the streams or `stream` were closed; or this process was forked; or Python is shutting down; or
                the call would wait for itself; or `stream` has failed.
        """
        process.check_usable(self.pid)
        if threading.get_ident() == self.thread_id:
            raise StreamError(
                "streams: got a call in their own thread, which would wait for itself; in a log handler or a "
                "finalizer, call only `close` and `stats`, and make other calls in another thread"
            )
        if process.in_backend():
            raise StreamError(
                "streams: got a call inside a step, which would wait for the end of the step; in a finalizer or a "
                "signal handler, call only `close` and `stats`, and make other calls in another thread"
            )
        if self.closing or (stream is not None and stream.closed):
            raise self.closed_error()
        if healthy and stream is not None and stream.failure is not None:
            raise StreamError(failed(stream)) from stream.failure

    def closed_error(self) -> StreamError:
        """Return the error for any use of the streams after their thread has ended."""
        return StreamError(
            f"streams: stopped after an internal error ({self.broken}); open new streams" if self.broken else CLOSED
        )

    def open_streams(self) -> list[ScheduledStream]:
        """Return the streams that are neither closed nor dropped."""
        # Iterate over a copy, because the thread may change the dictionary.
        return [stream for stream, owner in self.streams.copy().items() if not stream.closed and owner() is not None]

    def add(self, stream: ScheduledStream, owner: object, fits: Callable[[Collection[ScheduledStream]], bool]) -> bool:
        """Add a stream, unless `fits` returns False for the open streams and the new one.

        Returns:
            True if the stream was added.
        """
        # Check before the lock: in a forked process, the lock may be held by a thread that does not exist here.
        self.check(stream)
        with self.lock:
            self.streams[stream] = Gone(owner, self.mailbox.put, stream)
            if fits(self.open_streams()):
                return True
            self.streams.pop(stream, None)
            return False

    def push(self, stream: ScheduledStream, seen: Frame, deadline_ms: float | None, timeout: Timeout) -> None:
        """Append a picture to the queue of a stream; the caller must not change the picture's memory afterwards.

        Raises:
            StreamError: the stream was closed or has failed; or its queue is full and the policy is `refuse`; or there
                was no room within `timeout`.
        """
        came = time.perf_counter()
        deadline = math.inf if deadline_ms is None else came + deadline_ms / 1000
        while not self._push(stream, seen, came, deadline):
            self._wait_for_room(stream, lambda: len(stream.pictures) < self.queue_length, timeout, "push")

    def _push(self, stream: ScheduledStream, seen: Frame, came: float, deadline: float) -> bool:
        self.check(stream)
        with self.lock:
            if (waiting := len(stream.pictures)) >= self.queue_length:
                match self.policy:
                    case "block":
                        return False
                    case "drop-newest":
                        self.drop(stream, "full")
                        return True
                    case "refuse":
                        self.drop(stream, "refused")
                        raise StreamError(
                            f"stream: {waiting} pictures are queued already; push less often, or use another policy"
                        )
            stream.newest += 1
            self._put(stream.pictures, Push(stream, seen, came, deadline, stream.newest))
            while len(stream.pictures) > self.queue_length:
                try:
                    stream.pictures.remove(stream.pictures[0])
                except (IndexError, ValueError):  # The thread has just taken the picture, so there may be room.
                    continue
                self.drop(stream, "full")
        return True

    def ask(self, request: Forecast | Job, timeout: Timeout | None, what: str) -> None:
        """Append a request to the queue of its stream; it is due once all pictures pushed before it are done.

        Args:
            timeout: time that a forecast may wait for room with the policy `block`; None does not wait.
            what: name of the call, for errors.

        Raises:
            StreamError: the stream was closed; or, for a forecast, the stream has failed or its queue has no room.
        """
        stream, is_forecast = request.stream, isinstance(request, Forecast)
        while True:
            self.check(stream, healthy=is_forecast)
            with self.lock:
                if not is_forecast or len(stream.requests) < MAX_REQUESTS:
                    request.turn = stream.newest
                    self._put(stream.requests, request)
                    return
            if timeout is None or self.policy != "block":
                raise StreamError(
                    f"stream: {MAX_REQUESTS} forecasts are queued already; await some before you request another"
                )
            self._wait_for_room(stream, lambda: len(stream.requests) < MAX_REQUESTS, timeout, what)

    def _put(self, queue: Any, item: Push | Forecast | Job) -> None:
        message = self._message(item)
        # Ctrl-C may interrupt right after the first call; `finally` makes the second call even then.
        try:
            queue.append(item)
        finally:
            self.mailbox.put(message)
        if self.closing:  # The thread may have read the queues for the last time before the item was appended.
            raise self.closed_error()

    def _wait_for_room(self, stream: ScheduledStream, is_room: Callable[[], bool], timeout: Timeout, what: str) -> None:
        def is_over() -> bool:
            return is_room() or self.closing or stream.closed or stream.failure is not None

        if not stream.room.wait(is_over, timeout):
            raise timeout.error(what)

    def _message(self, content: "Push | Forecast | Job | ScheduledStream") -> Any:
        """Return the message to put into the mailbox: `content`, or during shutdown an `AtExit` with the content.

        Raises:
            StreamError: Python is shutting down, and this thread does not run the exit handlers.
        """
        if process.is_ending():
            process.check_usable(self.pid)
            return AtExit(content)
        return content

    def end(self, stream: ScheduledStream) -> None:
        """Close a stream, without taking a lock or waiting, because the garbage collector may call this anywhere."""
        try:
            process.check_usable(self.pid)
            message = self._message(stream)
        except StreamError:  # This process was forked, or Python is shutting down.
            return
        if not stream.closed:
            stream.closed = True
            self.mailbox.put(message)

    def close(self) -> None:
        """Make the thread end after the step in progress."""
        self.closing = True
        self.mailbox.put(None)

    def drain(self) -> None:
        """Make the thread drop all queued items, and wait until it is idle; called during interpreter shutdown."""
        reply: Reply[None] = Reply()
        self.mailbox.put(reply)
        self.bell.wait(lambda: reply.done or self.ended)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no step begin until the block ends, but for at most `MAX_HOLD_S` after the first item was queued."""
        self.check()
        with self.lock:
            self.holds += 1
        try:
            yield
        finally:
            with self.lock:
                self.holds -= 1
            self.mailbox.put(None)

    def drop(self, stream: ScheduledStream, reason: str, count: int = 1) -> None:
        """Count pictures that were dropped.

        Callers count `full` and `refused` while they hold the lock; the thread counts the other reasons.
        """
        for counters in (stream.counters, self.counters):
            counters.dropped[reason] += count

    # Only the thread that steps the streams calls the methods below.

    def read_messages(self, *, busy: bool) -> None:
        """Read all messages, and unless `busy`, wait until there is something to do."""
        self._read()
        while not (busy or self.closing or self.closed or self.draining) and (delay := self.delay()):
            self._handle(sleep(self.mailbox, delay))
            self._read()

    def _read(self) -> None:
        while not self.mailbox.empty():
            self._handle(self.mailbox.get_nowait())

    def _handle(self, message: Any) -> None:
        if isinstance(message, Reply):
            self.draining.append(message)
            return
        if isinstance(message, AtExit):
            message = message.message
        elif self.ignores_messages:
            return
        if isinstance(message, ITEMS):
            self._handle_item(message)
        elif isinstance(message, ScheduledStream):
            self.closed.append((message, False))
        elif isinstance(message, Gone):
            if message.stream is None:
                self.closing, self.dropped = True, not self.closing
            else:
                self.closed.append((message.stream, not message.stream.closed))

    def _handle_item(self, item: Push | Forecast | Job) -> None:
        stream = item.stream
        if stream.closed:  # The item was appended while the stream was being closed.
            self.closed.append((stream, False))
            return
        if stream.failure is not None:  # The item was appended while the stream was failing.
            self.clear(stream, "failed", StreamError(failed(stream)))
        if not self.waiting:
            self.first = item.came
        self.waiting[stream] = None
        if isinstance(item, Job):
            self.jobs[stream] = None

    def clear(self, stream: ScheduledStream, reason: str, error: StreamError, *, jobs: bool = False) -> None:
        """Drop all pictures and forecasts in the queues of a stream; waiting callers receive `error`.

        Args:
            reason: reason to count the pictures under, one of `DROPS`.
            jobs: also drop the jobs.
        """
        self._drop_before(stream, None, reason, error)
        while jobs and stream.requests:
            stream.requests.popleft().reply.give(StreamError(str(error)))

    def _drop_before(self, stream: ScheduledStream, job: Job | None, reason: str, error: StreamError) -> None:
        """Drop all queued pictures and forecasts that came before `job`; if `job` is None, drop all of them."""
        while (push := first(stream.pictures)) is not None and (job is None or push.number <= job.turn):
            if self._remove(push):
                self.drop(stream, reason)
        kept: list[Forecast | Job] = []
        while (request := first(stream.requests)) is not None and request is not job:
            stream.requests.popleft()
            if isinstance(request, Forecast):
                request.reply.give(StreamError(str(error)))
            else:
                kept.append(request)
        stream.requests.extendleft(reversed(kept))
        stream.room.ring()

    def _remove(self, push: Push) -> bool:
        """Remove a picture from its queue; return False if a push has just dropped the picture."""
        try:
            push.stream.pictures.remove(push)
        except ValueError:
            return False
        return True

    def fail(self, stream: ScheduledStream, failure: StreamError) -> None:
        """Mark a stream as failed, and drop its queued pictures and forecasts; a closed stream is left unchanged."""
        if not stream.closed:
            stream.failure = failure
            self.failed.add(stream)
            for counters in (stream.counters, self.counters):
                counters.failures += 1
            self.clear(stream, "failed", StreamError(failed(stream)))

    def heal(self, stream: ScheduledStream) -> None:
        """Make a stream that has failed usable again."""
        stream.failure = None
        self.failed.discard(stream)

    def delay(self) -> float:
        """Return the time to wait for more streams before the next step (s); infinite if there is nothing to do."""
        if self.forecasts or self.jobs:
            return 0
        if not self.waiting:
            return math.inf
        if self.holds:
            return max(0.0, self.first + MAX_HOLD_S - time.perf_counter())
        if len(self.waiting) >= len(self.streams) - len(self.failed):
            return 0
        return max(0.0, self.first + self.max_wait - time.perf_counter())

    def take_jobs(self) -> Iterator[Job]:
        """Yield the jobs that are due and whose callers still wait."""
        for stream in list(self.jobs) if self.jobs else ():
            for job in _jobs(stream):
                if job.drops and job.claim("thread"):
                    self._drop_before(stream, job, "reset", StreamError("stream: was reset before this forecast began"))
            while isinstance(request := first(stream.requests), Job) and _is_due(request):
                stream.requests.popleft()
                if request.claim("thread"):
                    yield request
            if not _jobs(stream):
                self.jobs.pop(stream, None)

    def take(self, begin: Callable[[Forecast], None]) -> list[Push | Forecast]:
        """Return the items of the next steps: the next picture of each stream, and all forecasts in progress.

        Args:
            begin: function that is called with each forecast that is due.
        """
        now = time.perf_counter()
        pushes = [push for stream in self.waiting if (push := self._next_push(stream, begin, now)) is not None]
        came = {
            stream: one.came for stream in self.waiting if (one := first(stream.pictures) or first(stream.requests))
        }
        self.waiting = dict.fromkeys(came)
        self.first = min(came.values(), default=now)
        return [*pushes, *self.forecasts]

    def _next_push(self, stream: ScheduledStream, begin: Callable[[Forecast], None], now: float) -> Push | None:
        while True:
            # Read the picture before the request: any request made before this picture was pushed is then visible.
            push = first(stream.pictures)
            request = first(stream.requests)
            if request is not None:
                if _is_due(request):
                    if isinstance(request, Job) or stream.forecast is not None:
                        return None
                    stream.requests.popleft()
                    stream.room.ring()
                    begin(request)
                    continue
                push = first(stream.pictures)
            if push is None:
                return None
            if self._remove(push):
                stream.room.ring()
                if now <= push.deadline:
                    return push
                self.drop(stream, "late")

    def in_time(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that may be stepped now.

        Rows of pictures that failed are skipped. A picture whose deadline passed before its first step is dropped.
        """
        now = time.perf_counter()
        for row in rows:
            if isinstance(push := row.owner, Push) and not push.over:
                if push.started is None and now > push.deadline:
                    push.over, push.rows = True, []
                    self.drop(push.stream, "late")
                push.started = push.started or now
        return [row for row in rows if isinstance(row.owner, Forecast) or not row.owner.over]


T = TypeVar("T")


def first(queue: "deque[T]") -> T | None:
    """Return the first item of a queue, or None if the queue is empty.

    Only the thread that steps the streams may call this function. Other threads never remove the last item, so the
    queue cannot become empty between the test and the access.
    """
    return queue[0] if queue else None


def failed(stream: ScheduledStream) -> str:
    """Return the text of the error for any use of a stream that has failed."""
    return f"stream: failed at {stream.failure}; reset or restore it"


def _jobs(stream: ScheduledStream) -> list[Job]:
    # Iterate over a copy, because callers may append to the queue.
    return [request for request in list(stream.requests) if isinstance(request, Job)]


def _is_due(request: Forecast | Job) -> bool:
    """Return True if all pictures that were pushed before the request are done."""
    push = first(request.stream.pictures)
    return push is None or push.number > request.turn
