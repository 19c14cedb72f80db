"""Streams under Ctrl-C, finalizers, signal and log handlers, and calls that time out; the backend is a fake."""

import asyncio
import gc
import logging
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from e3d_deploy.errors import ConfigError, ResourceLimit, StreamError
from e3d_deploy.runtime import Predictor, SlotStream
from e3d_deploy.runtime.streams.queues import MAX_REQUESTS
from e3d_deploy.runtime.streams.waiting import Bell, Reply
from tests.fake_backend import FakeBackend, alone, picture, predictor_of, pushed, until


@contextmanager
def stuck(backend: FakeBackend, stream: SlotStream, value: int) -> Iterator[None]:
    """Push a picture, and keep the thread of the streams inside its step for the `with` block."""
    backend.entered.clear()
    backend.gate.clear()
    pushed(stream, value)
    assert backend.entered.wait(60)
    yield
    backend.gate.set()


def interrupted(*_: Any) -> Any:
    raise KeyboardInterrupt


# Locks.


def test_whoever_holds_the_lock_of_the_callers_holds_up_nobody(predictor: Predictor) -> None:
    """Calls are made while the lock is held, like those of a finalizer or a signal handler."""
    with predictor.streams(max_streams=2) as streams:
        stream, other = pushed(streams.open(), 10), streams.open()
        with streams.scheduler.queues.lock:
            np.testing.assert_array_equal(stream.forecast(2), alone([10], 2))
            other.close()
            third = pushed(streams.open(), 5)
            third.wait()
            assert streams.stats()["streams"] == 2
            streams.close()
        assert not streams.scheduler.thread.is_alive()


def test_closing_takes_no_lock(predictor: Predictor) -> None:
    with predictor.streams(max_streams=1) as streams:
        stream = streams.open()
        closing = threading.Thread(target=stream.close, daemon=True)
        with streams.scheduler.queues.lock:
            closing.start()
            closing.join(60)
            assert not closing.is_alive()
            until(lambda: stream._scheduled not in streams.scheduler.queues.streams)
        streams.open().close()


def test_a_bell_wakes_whoever_waits_and_whoever_comes_too_late() -> None:
    bell, changed, woken = Bell(), threading.Event(), list[bool]()
    threads = [threading.Thread(target=lambda: woken.append(bell.wait(changed.is_set))) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(bell._wakes) == 3)
    changed.set()
    bell.ring()
    for thread in threads:
        thread.join(60)
    assert woken == [True] * 3
    assert bell.wait(changed.is_set)
    assert not bell._wakes


def test_a_bell_that_rings_just_before_the_wait_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(*_: object) -> None:
        raise AssertionError("waits for a ring that was before")

    monkeypatch.setattr("e3d_deploy.runtime.streams.waiting.sleep", sleep)
    answers = [True, False]
    assert Bell().wait(answers.pop)


# Ctrl-C.


