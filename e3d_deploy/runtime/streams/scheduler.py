"""The thread that steps many streams.

Streams that are ready are stepped in one batch. A failure affects only the stream in which it occurs.
"""

import logging
import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import ConfigError, ResourceLimit, StreamError
from e3d_deploy.runtime import pictures, process
from e3d_deploy.runtime.aged import next_members
from e3d_deploy.runtime.arguments import Timeout
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.batching import Batcher, Member
from e3d_deploy.runtime.faults import translated
from e3d_deploy.runtime.renewal import Renewal
from e3d_deploy.runtime.snapshot import Snapshot, freeze_owned
from e3d_deploy.runtime.streams.queues import Queues
from e3d_deploy.runtime.streams.requests import CLOSED, Forecast, Gone, Job, Push, Row, ScheduledStream
from e3d_deploy.runtime.streams.waiting import FOREVER

log = logging.getLogger(__name__)

T = TypeVar("T")
OnBadOutput = Literal["raise", "hold", "reset"]
"""Handling of a prediction that is not finite: fail the stream, ignore the picture, or reset the stream."""


class Scheduler:
    """Steps streams in a thread of its own; only this thread uses the states of the streams and the backend.

    Raises:
        ConfigError: `on_bad_output` is unknown, or the backend cannot step a single stream.
    """

    def __init__(self, backend: Backend, config: ModelConfig, queues: Queues, on_bad_output: OnBadOutput) -> None:
        if not isinstance(on_bad_output, str) or on_bad_output not in get_args(OnBadOutput):
            raise ConfigError(
                f"on_bad_output: got {on_bad_output!r}, expected one of {', '.join(get_args(OnBadOutput))}"
            )
        self.queues, self.on_bad_output = queues, on_bad_output
        self.batcher = Batcher(backend, config)
        self.steps = dict.fromkeys(backend.sizes, 0)
        """Number of steps so far, by batch size."""
        self.thread = threading.Thread(target=self._run, name="e3d-streams", daemon=True)
        self._owner: Gone | None = None

    # Any thread may call the methods below.

    def start(self, owner: object) -> None:
        """Start the thread, which ends when the streams are closed or `owner` is dropped.

        Args:
            owner: the user's `Streams` object.

        Raises:
            ResourceLimit: no thread can be started.
        """
        self._owner = Gone(owner, self.queues.mailbox.put, None)
        self.queues.ended = False
        try:
            self.thread.start()
        except BaseException as error:
            self.queues.close()
            if isinstance(error, RuntimeError | MemoryError):
                self.queues.ended = True
                raise ResourceLimit(
                    f"streams: no thread can be started ({error}); end other threads, or raise the system's limit"
                ) from error
            raise
        # A thread that is inside a library when the interpreter is destroyed would abort the process.
        process.wait_at_exit(self, self.queues.drain)

    def forecast(self, forecast: Forecast, timeout: Timeout, what: str) -> NDArray[Any]:
        """Queue a forecast, wait for it, and return its result; it starts once everything queued earlier is done.

        Args:
            what: name of the call, for errors.
        """
        try:
            self.queues.ask(forecast, timeout, what)
            if not forecast.reply.wait(timeout):
                raise timeout.error(what)
            return forecast.reply.result()
        except BaseException:  # including Ctrl-C: the thread then stops the forecast
            forecast.reply.unwanted = True
            raise
        finally:
            self._settle()

    def call(
        self,
        stream: ScheduledStream,
        function: Callable[[], T],
        *,
        what: str,
        timeout: Timeout = FOREVER,
        drops: bool = False,
    ) -> T:
        """Call a function in the thread when its turn comes, and return the function's result.

        By then the pictures queued earlier are done, and the forecasts queued earlier have begun. If this call raises
        an error, for example because it took too long, the function does not run later.

        Args:
            what: name of the call, for errors.
            drops: drop the pictures and forecasts queued earlier, and call the function without delay.
        """
        job = Job(stream, function, time.perf_counter(), drops)
        try:
            self.queues.ask(job, timeout, what)
            if not job.reply.wait(timeout) and job.claim("caller"):
                raise timeout.error(what)
            result: T = job.reply.result()
            return result
        except BaseException:
            if not job.claim("caller"):  # The thread is already running the function, which is short.
                job.reply.wait()
            raise
        finally:
            # An exception refers to this frame, and `job` refers to the exception: break the reference cycle.
            del job
            self._settle()

    def _settle(self) -> None:
        """Wait until the thread is outside all libraries, if an exit handler made the call.

        If that handler is the last one, the interpreter is destroyed next.
        """
        if process.is_ending():
            with suppress(StreamError):  # The calling thread runs no exit handlers, so it must not wait.
                self.queues.check()
                self.queues.drain()

    def begin_at(self, stream: ScheduledStream, snapshot: Snapshot | None, *, what: str) -> None:
        """Set a stream to a snapshot, or to the initial state if `snapshot` is None; return once the stream is set.

        Queued pictures and forecasts are dropped. A stream that has failed becomes usable again.
        """

        def begin() -> None:
            self._set_state(stream, snapshot)
            self.queues.heal(stream)

        self.call(stream, begin, what=what, drops=True)

    def end(self, stream: ScheduledStream) -> None:
        """Close a stream and drop its queued items; a second call does nothing."""
        self.queues.end(stream)

    def close(self, timeout_ms: float | None = None) -> None:
        """End the thread after the step in progress; all queued items fail. A second call does nothing.

        Args:
            timeout_ms: maximum time to wait for the end of the thread (ms); None waits without a limit. A call from the
                thread itself, or from a thread that is inside a step, does not wait.

        Raises:
            StreamError: the thread did not end in time; call `close` again to wait for it.
        """
        timeout, queues = Timeout(timeout_ms), self.queues
        if os.getpid() != queues.pid:  # This process was forked, and the thread does not exist here.
            return
        queues.close()
        if threading.get_ident() != queues.thread_id and not process.in_backend():
            if not queues.bell.wait(lambda: queues.ended, timeout):
                raise timeout.error("close")
            if self.thread.ident is not None:
                self.thread.join()

    # Only the thread calls the methods below.

    def _run(self) -> None:
        queues = self.queues
        queues.thread_id = threading.get_ident()
        process.SERVING.add(queues.thread_id)
        try:
            while self._round():
                pass
        except BaseException as error:
            queues.broken = f"{type(error).__name__}: {error}"
            self._log(logging.ERROR, "streams: their thread ended with an internal error", exc_info=error)
        finally:
            queues.closing = True
            try:
                self._end()
            finally:  # After any error, wake the callers that wait for the end of the thread.
                process.SERVING.discard(queues.thread_id)
                queues.ended = True
                queues.bell.ring()

    def _end(self) -> None:
        """Free all streams; an error with one stream is logged, and the remaining streams are still freed."""
        for stream in list(self.queues.streams):
            try:
                self._forget(stream)
            except Exception as error:
                self._log(logging.ERROR, "streams: closing a stream failed", exc_info=error)
        self.batcher.close()
        if self.queues.dropped:
            self._warn("Streams")

    def _round(self) -> bool:
        """Wait for work and do one round of it; return False once the streams are closed."""
        queues = self.queues
        queues.read_messages(busy=bool(self.batcher.touched))
        if queues.closing:
            return False
        while queues.closed:
            self._forget_closed(*queues.closed.pop())
        if queues.draining:
            self._rest()
        for job in queues.take_jobs():  # Jobs come before steps, because they may drop items that would be stepped.
            _run_job(job)
        for forecast in [one for one in queues.forecasts if one.reply.unwanted]:
            self._finish(forecast)
        runners = [] if queues.delay() else queues.take(self._begin)
        rows = [row for runner in runners for row in self._rows(runner)]
        self.batcher.tidy({row.member for row in rows})
        for together in self.batcher.split(rows):
            self._step(together)
        return True

    def _rest(self) -> None:
        """Drop all queued items and forecasts in progress; from then on, read only messages from exit handlers."""
        queues = self.queues
        error = StreamError("streams: Python is shutting down; make the call earlier, or in an exit handler")
        for stream in list(queues.streams):
            queues.clear(stream, "closed", error, jobs=True)
        for forecast in list(queues.forecasts):
            self._finish(forecast, error)
        queues.ignores_messages = True
        while queues.draining:
            queues.draining.pop().give(None)
        queues.bell.ring()

    def _forget_closed(self, stream: ScheduledStream, dropped: bool) -> None:
        known = stream in self.queues.streams
        self._forget(stream)
        if dropped and known:
            self._warn(f"SlotStream ({stream.pushed} pictures seen)")

    def _warn(self, what: str) -> None:
        try:
            warnings.warn(f"{what}: dropped without close; close it, or use it in a `with` block", ResourceWarning, 2)
        except Exception as error:  # A filter turned the warning into an error, which no caller could catch here.
            self._log(logging.WARNING, str(error))

    def _log(self, level: int, text: str, *, exc_info: BaseException | None = None) -> None:
        """Log a message; if a log handler raises an error, print the error and continue."""
        try:
            log.log(level, "%s", text, exc_info=exc_info)
        except Exception:
            if logging.raiseExceptions:
                with suppress(Exception):  # Standard error may be closed.
                    traceback.print_exc()

    def _rows(self, runner: Push | Forecast) -> list[Row]:
        """Return the rows of a picture or a forecast in this round; a picture of a `replay` stream has no rows."""
        if isinstance(runner, Forecast):
            return [Row(runner, runner.member)]
        stream = runner.stream
        if stream.renewal.kind == "replay":
            if (now := time.perf_counter()) > runner.deadline:
                self.queues.drop(stream, "late")
            else:
                self._count(runner, now, now)
                self._keep(runner)
            return []
        members = next_members(self.batcher, stream.renewal, stream.pushed, stream.members)
        runner.rows = [Row(runner, member) for member in members]
        return runner.rows

    def _step(self, taken: Sequence[Row]) -> None:
        rows = self.queues.in_time(taken)
        if not rows:
            return
        try:
            predictions, batch = self.batcher.step(rows)
            good: NDArray[np.bool_] = np.asarray(np.isfinite(predictions).all(axis=(1, 2, 3)))
        except Exception as error:
            if len(rows) == 1:
                self._handle_error(rows[0].owner, error)
                return
            self._log(
                logging.WARNING, f"streams: a step of {len(rows)} states failed ({error}); each state is stepped alone"
            )
        else:
            ended, remarks, broken = time.perf_counter(), list[str](), list[tuple[Push | Forecast, Exception]]()
            self.steps[batch.size] += 1
            for number, row in enumerate(rows):
                try:
                    # A copy, because a view would keep the predictions of all rows in memory.
                    prediction = predictions[number : number + 1].copy()
                    row.after = batch, number
                    remarks += self._record_row(row, prediction, finite=bool(good[number]), ended=ended)
                except Exception as fault:
                    self.batcher.touched.add(batch)
                    broken.append((row.owner, fault))
            for text in remarks:  # Log only after all rows are updated, because a log handler may use the streams.
                self._log(logging.WARNING, text)
            for owner, cause in broken:
                self._handle_error(owner, cause)
            return
        for row in rows:
            self._step([row])

    def _record_row(self, row: Row, prediction: NDArray[np.float32], *, finite: bool, ended: float) -> list[str]:
        """Record that a row was stepped, and advance its owner after the owner's last row.

        Returns:
            Messages to log.
        """
        assert row.after is not None
        owner = row.owner
        if isinstance(owner, Forecast):
            if not finite:
                self.batcher.touched.add(row.after[0])
                return self._handle_bad_output(owner)
            self.batcher.move(owner.member, *row.after)
            self._continue_forecast(owner, prediction)
            return []
        return self._record_state(owner, row, prediction, finite=finite, ended=ended)

    def _record_state(
        self, push: Push, row: Row, prediction: NDArray[np.float32], *, finite: bool, ended: float
    ) -> list[str]:
        """Record that one state of a stream saw a picture, and advance the stream after the last state.

        Returns:
            Messages to log.
        """
        push.finite = push.finite and finite
        if row is push.rows[0]:
            push.prediction = prediction
        if any(other.after is None for other in push.rows):
            return []
        assert push.started is not None
        self._count(push, push.started, ended)
        if not push.finite:
            self._abandon(push)
            return self._handle_bad_output(push)
        self._advance(push)
        return []

    def _abandon(self, push: Push) -> None:
        """Give up a picture, so that its stream keeps the states before the picture."""
        push.over = True
        for row in push.rows:
            if row.member not in push.stream.members:
                self.batcher.leave(row.member)
            if row.after is not None:
                self.batcher.touched.add(row.after[0])
        push.rows = []  # The rows refer to `push`: break the reference cycle.

    def _count(self, push: Push, started: float, ended: float) -> None:
        for counters in (push.stream.counters, self.queues.counters):
            counters.saw(queueing=started - push.came, latency=ended - push.came)

    def _advance(self, push: Push) -> None:
        """Move a stream to the states after a picture, once every state has seen the picture."""
        stream, members = push.stream, [row.member for row in push.rows]
        for ended in set(stream.members).difference(members):
            self.batcher.leave(ended)
        for row in push.rows:
            assert row.after is not None
            self.batcher.move(row.member, *row.after)
        push.rows = []  # The rows refer to `push`: break the reference cycle.
        stream.members, stream.prediction = members, push.prediction
        stream.pushed, stream.stepped, stream.changes = stream.pushed + 1, stream.stepped + 1, stream.changes + 1

    def _keep(self, push: Push) -> None:
        """Store a picture of a `replay` stream, and drop the state of its last forecast, which is out of date."""
        stream = push.stream
        self._leave(stream)
        stream.frames.append(push.seen)
        if len(stream.frames) > stream.renewal.context_length:
            stream.frames.popleft()
        stream.pushed, stream.stepped, stream.changes = stream.pushed + 1, stream.stepped + 1, stream.changes + 1

    def _leave(self, stream: ScheduledStream) -> None:
        """Drop all states of a stream, and its prediction."""
        for member in stream.members:
            self.batcher.leave(member)
        stream.members, stream.prediction = [], None

    def _begin(self, forecast: Forecast) -> None:
        """Start a forecast that is due, from the current state of its stream."""
        stream = forecast.stream
        if forecast.reply.unwanted:
            return
        if stream.prediction is None and not stream.frames:
            forecast.reply.give(
                StreamError("stream: no picture was pushed yet; push at least one picture before a forecast")
            )
            return
        try:
            if stream.prediction is None:
                forecast.context.extend(stream.frames)
                forecast.member, forecast.seen = self.batcher.member(), forecast.context.popleft()
            else:
                forecast.member = Member(stream.members[0].batch, stream.members[0].row)
        except Exception as error:  # Memory may run out, for example. The stream is unaffected.
            forecast.reply.give(translated(error))
            return
        stream.forecast, forecast.changes = forecast, stream.changes
        self.queues.forecasts.append(forecast)
        if stream.prediction is not None:
            self._add_frame(forecast, stream.prediction)

    def _continue_forecast(self, forecast: Forecast, prediction: NDArray[np.float32]) -> None:
        """Continue a forecast after a step: take its next picture to replay, or add the prediction to its frames."""
        if forecast.context:
            forecast.seen = forecast.context.popleft()
            return
        stream = forecast.stream
        # The state has seen all stored pictures: keep it for later forecasts, unless the stream has changed since.
        if forecast.number == 0 and forecast.changes == stream.changes:
            stream.members, stream.prediction = [Member(forecast.member.batch, forecast.member.row)], prediction
        self._add_frame(forecast, prediction)

    def _add_frame(self, forecast: Forecast, prediction: NDArray[np.float32]) -> None:
        try:
            pictures.write_frame(prediction[0], forecast.result[forecast.number])
        except Exception as error:  # Memory may run out, for example. The stream is unaffected.
            self._finish(forecast, translated(error))
            return
        forecast.number, forecast.seen = forecast.number + 1, prediction
        if forecast.number == len(forecast.result):
            for counters in (forecast.stream.counters, self.queues.counters):
                counters.forecast(time.perf_counter() - forecast.came)
            self._finish(forecast, forecast.result)

    def _finish(self, forecast: Forecast, outcome: NDArray[Any] | Exception | None = None) -> None:
        """End a forecast.

        Args:
            outcome: result or error for the caller; None if the caller has stopped waiting.
        """
        self.batcher.leave(forecast.member)
        self.queues.forecasts.remove(forecast)
        forecast.stream.forecast = None
        if outcome is not None:
            forecast.reply.give(outcome)

    def _handle_bad_output(self, runner: Push | Forecast) -> list[str]:
        """Handle a prediction that is not finite.

        Returns:
            Messages to log.
        """
        if isinstance(runner, Forecast):
            what = (
                f"forecast frame {runner.number}: the prediction is not finite; use a shorter horizon, or export with "
                "another precision"
                if runner.number
                else "forecast: the prediction after a replayed picture is not finite; check the weights, or export "
                "with another precision"
            )
            self._finish(runner, StreamError(what))
            return []
        stream, frame = runner.stream, runner.stream.stepped
        stream.stepped += 1
        for counters in (stream.counters, self.queues.counters):
            counters.bad(frame)
        if self.on_bad_output == "raise":
            self.queues.fail(stream, StreamError(f"frame {frame}: the prediction is not finite"))
        elif self.on_bad_output == "reset":
            self._set_state(stream, None)
        return [f"streams: the prediction after frame {frame} of a stream is not finite ({self.on_bad_output})"]

    def _handle_error(self, runner: Push | Forecast, error: Exception) -> None:
        """Handle an error in a step: mark the picture's stream as failed, or end the forecast with the error."""
        cause = translated(error)
        # Log the traceback as text, and then remove it from the error: a traceback refers to stack frames, which refer
        # to states, and a log record or a caller may hold the error for long.
        self._log(logging.WARNING, f"streams: a step failed: {''.join(traceback.format_exception(error)).strip()}")
        chained: BaseException | None = error
        while chained is not None and chained.__traceback__ is not None:
            chained.__traceback__, chained = None, chained.__cause__ or chained.__context__
        number = runner.stream.stepped if isinstance(runner, Push) else runner.number
        failure = StreamError(f"{'frame' if isinstance(runner, Push) else 'forecast frame'} {number}: {cause}")
        failure.__cause__ = cause
        if isinstance(runner, Push):
            self._abandon(runner)
            runner.stream.stepped += 1
            self.queues.fail(runner.stream, failure)
        else:
            self._finish(runner, failure)

    def snapshot(self, stream: ScheduledStream, identity: str) -> Snapshot:
        """Return a snapshot of a stream; runs as a job."""
        replays = stream.renewal.kind == "replay"
        to_arrays, alone = self.batcher.backend.to_arrays, self.batcher.alone
        members = [] if replays else stream.members or [self.batcher.member()]
        return Snapshot(
            identity,
            tuple(freeze_owned(to_arrays(alone(member))) for member in members),
            None if replays else copy(stream.prediction),
            stream.pushed,
            str(stream.renewal),
            stream.renewal.context_length,
            pictures.stack(stream.frames, self.batcher.config) if replays else None,
        )

    def fork(self, stream: ScheduledStream, other: ScheduledStream) -> None:
        """Make `other` continue from the current state of `stream`; runs as a job."""
        self._leave(other)
        other.members = [Member(member.batch, member.row) for member in stream.members]
        other.frames = stream.frames.copy()
        other.prediction, other.pushed, other.stepped = stream.prediction, stream.pushed, stream.stepped
        other.changes += 1

    def _set_state(self, stream: ScheduledStream, snapshot: Snapshot | None) -> None:
        """Set a stream to a snapshot, or to the initial state if `snapshot` is None."""
        states = [] if snapshot is None else [self.batcher.backend.from_arrays(state) for state in snapshot.states]
        self._leave(stream)
        stream.frames.clear()
        stream.changes += 1
        if snapshot is not None:
            stream.renewal = Renewal.parse(snapshot.renewal, snapshot.context_length)
            stream.prediction = copy(snapshot.prediction)
            if snapshot.frames is not None:
                stream.frames.extend(frame[None].copy() for frame in snapshot.frames)
            if snapshot.pushed:
                stream.members = [Member(self.batcher.batch(state)) for state in states]
        stream.pushed = stream.stepped = 0 if snapshot is None else snapshot.pushed

    def _forget(self, stream: ScheduledStream) -> None:
        """Remove a closed stream with its states and queued items."""
        queues, error = self.queues, self.queues.closed_error() if self.queues.closing else StreamError(CLOSED)
        queues.streams.pop(stream, None)
        queues.failed.discard(stream)
        queues.waiting.pop(stream, None)
        queues.jobs.pop(stream, None)
        stream.closed = True
        queues.clear(stream, "closed", error, jobs=True)
        if stream.forecast is not None:
            self._finish(stream.forecast, error)
        self._leave(stream)
        stream.frames.clear()


def _run_job(job: Job) -> None:
    try:
        job.reply.give(job.function())
    except Exception as error:
        job.reply.give(translated(error))
    except BaseException as error:  # The error ends the thread, so the waiting caller must get its reply first.
        job.reply.give(error)
        raise
