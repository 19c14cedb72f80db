"""Tests that faults in one of many streams do not affect the others; the backend is a fake."""

import gc
import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy.errors import ResourceLimit, ShapeError, StreamError
from e3d_deploy.runtime import Predictor, SlotStream
from e3d_deploy.runtime.faults import NO_MEMORY
from tests.fake_backend import FakeBackend, alone, asked, picture, pushed, together, until

BAD = np.float32(66 / 255)
"""Value of the frame that a picture of value 66 becomes."""
Frames = NDArray[np.float32]


def raising(error: Exception) -> Callable[[Frames, Frames], Frames]:
    """Return a function for `FakeBackend.answer` that raises an error for a frame of value BAD."""

    def answer(seen: Frames, found: Frames) -> Frames:
        if (seen == BAD).any():
            raise type(error)(*error.args)  # a new error, because its traceback keeps stack frames alive
        return found

    return answer


def not_a_number(seen: Frames, found: Frames) -> Frames:
    return np.where((seen == BAD).all(axis=(1, 2, 3), keepdims=True), np.float32(np.nan), found)


def test_a_backend_that_raises_fails_the_culprit_alone(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams(max_wait_ms=60_000) as streams:
        slots = [streams.open() for _ in range(4)]
        together(slots, 10)
        backend.answer = raising(RuntimeError("the driver is gone"))
        culprit, *others = slots
        pushed(culprit, 66)
        for slot in others:
            pushed(slot, 20)
        for slot in others:
            slot.wait()
        with pytest.raises(StreamError, match="failed at frame 1: the driver is gone; reset or restore it") as caught:
            culprit.wait()
        assert isinstance(caught.value.__cause__, StreamError)
        assert isinstance(caught.value.__cause__.__cause__, RuntimeError)
        for use in (lambda: pushed(culprit, 1), lambda: culprit.predict(1)):
            with pytest.raises(StreamError, match="failed at frame 1: the driver is gone"):
                use()
        for slot in others:
            pushed(slot, 30)  # All healthy streams are ready, so they do not wait for the failed one.
        until(lambda: all(slot.pushed == 3 for slot in others))
        streams.scheduler.queues.max_wait = 0
        for slot in others:
            np.testing.assert_array_equal(slot.forecast(2), alone([10, 20, 30], 2))
        culprit.restore(culprit.snapshot())  # The snapshot is that after the last good frame.
        np.testing.assert_array_equal(pushed(culprit, 20).forecast(2), alone([10, 20], 2))
        culprit.reset()
        np.testing.assert_array_equal(pushed(culprit, 5).forecast(2), alone([5], 2))
        assert (culprit.stats()["failures"], streams.stats()["failed"]) == (1, 0)
        assert json.dumps(streams.stats())


def test_what_waits_behind_a_failure_fails_with_it(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams() as streams:
        stream = pushed(streams.open(), 1)
        backend.answer = raising(ValueError("no"))
        backend.entered.clear()
        backend.gate.clear()
        pushed(stream, 66)
        backend.entered.wait(60)
        pushed(stream, 2, 3)
        future = asked(stream, 3, np.uint8)
        backend.gate.set()
        with pytest.raises(StreamError, match="failed at frame 1: no"):
            future.result()
        assert stream.stats()["dropped"]["failed"] == 2
        assert stream.snapshot().pushed == 1


def test_a_forecast_that_fails_leaves_its_stream_as_it_is(backend: FakeBackend, predictor: Predictor) -> None:
    for answer, message in (
        (raising(RuntimeError("no")), "forecast frame 1: no"),
        (not_a_number, "forecast frame 1: the prediction is not finite"),
    ):
        with predictor.streams() as streams:
            stream = streams.open()
            backend.answer = lambda seen, found: np.full_like(found, BAD)
            pushed(stream, 1).wait()
            backend.answer = answer
            with pytest.raises(StreamError, match=message):
                stream.predict(3)
            backend.answer = lambda _, found: found
            assert stream.predict(3).shape == (3, 4, 8, 1)


@pytest.mark.parametrize("policy", ["raise", "hold", "reset"])
def test_an_answer_that_is_not_finite_does_what_the_policy_says(
    backend: FakeBackend, predictor: Predictor, policy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend.answer = not_a_number
    with predictor.streams(on_bad_output=policy, max_wait_ms=100) as streams:
        stream, other = streams.open(), streams.open()
        together([stream, other], 10)
        together([stream, other], 20)
        pushed(stream, 66)
        pushed(other, 30).wait()
        assert f"the prediction after frame 2 of a stream is not finite ({policy})" in caplog.text
        assert stream.stats()["bad_outputs"] == 1
        assert stream.stats()["last_bad_frame"] == 2
        if policy == "raise":
            with pytest.raises(StreamError, match="failed at frame 2: the prediction is not finite"):
                pushed(stream, 30)
        else:
            expected = [10, 20, 30] if policy == "hold" else [30]
            np.testing.assert_array_equal(pushed(stream, 30).forecast(2), alone(expected, 2))
        np.testing.assert_array_equal(pushed(other, 40).forecast(2), alone([10, 20, 30, 40], 2))


SAID = (
    "CUDA error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "OutOfMemoryError",
    "Failed to allocate memory for requested buffer of size 8",
    "std::bad_alloc",
    "bad allocation",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    "Could not allocate a tensor",
    "Requested amount of GPU memory (8 bytes) could not be allocated",
    "memory allocation failure",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "Available memory of 0 is smaller than requested bytes of 256",
)
"""Messages of libraries that ran out of memory."""


def test_each_way_to_say_that_memory_ran_out_is_tried() -> None:
    assert [words for words in NO_MEMORY if not any(words in said.lower() for said in SAID)] == []


@pytest.mark.parametrize("error", [MemoryError("too much"), *map(RuntimeError, SAID)], ids=repr)
def test_out_of_memory_is_a_clear_refusal_and_leaks_nothing(
    backend: FakeBackend, predictor: Predictor, error: Exception
) -> None:
    plain = predictor.stream()
    with predictor.streams(max_wait_ms=100) as streams:
        slots = [streams.open() for _ in range(2)]
        together(slots, 10)
        snapshot, live = slots[0].snapshot(), backend.live_rows
        backend.answer = raising(error)
        pushed(slots[0], 66)
        pushed(slots[1], 20).wait()
        with pytest.raises(StreamError, match=r"failed at frame 1: out of memory .*; close streams, or allow"):
            slots[0].wait()
        with pytest.raises(ResourceLimit, match="out of memory"):
            plain.push(picture(66))
        backend.from_arrays = raising_always(error)  # type: ignore[method-assign]
        with pytest.raises(ResourceLimit, match="out of memory"):
            streams.open(snapshot)
        assert streams.stats()["streams"] == 2
        slots[1].wait()
        slots[1].wait()
        gc.collect()  # also frees the errors that pytest.raises caught
        assert backend.live_rows <= live


def raising_always(error: Exception) -> Callable[..., Any]:
    def function(*_: object) -> Any:
        raise type(error)(*error.args)

    return function


def test_no_memory_to_part_from_others_is_no_harm(
    backend: FakeBackend, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with predictor.streams(max_wait_ms=100) as streams:
        slots = [streams.open() for _ in range(2)]
        together(slots, 10)
        monkeypatch.setattr(backend, "gather", raising_always(MemoryError()))
        slots[1].close()
        slots[0].wait()
        slots[0].wait()
        assert "memory for 2 rows stays in use for 1 states" in caplog.text
        monkeypatch.undo()
        np.testing.assert_array_equal(pushed(slots[0], 20).forecast(2), alone([10, 20], 2))


def test_a_wrong_picture_is_refused_where_it_is_pushed(predictor: Predictor) -> None:
    with predictor.streams() as streams:
        stream = pushed(streams.open(), 10)
        for wrong in (np.zeros((8, 8, 1), np.uint8), np.full((4, 8, 1), np.nan), "no picture"):
            with pytest.raises(ShapeError, match="picture"):
                stream.push(wrong)
        np.testing.assert_array_equal(stream.forecast(2), alone([10], 2))


def uses(stream: SlotStream) -> list[Callable[[], object]]:
    return [
        lambda: stream.push(picture(1)),
        lambda: stream.predict(1),
        stream.wait,
        stream.snapshot,
        stream.reset,
        stream.fork,
        stream._streams.open,
    ]


def test_use_after_close_says_so(predictor: Predictor) -> None:
    streams = predictor.streams()
    closed, left = pushed(streams.open(), 1), pushed(streams.open(), 1)
    closed.close()
    closed.close()
    for use in uses(closed)[:-1]:
        with pytest.raises(StreamError, match="used after it was closed"):
            use()
    plain = predictor.stream()
    predictor.close()  # closes the streams, and then the backend
    predictor.close()
    streams.close()
    for use in uses(left):
        with pytest.raises(StreamError, match="used after it was closed"):
            use()
    with pytest.raises(StreamError, match="its predictor was closed"):
        plain.push(picture(1))
    with pytest.raises(StreamError, match="predictor: was closed"):
        predictor.streams()


def test_closing_wakes_and_fails_whoever_waits(backend: FakeBackend, predictor: Predictor) -> None:
    streams = predictor.streams(queue_length=1)
    one, other = pushed(streams.open(), 1), pushed(streams.open(), 1)
    one.wait()
    other.wait()
    caught: list[str] = []

    def use(function: Callable[[], object]) -> None:
        try:
            function()
        except StreamError as error:
            caught.append(str(error))

    backend.entered.clear()
    backend.gate.clear()
    pushed(one, 1)
    backend.entered.wait(60)
    pushed(one, 2)
    waiting = [lambda: pushed(one, 3), lambda: one.predict(3), lambda: other.predict(3), one.snapshot]
    threads = [threading.Thread(target=use, args=(function,)) for function in waiting]
    for thread in threads:
        thread.start()
    until(
        lambda: len(one._scheduled.requests) == 2 and len(other._scheduled.requests) == 1 and one._scheduled.room._wakes
    )
    closing = threading.Thread(target=streams.close)
    closing.start()
    until(lambda: streams.scheduler.queues.closing)
    backend.gate.set()
    for thread in (*threads, closing):
        thread.join(60)
        assert not thread.is_alive()
    assert len(caught) == 4
    assert {text.split(";")[0] for text in caught} == {"stream: used after it was closed"}


def test_two_threads_push_one_slot_and_nothing_is_lost(predictor: Predictor) -> None:
    with predictor.streams() as streams:
        stream = streams.open()
        threads = [threading.Thread(target=pushed, args=(stream, *range(200))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stream.wait()
        assert stream.pushed == 400


def test_two_threads_in_one_plain_stream_are_told(backend: FakeBackend, predictor: Predictor) -> None:
    stream = predictor.stream()
    backend.gate.clear()
    backend.entered.clear()
    thread = threading.Thread(target=stream.push, args=(picture(1),))
    thread.start()
    backend.entered.wait(60)
    for use in (lambda: stream.push(picture(1)), lambda: stream.predict(1), stream.snapshot, stream.reset):
        with pytest.raises(StreamError, match="another thread is using it; open one stream per thread, or"):
            use()
    backend.gate.set()
    thread.join()
    assert stream.pushed == 1


def test_a_mistake_in_the_thread_does_not_hang_its_callers(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with predictor.streams() as streams, caplog.at_level(logging.ERROR):
        stream = pushed(streams.open(), 1)
        stream.wait()
        monkeypatch.setattr(streams.scheduler, "_step", raising_always(AssertionError("that")))
        for _ in range(2):
            with pytest.raises(
                StreamError, match=r"stopped after an internal error \(AssertionError: that\); open new streams"
            ):
                stream.predict(3)
        assert "ended with an internal error" in caplog.text


def test_a_job_that_ends_the_thread_does_not_hang_its_caller(
    backend: FakeBackend, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "to_arrays", raising_always(SystemExit(3)))
    with predictor.streams() as streams, pytest.raises(SystemExit):
        streams.open().snapshot()


def test_an_array_that_cannot_be_written_any_more_fails_its_forecast_alone(
    backend: FakeBackend, predictor: Predictor
) -> None:
    caught: list[ValueError] = []

    def ask() -> None:
        try:
            stream.predict(3, out)
        except ValueError as error:
            caught.append(error)

    with predictor.streams() as streams:
        stream, other = pushed(streams.open(), 1), pushed(streams.open(), 2)
        stream.wait()
        other.wait()
        out = np.empty((3, 4, 8, 1), np.uint8)
        backend.entered.clear()
        backend.gate.clear()
        thread = threading.Thread(target=ask)
        thread.start()
        backend.entered.wait(60)
        out.flags.writeable = False
        backend.gate.set()
        thread.join()
        assert ["read-only" in str(error) for error in caught] == [True]
        np.testing.assert_array_equal(pushed(stream, 3).forecast(2), alone([1, 3], 2))
        np.testing.assert_array_equal(other.forecast(2), alone([2], 2))


def test_no_memory_for_a_prediction_fails_its_stream_alone(backend: FakeBackend, predictor: Predictor) -> None:
    class Full(np.ndarray[Any, Any]):
        def __getitem__(self, key: Any) -> Any:
            if key == slice(0, 1):
                raise MemoryError
            return super().__getitem__(key)

    with predictor.streams(max_wait_ms=60_000) as streams:
        slots = [streams.open(), streams.open()]
        backend.answer = lambda _, found: found.view(Full)
        for slot in slots:
            pushed(slot, 10)
        with pytest.raises(StreamError, match="failed at frame 0: out of memory"):
            slots[0].wait()
        np.testing.assert_array_equal(slots[1].forecast(1), alone([10], 1))


def test_whoever_reads_the_log_may_ask_the_streams(backend: FakeBackend, predictor: Predictor) -> None:
    class Asks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            asked.append(streams.stats()["streams"])

    asked: list[int] = []
    handler, logger = Asks(), logging.getLogger("e3d_deploy")
    backend.answer = not_a_number
    logger.addHandler(handler)
    try:
        with predictor.streams(on_bad_output="hold") as streams:
            pushed(streams.open(), 66).wait()
    finally:
        logger.removeHandler(handler)
    assert asked == [1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of forks
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_is_told_that_the_streams_are_not_there(predictor: Predictor) -> None:
    with predictor.streams() as streams:
        stream = pushed(streams.open(), 1)
        stream.wait()
        with streams.scheduler.queues.lock:  # Another thread may hold the lock at a fork.
            child = os.fork()
        if child == 0:
            signal.alarm(10)
            try:
                stream.predict(3)
            except StreamError as error:
                os._exit(0 if "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert stream.predict(3).shape == (3, 4, 8, 1)


def test_an_error_is_not_its_own_cause(backend: FakeBackend, predictor: Predictor) -> None:
    stream, error = predictor.stream(), RuntimeError("no")

    def answer(*_: object) -> Frames:
        raise error

    backend.answer = answer
    with pytest.raises(RuntimeError, match="no"):
        stream.push(picture(1))
    assert error.__cause__ is None


@pytest.mark.parametrize("of_many", [True, False])
def test_a_snapshot_shares_no_memory_with_its_stream(predictor: Predictor, of_many: bool) -> None:
    with predictor.streams() as streams:
        stream: Any = streams.open() if of_many else predictor.stream()
        stream.push(picture(100))
        snapshot = stream.snapshot()
        expected = stream.forecast(2)
        assert snapshot.prediction is not None
        snapshot.prediction.flags.writeable = True
        snapshot.prediction[:] = 0
        np.testing.assert_array_equal(stream.forecast(2), expected)
        stream.restore(snapshot)
        snapshot.prediction[:] = 1
        assert not stream.forecast(1).any()


def test_counters_are_json_and_count(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams(max_wait_ms=100) as streams:
        slots = [streams.open() for _ in range(2)]
        assert streams.stats()["latency_ms"] == {"p50": None, "p99": None}
        together(slots, 10)
        slots[0].predict(2)
        mine, all_of_them = slots[0].stats(), streams.stats()
        json.dumps([mine, all_of_them])
        assert (mine["frames"], mine["forecasts"], mine["pushed"], mine["queue"]) == (1, 1, 1, 0)
        assert (all_of_them["frames"], all_of_them["streams"], all_of_them["batch_sizes"][2]) == (2, 2, 1)
        assert 0 < mine["queueing_ms"]["p50"] < mine["latency_ms"]["p50"] <= mine["latency_ms"]["p99"]
        assert mine["forecast_ms"]["p99"] > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_log_handler_that_raises_does_not_end_the_streams(
    backend: FakeBackend, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError(record.getMessage())

    handler, logger = Raises(), logging.getLogger("e3d_deploy")
    logger.addHandler(handler)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    sys.stderr.close()
    try:
        with predictor.streams(on_bad_output="hold") as streams:
            stream = streams.open()
            streams.open()  # The stream is dropped at once, which causes a warning.
            backend.answer = not_a_number
            pushed(stream, 66).wait()
            pushed(stream, 2).wait()
            assert stream.pushed == 1
    finally:
        logger.removeHandler(handler)