def test_a_stream_is_whole_after_hundreds_of_interrupts(predictor: Predictor) -> None:
    """The state is that after the pushed pictures; the interrupted call has taken effect completely or not at all."""
    chance, armed, seen, interrupts = random.Random(0), False, list[int](), 0
    stream: Any
    backend = FakeBackend()

    def interrupt(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    def call() -> None:
        """Make a random call, and record a pushed picture once the call has returned."""
        match chance.choice(["push", "push", "push", "predict", "wait", "snapshot", "reset"]):
            case "push":
                value = chance.randrange(256)
                tried.append(value)
                stream.push(picture(value))
                seen.append(value)
                tried.clear()
            case "predict" if seen:
                stream.predict(3, np.empty((3, 4, 8, 1), np.uint8))
            case "wait":
                stream.wait()
            case "snapshot":
                stream.snapshot()
            case "reset" if chance.random() < 0.2:
                stream.reset()
                seen.clear()

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with predictor_of(backend).streams(queue_length=2, max_wait_ms=0.1) as streams:
            stream, tried = streams.open(), list[int]()
            while interrupts < 300:
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(5e-5, 3e-3))
                    while armed:
                        call()
                except KeyboardInterrupt:
                    interrupts += 1
                stream.wait(timeout_ms=60_000)
                if stream.pushed == len(seen) + 1:
                    seen.extend(tried)  # The picture was queued before the interrupt.
                elif stream.pushed == 0:
                    seen.clear()  # The reset was done before the interrupt.
                tried.clear()
                assert stream.pushed == len(seen)
                if seen and interrupts % 5 == 0:
                    np.testing.assert_array_equal(stream.forecast(2, timeout_ms=60_000), alone(seen[-100:], 2))
            assert stream.stats()["queue"] == 0
            assert not stream._scheduled.requests
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", ["reset", "restore"])
def test_what_was_interrupted_before_its_turn_is_not_done_later(
    backend: FakeBackend, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with predictor.streams() as streams:
        stream = pushed(streams.open(), 10)
        snapshot = stream.snapshot()
        with stuck(backend, stream, 20), monkeypatch.context() as patch:
            pushed(stream, 30)
            patch.setattr(Reply, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                stream.reset() if name == "reset" else stream.restore(snapshot)
        np.testing.assert_array_equal(stream.forecast(2), alone([10, 20, 30], 2))


def test_a_push_that_is_interrupted_while_it_waits_for_room_is_not_done(
    backend: FakeBackend, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with predictor.streams(queue_length=1) as streams:
        stream = streams.open()
        with stuck(backend, stream, 10), monkeypatch.context() as patch:
            pushed(stream, 20)
            patch.setattr("e3d_deploy.runtime.streams.waiting.sleep", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pushed(stream, 30)
            assert not stream._scheduled.room._wakes
        np.testing.assert_array_equal(stream.forecast(2), alone([10, 20], 2))


# Calls that stop waiting.


def test_an_asynchronous_forecast_ends_however_its_coroutine_ends(backend: FakeBackend, predictor: Predictor) -> None:
    async def cancelled_before_it_began(stream: SlotStream) -> None:
        task = asyncio.create_task(stream.predict_async(100))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with predictor.streams() as streams:
        stream = streams.open()
        with stuck(backend, stream, 10):
            stream.predict_async(100).close()
            stream.predict_async(100)  # The coroutine is dropped at once.
            asyncio.run(cancelled_before_it_began(stream))
        calls = len(backend.calls)
        coroutine = stream.predict_async(2)
        assert asyncio.run(coroutine).shape == (2, 4, 8, 1)
        with pytest.raises(RuntimeError, match="already awaited"):
            asyncio.run(again(coroutine))
        assert len(backend.calls) <= calls + 2


async def again(coroutine: Any) -> None:
    await coroutine
    await coroutine


def test_a_loop_that_was_closed_meanwhile_is_no_harm(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams() as streams:
        stream = streams.open()
        loop = asyncio.new_event_loop()
        with stuck(backend, stream, 10):
            task = loop.create_task(stream.predict_async(2))
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
        np.testing.assert_array_equal(stream.forecast(2), alone([10], 2))
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_forecasts_that_wait_are_bounded(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams(policy="refuse") as refusing, predictor.streams() as blocking:
        for streams in (refusing, blocking):
            stream = streams.open()
            with stuck(backend, stream, 10):
                waiting = [stream.predict_async(2) for _ in range(MAX_REQUESTS)]
                with pytest.raises(StreamError, match="64 forecasts are queued already"):
                    stream.predict_async(2)
                for name in ("predict", "forecast"):
                    words = (
                        "64 forecasts are queued already" if streams is refusing else f"{name}: not done within 20 ms"
                    )
                    with pytest.raises(StreamError, match=words):
                        getattr(stream, name)(2, timeout_ms=20)
                with pytest.raises(StreamError, match="wait: not done within 20 ms"):
                    stream.wait(timeout_ms=20)
                waiting.pop().close()
            stream.wait()
            assert stream.predict(2).shape == (2, 4, 8, 1)


# Handlers, ends and arguments.


def test_a_log_handler_that_asks_the_streams_is_told_and_harms_nobody(
    backend: FakeBackend, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            asked.append(record.getMessage())
            stream.predict(1)

    asked: list[str] = []
    handler, logger = Asks(), logging.getLogger("e3d_deploy")
    backend.answer = lambda _, found: np.full_like(found, np.nan)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.addHandler(handler)
    try:
        with predictor.streams(on_bad_output="hold") as streams:
            stream = pushed(streams.open(), 66)
            stream.wait(timeout_ms=60_000)
            backend.answer = lambda _, found: found
            np.testing.assert_array_equal(pushed(stream, 10).forecast(2), alone([10], 2))
    finally:
        logger.removeHandler(handler)
    assert len(asked) == 1


def test_a_closed_stream_gives_its_place_back_at_once(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams(max_streams=2) as streams:
        stream, other = streams.open(), streams.open()
        with stuck(backend, stream, 10):
            other.close()
            assert streams.stats()["streams"] == 1
            del other
            gc.collect()
            streams.open().close()
        with pytest.raises(StreamError, match="used after it was closed"):
            streams.open().close() or stream.close() or stream.wait()  # type: ignore[func-returns-value]


def test_no_more_threads_is_a_limit_of_resources(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ResourceLimit, match=r"no thread can be started \(can't start new thread\)"):
        predictor.streams()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1, True, 1.5, "1"])
def test_numbers_that_are_none_are_refused(predictor: Predictor, wrong: Any) -> None:
    for name in ("max_streams", "queue_length", "memory_limit_bytes", *(["max_wait_ms"] if wrong != 1.5 else [])):
        with pytest.raises(ConfigError, match=f"{name}: got"):
            predictor.streams(**{name: wrong})
    with pytest.raises(ConfigError, match="max_wait_ms: got None"):
        predictor.streams(max_wait_ms=None)  # type: ignore[arg-type]


def test_no_memory_for_a_copy_is_a_limit_of_resources(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def copy(self) -> None:
            raise MemoryError

    with predictor.streams() as streams:
        stream = streams.open()
        monkeypatch.setattr("e3d_deploy.runtime.pictures.to_array", lambda *_: Full())
        with pytest.raises(ResourceLimit, match="out of memory"):
            pushed(stream, 1)


def test_a_restored_stream_does_not_share_the_pictures_of_its_snapshot() -> None:
    with predictor_of(FakeBackend()).streams(renewal="replay") as streams:
        stream = pushed(streams.open(), 10, 20)
        snapshot = stream.snapshot()
        stream.restore(snapshot)
        assert snapshot.frames is not None
        assert not any(np.shares_memory(frame, snapshot.frames) for frame in stream._scheduled.frames)
        np.testing.assert_array_equal(stream.forecast(2), alone([10, 20], 2))


def test_the_result_is_written_by_the_caller_once_it_is_whole(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams() as streams:
        stream = pushed(streams.open(), 10)
        stream.wait()
        out = np.full((3, 4, 8, 1), 7, np.uint8)
        backend.entered.clear()
        backend.gate.clear()
        with pytest.raises(StreamError, match="predict: not done within 20 ms; allow more time"):
            stream.predict(3, out, timeout_ms=20)
        backend.gate.set()
        stream.wait()
        time.sleep(0.01)
        assert (out == 7).all()
        assert stream.predict(3, out) is out
        np.testing.assert_array_equal(out, stream.predict(3))
