"""The thread that steps many streams: whoever is ready goes together, and a failure stays with whom it hit."""

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
from e3d_deploy.runtime.faults import clear
from e3d_deploy.runtime.renewal import Renewal
from e3d_deploy.runtime.snapshot import Snapshot, taken_over
from e3d_deploy.runtime.streams.queues import Queues
from e3d_deploy.runtime.streams.requests import CLOSED, Forecast, Gone, Job, Push, Row, Video
from e3d_deploy.runtime.streams.waiting import FOREVER

log = logging.getLogger(__name__)

T = TypeVar("T")
OnBadOutput = Literal["raise", "hold", "reset"]
"""Handling of a prediction that is not finite: fail the stream, hold it at its last good picture, or reset it."""


class Scheduler:
    """Steps streams in a thread of its own, which alone touches their states and the backend.

    Raises:
        ConfigError: `on_bad_output` is unknown, or the backend cannot step one stream alone.
    """

    def __init__(self, backend: Backend, config: ModelConfig, queues: Queues, on_bad_output: OnBadOutput) -> None:
        if not isinstance(on_bad_output, str) or on_bad_output not in get_args(OnBadOutput):
            raise ConfigError(
                f"on_bad_output: got {on_bad_output!r}, expected one of {', '.join(get_args(OnBadOutput))}"
            )
        self.queues, self.on_bad_output = queues, on_bad_output
        self.batcher = Batcher(backend, config)
        self.steps = dict.fromkeys(backend.sizes, 0)
        """Number of steps so far, by step size."""
        self.thread = threading.Thread(target=self._run, name="e3d-streams", daemon=True)
        self._owner: Gone | None = None

    # What any thread may call.

    def start(self, owner: object) -> None:
        """Start the thread, which ends at the latest when its owner is dropped.

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
                    f"streams: no thread can be started ({error}); close others, or allow more"
                ) from error
            raise
        process.wait_at_exit(self, self.queues.rest)  # a thread in a library while Python ends would abort the process

    def forecast(self, forecast: Forecast, timeout: Timeout, what: str) -> NDArray[Any]:
        """Make a forecast, which begins where the stream is after what waits before."""
        try:
            self.queues.ask(forecast, timeout, what)
            if not forecast.reply.wait(timeout):
                raise timeout.error(what)
            return forecast.reply.result()
        except BaseException:  # such as Ctrl-C; nobody waits for the rest
            forecast.reply.unwanted = True
            raise
        finally:
            self._settle()

    def call(
        self, video: Video, function: Callable[[], T], *, what: str, timeout: Timeout = FOREVER, drops: bool = False
    ) -> T:
        """Call a function in the stream's turn, and wait for it; a call that failed is not done later.

        Args:
            what: name of the call, for errors.
            drops: call it at once, and drop what waits before it.
        """
        job = Job(video, function, time.perf_counter(), drops)
        try:
            self.queues.ask(job, timeout, what)
            if not job.reply.wait(timeout) and job.claim("caller"):
                raise timeout.error(what)
            result: T = job.reply.result()
            return result
        except BaseException:
            if not job.claim("caller"):  # the thread is at it, which does not last
                job.reply.wait()
            raise
        finally:
            del job  # an exception holds this frame, which would hold the exception
            self._settle()

    def _settle(self) -> None:
        """After a call of an exit handler, wait until the thread is out of every library, as Python may end now."""
        if process.is_ending():
            with suppress(StreamError):  # another thread's, which only exit handlers may keep from ending
                self.queues.check()
                self.queues.rest()

    def begin_at(self, video: Video, snapshot: Snapshot | None, *, what: str) -> None:
        """Give a stream another state, the one before the first frame without a snapshot, and wait for it.

        What waits is dropped, and a failure is over.
        """

        def begin() -> None:
            self._set(video, snapshot)
            self.queues.heal(video)

        self.call(video, begin, what=what, drops=True)

    def end(self, video: Video) -> None:
        """Close a stream: what waits is dropped. It can be closed twice."""
        self.queues.end(video)

    def close(self, timeout_ms: float | None = None) -> None:
        """End the thread after the step that it is in; all that waits fails. It can be called twice.

        Args:
            timeout_ms: how long to wait for that; None waits for ever. In the thread itself, or in a step of another
                one, it does not wait.

        Raises:
            StreamError: the time is over; another call goes on waiting.
        """
        timeout, queues = Timeout(timeout_ms), self.queues
        if os.getpid() != queues.pid:  # a copy in a forked process, which has no thread
            return
        queues.close()
        if threading.get_ident() != queues.thread_id and not process.in_backend():
            if not queues.bell.wait(lambda: queues.ended, timeout):
                raise timeout.error("close")
            if self.thread.ident is not None:
                self.thread.join()

    # What the thread does.

    def _run(self) -> None:
        queues = self.queues
        queues.thread_id = threading.get_ident()
        process.SERVING.add(queues.thread_id)
        try:
            while self._round():
                pass
        except BaseException as error:
            queues.broken = f"{type(error).__name__}: {error}"
            self._say(logging.ERROR, "the thread of the streams ended by an internal error", exc_info=error)
        finally:
            queues.closing = True
            try:
                self._end()
            finally:  # whatever it was, nobody waits for this thread any more
                process.SERVING.discard(queues.thread_id)
                queues.ended = True
                queues.bell.ring()

    def _end(self) -> None:
        """Let go of everything; a failure with one stream keeps nothing of the others."""
        for video in list(self.queues.videos):
            try:
                self._forget(video)
            except Exception as error:
                self._say(logging.ERROR, "a stream could not be closed in order", exc_info=error)
        self.batcher.close()
        if self.queues.dropped:
            self._warn("Streams")

    def _round(self) -> bool:
        """Wait for work and do it; False at the end."""
        queues = self.queues
        queues.listen(busy=bool(self.batcher.touched))
        if queues.closing:
            return False
        while queues.closed:
            self._forget_closed(*queues.closed.pop())
        if queues.resting:
            self._rest()
        for job in queues.take_jobs():  # before steps, as they may take away who would be stepped
            _do(job)
        for forecast in [one for one in queues.forecasts if one.reply.unwanted]:
            self._finish(forecast)
        runners = [] if queues.delay() else queues.take(self._begin)
        rows = [row for runner in runners for row in self._rows(runner)]
        self.batcher.tidy({row.member for row in rows})
        for together in self.batcher.split(rows):
            self._step(together)
        return True

    def _rest(self) -> None:
        """Drop all that waits or is on its way; from now on only exit handlers are heard."""
        queues, error = self.queues, StreamError("streams: Python ends; ask before, or from an exit handler")
        for video in list(queues.videos):
            queues.clear(video, "closed", error, jobs=True)
        for forecast in list(queues.forecasts):
            self._finish(forecast, error)
        queues.is_quiet = True
        while queues.resting:
            queues.resting.pop().give(None)
        queues.bell.ring()

    def _forget_closed(self, video: Video, dropped: bool) -> None:
        known = video in self.queues.videos
        self._forget(video)
        if dropped and known:
            self._warn(f"SlotStream ({video.pushed} pictures seen)")

    def _warn(self, what: str) -> None:
        try:
            warnings.warn(f"{what}: dropped without close; close it, or leave its `with` block", ResourceWarning, 2)
        except Exception as error:  # where warnings are errors, or cannot be shown; there is nobody to raise it to
            self._say(logging.WARNING, str(error))

    def _say(self, level: int, words: str, *, exc_info: BaseException | None = None) -> None:
        """Log something; a handler that raises harms nobody."""
        try:
            log.log(level, "%s", words, exc_info=exc_info)
        except Exception:
            if logging.raiseExceptions:
                with suppress(Exception):  # stderr may be closed
                    traceback.print_exc()

    def _rows(self, runner: Push | Forecast) -> list[Row]:
        """Return the rows that a picture or a forecast has in this round; a picture that is only kept has none."""
        if isinstance(runner, Forecast):
            return [Row(runner, runner.member)]
        video = runner.video
        if video.renewal.kind == "replay":
            if (now := time.perf_counter()) > runner.deadline:
                self.queues.drop(video, "late")
            else:
                self._saw(runner, now, now)
                self._keep(runner)
            return []
        members = next_members(self.batcher, video.renewal, video.pushed, video.members)
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
                self._broke(rows[0].owner, error)
                return
            self._say(logging.WARNING, f"a step of {len(rows)} states failed, so each is stepped alone ({error})")
        else:
            ended, said, broken = time.perf_counter(), list[str](), list[tuple[Push | Forecast, Exception]]()
            self.steps[batch.size] += 1
            for number, row in enumerate(rows):
                try:
                    prediction = predictions[number : number + 1].copy()  # a view would keep all
                    row.after = batch, number
                    said += self._stepped(row, prediction, finite=bool(good[number]), ended=ended)
                except Exception as fault:
                    self.batcher.touched.add(batch)
                    broken.append((row.owner, fault))
            for words in said:  # when all is in order again, as whoever reads the log may ask the streams something
                self._say(logging.WARNING, words)
            for owner, cause in broken:
                self._broke(owner, cause)
            return
        for row in rows:
            self._step([row])

    def _stepped(self, row: Row, prediction: NDArray[np.float32], *, finite: bool, ended: float) -> list[str]:
        """Record that a row was stepped, and move its owner on after its last row; return lines for the log."""
        assert row.after is not None
        owner = row.owner
        if isinstance(owner, Forecast):
            if not finite:
                self.batcher.touched.add(row.after[0])
                return self._is_bad(owner)
            self.batcher.move(owner.member, *row.after)
            self._went_on(owner, prediction)
            return []
        return self._saw_one(owner, row, prediction, finite=finite, ended=ended)

    def _saw_one(
        self, push: Push, row: Row, prediction: NDArray[np.float32], *, finite: bool, ended: float
    ) -> list[str]:
        """Record that one state saw a picture; move the stream on if it was the last."""
        push.finite = push.finite and finite
        if row is push.rows[0]:
            push.prediction = prediction
        if any(other.after is None for other in push.rows):
            return []
        assert push.started is not None
        self._saw(push, push.started, ended)
        if not push.finite:
            self._abandon(push)
            return self._is_bad(push)
        self._moved(push)
        return []

    def _abandon(self, push: Push) -> None:
        """Leave the states of a stream as they were before a picture."""
        push.over = True
        for row in push.rows:
            if row.member not in push.video.members:
                self.batcher.leave(row.member)
            if row.after is not None:
                self.batcher.touched.add(row.after[0])
        push.rows = []  # which refer to it

    def _saw(self, push: Push, started: float, ended: float) -> None:
        for counters in (push.video.counters, self.queues.counters):
            counters.saw(queueing=started - push.came, latency=ended - push.came)

    def _moved(self, push: Push) -> None:
        """Put a stream into the states after a picture, once all of them have seen it."""
        video, members = push.video, [row.member for row in push.rows]
        for ended in set(video.members).difference(members):
            self.batcher.leave(ended)
        for row in push.rows:
            assert row.after is not None
            self.batcher.move(row.member, *row.after)
        push.rows = []  # which refer to it
        video.members, video.prediction = members, push.prediction
        video.pushed, video.stepped, video.changes = video.pushed + 1, video.stepped + 1, video.changes + 1

    def _keep(self, push: Push) -> None:
        """Keep a picture of a stream that replays; the state of its last forecast is out of date now."""
        video = push.video
        self._leave(video)
        video.frames.append(push.seen)
        if len(video.frames) > video.renewal.context_length:
            video.frames.popleft()
        video.pushed, video.stepped, video.changes = video.pushed + 1, video.stepped + 1, video.changes + 1

    def _leave(self, video: Video) -> None:
        """Let go of all states of a stream."""
        for member in video.members:
            self.batcher.leave(member)
        video.members, video.prediction = [], None

    def _begin(self, forecast: Forecast) -> None:
        video = forecast.video
        if forecast.reply.unwanted:
            return
        if video.prediction is None and not video.frames:
            forecast.reply.give(StreamError("nothing was pushed yet; push at least one picture before predicting"))
            return
        try:
            if video.prediction is None:
                forecast.context.extend(video.frames)
                forecast.member, forecast.seen = self.batcher.member(), forecast.context.popleft()
            else:
                forecast.member = Member(video.members[0].batch, video.members[0].row)
        except Exception as error:  # no memory; the stream is unaffected
            forecast.reply.give(clear(error))
            return
        video.forecast, forecast.changes = forecast, video.changes
        self.queues.forecasts.append(forecast)
        if video.prediction is not None:
            self._add(forecast, video.prediction)

    def _went_on(self, forecast: Forecast, prediction: NDArray[np.float32]) -> None:
        """Show a forecast its next picture, or add a frame to it."""
        if forecast.context:
            forecast.seen = forecast.context.popleft()
            return
        video = forecast.video
        if forecast.number == 0 and forecast.changes == video.changes:  # the state after the pictures that were kept
            video.members, video.prediction = [Member(forecast.member.batch, forecast.member.row)], prediction
        self._add(forecast, prediction)

    def _add(self, forecast: Forecast, prediction: NDArray[np.float32]) -> None:
        try:
            pictures.put(prediction[0], forecast.result[forecast.number])
        except Exception as error:  # no memory; the stream is unaffected
            self._finish(forecast, clear(error))
            return
        forecast.number, forecast.seen = forecast.number + 1, prediction
        if forecast.number == len(forecast.result):
            for counters in (forecast.video.counters, self.queues.counters):
                counters.forecast(time.perf_counter() - forecast.came)
            self._finish(forecast, forecast.result)

    def _finish(self, forecast: Forecast, outcome: NDArray[Any] | Exception | None = None) -> None:
        """Take a forecast off its way; without an outcome nobody waits for it."""
        self.batcher.leave(forecast.member)
        self.queues.forecasts.remove(forecast)
        forecast.video.forecast = None
        if outcome is not None:
            forecast.reply.give(outcome)

    def _is_bad(self, runner: Push | Forecast) -> list[str]:
        """Handle a prediction that is not finite; return lines for the log."""
        if isinstance(runner, Forecast):
            what = (
                f"forecast frame {runner.number}: is not finite; forecast less far"
                if runner.number
                else "a picture that was replayed: its prediction is not finite; check the precision"
            )
            self._finish(runner, StreamError(what))
            return []
        video, frame = runner.video, runner.video.stepped
        video.stepped += 1
        for counters in (video.counters, self.queues.counters):
            counters.bad(frame)
        if self.on_bad_output == "raise":
            self.queues.fail(video, StreamError(f"frame {frame}: the prediction is not finite"))
        elif self.on_bad_output == "reset":
            self._set(video, None)
        return [f"frame {frame} of a stream: the prediction is not finite ({self.on_bad_output})"]

    def _broke(self, runner: Push | Forecast, error: Exception) -> None:
        """Fail a stream, or a forecast, of which a step failed."""
        cause = clear(error)
        # As text, and then without: whoever keeps the record or the error would keep frames, which hold states.
        self._say(logging.WARNING, f"a step failed: {''.join(traceback.format_exception(error)).strip()}")
        chained: BaseException | None = error
        while chained is not None and chained.__traceback__ is not None:
            chained.__traceback__, chained = None, chained.__cause__ or chained.__context__
        number = runner.video.stepped if isinstance(runner, Push) else runner.number
        failure = StreamError(f"{'frame' if isinstance(runner, Push) else 'forecast frame'} {number}: {cause}")
        failure.__cause__ = cause
        if isinstance(runner, Push):
            self._abandon(runner)
            runner.video.stepped += 1
            self.queues.fail(runner.video, failure)
        else:
            self._finish(runner, failure)

    def snapshot(self, video: Video, identity: str) -> Snapshot:
        """Take a snapshot of a stream; in the thread, as a job."""
        replays = video.renewal.kind == "replay"
        to_arrays, alone = self.batcher.backend.to_arrays, self.batcher.alone
        members = [] if replays else video.members or [self.batcher.member()]
        return Snapshot(
            identity,
            tuple(taken_over(to_arrays(alone(member))) for member in members),
            None if replays else copy(video.prediction),
            video.pushed,
            str(video.renewal),
            video.renewal.context_length,
            pictures.stack(video.frames, self.batcher.config) if replays else None,
        )

    def put_beside(self, video: Video, other: Video) -> None:
        """Put a stream where another one is; in the thread, as a job."""
        self._leave(other)
        other.members = [Member(member.batch, member.row) for member in video.members]
        other.frames = video.frames.copy()
        other.prediction, other.pushed, other.stepped = video.prediction, video.pushed, video.stepped
        other.changes += 1

    def _set(self, video: Video, snapshot: Snapshot | None) -> None:
        """Put a stream before its first frame, or where a snapshot is."""
        states = [] if snapshot is None else [self.batcher.backend.from_arrays(state) for state in snapshot.states]
        self._leave(video)
        video.frames.clear()
        video.changes += 1
        if snapshot is not None:
            video.renewal = Renewal.parse(snapshot.renewal, snapshot.context_length)
            video.prediction = copy(snapshot.prediction)
            if snapshot.frames is not None:
                video.frames.extend(frame[None].copy() for frame in snapshot.frames)
            if snapshot.pushed:
                video.members = [Member(self.batcher.batch(state)) for state in states]
        video.pushed = video.stepped = 0 if snapshot is None else snapshot.pushed

    def _forget(self, video: Video) -> None:
        """Let go of all that a closed stream held."""
        queues, error = self.queues, self.queues.closed_error() if self.queues.closing else StreamError(CLOSED)
        queues.videos.pop(video, None)
        queues.failed.discard(video)
        queues.waiting.pop(video, None)
        queues.jobs.pop(video, None)
        video.closed = True
        queues.clear(video, "closed", error, jobs=True)
        if video.forecast is not None:
            self._finish(video.forecast, error)
        self._leave(video)
        video.frames.clear()


def _do(job: Job) -> None:
    try:
        job.reply.give(job.function())
    except Exception as error:
        job.reply.give(clear(error))
    except BaseException as error:  # ends the thread, and nobody may wait for it
        job.reply.give(error)
        raise
