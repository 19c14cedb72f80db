"""Contract of all backends under many streams: finalizers, event loops, timeouts, dropped objects, wrong arguments."""

import asyncio
import copy
import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy.errors import ConfigError, ResourceLimit, StreamError
from e3d_deploy.runtime import Predictor, SlotStream, Streams
from tests.fake_backend import until


def pictures(count: int) -> NDArray[np.uint8]:
    """Return random pictures, [count, H, W, C]."""
    return np.random.default_rng(0).integers(0, 256, (count, 16, 24, 1), np.uint8)


def expected(predictor: Predictor, count: int, horizon: int) -> NDArray[np.uint8]:
    """Return the forecast of a plain stream after `count` pictures."""
    stream = predictor.stream()
    for picture in pictures(count):
        stream.push(picture)
    return stream.predict(horizon)


def same(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> None:
    np.testing.assert_allclose(found.astype(int), wanted.astype(int), rtol=0, atol=1)


def gated(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make steps wait; return the event that releases them, and the event that is set once a step has begun."""
    step, gate, entered = predictor.backend.step, threading.Event(), threading.Event()

    def waiting(*args: Any) -> Any:
        entered.set()
        gate.wait(60)
        return step(*args)

    monkeypatch.setattr(predictor.backend, "step", waiting)
    return gate, entered


def test_a_forecast_starts_from_the_state_when_it_was_requested(predictor: Predictor) -> None:
    asked = expected(predictor, 3, 2)

    async def run(stream: SlotStream) -> None:
        task = asyncio.create_task(stream.predict_async(2))
        out = np.full((2, 16, 24, 1), 7, np.uint8)
        never_begun = asyncio.create_task(stream.predict_async(2, out))
        never_begun.cancel()
        stream.push(pictures(4)[3])
        same(await task, asked)
        with pytest.raises(asyncio.CancelledError):
            await never_begun
        same(await stream.predict_async(2), expected(predictor, 4, 2))
        assert (out == 7).all()

    with predictor.streams() as streams, streams.open() as stream:
        for picture in pictures(3):
            stream.push(picture)
        asyncio.run(run(stream))


def test_a_stream_closed_by_a_finalizer_blocks_no_call(predictor: Predictor) -> None:
    class Session:
        def __init__(self, streams: Streams) -> None:
            self.stream, self.itself = streams.open(), self

        def __del__(self) -> None:
            self.stream.close()

    def run() -> None:
        with predictor.streams(max_streams=1000) as streams:
            for _ in range(20):
                session = Session(streams)
                session.stream.push(pictures(1)[0])
                forecasts.append(session.stream.predict(1))

    wanted, forecasts = expected(predictor, 1, 1), list[NDArray[np.uint8]]()
    thread, threshold = threading.Thread(target=run, daemon=True), gc.get_threshold()
    gc.set_threshold(5)
    try:
        thread.start()
        thread.join(60)
    finally:
        gc.set_threshold(*threshold)
    assert not thread.is_alive()
    assert len(forecasts) == 20
    for forecast in forecasts:
        same(forecast, wanted)


def test_only_close_may_be_called_in_the_thread_of_the_streams(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, said = predictor.backend.step, list[str]()

    def asking(*args: Any) -> Any:
        calls: list[Callable[[], object]] = [
            lambda: stream.push(pictures(1)[0]),
            lambda: stream.predict(1),
            stream.wait,
            stream.reset,
            streams.open,
        ]
        for call in calls:
            with pytest.raises(StreamError) as caught:
                call()
            said.append(str(caught.value))
        other.close()
        streams.close()
        return step(*args)

    monkeypatch.setattr(predictor.backend, "step", asking)
    with predictor.streams() as streams:
        stream, other = streams.open(), streams.open()
        stream.push(pictures(1)[0])
        until(lambda: not streams.scheduler.thread.is_alive())
        assert len(said) == 5
        assert all("in their own thread, which would wait for itself" in text for text in said)


def test_a_call_that_times_out_leaves_nothing_behind(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = expected(predictor, 2, 2)
    gate, entered = gated(predictor, monkeypatch)
    with predictor.streams(queue_length=1) as streams, streams.open() as stream:
        stream.push(pictures(1)[0])
        assert entered.wait(60)
        stream.push(pictures(2)[1])
        out = np.full((2, 16, 24, 1), 7, np.uint8)
        calls: dict[str, Callable[[], object]] = {
            "push": lambda: stream.push(pictures(3)[2], timeout_ms=20),
            "predict": lambda: stream.predict(2, out, timeout_ms=20),
            "predict_async": lambda: asyncio.run(waited(stream)),
            "wait": lambda: stream.wait(timeout_ms=0),
            "snapshot": lambda: stream.snapshot(timeout_ms=20),
        }
        for name, call in calls.items():
            with pytest.raises(StreamError, match=f"{name}: not done within"):
                call()
        gate.set()
        same(stream.predict(2, timeout_ms=60_000), wanted)
        assert stream.pushed == 2
        assert (out == 7).all()
        gate.clear()
        entered.clear()
        stream.push(pictures(3)[2])
        assert entered.wait(60)
        with pytest.raises(StreamError, match="close: not done within 20 ms"):
            streams.close(timeout_ms=20)
        gate.set()
        streams.close(timeout_ms=60_000)


async def waited(stream: SlotStream) -> None:
    await stream.predict_async(2, timeout_ms=20)


def test_a_dropped_stream_frees_its_place_and_warns(predictor: Predictor) -> None:
    with predictor.streams(max_streams=1) as streams:
        held = [streams.open()]
        held[0].push(pictures(1)[0])
        held[0].wait()

        def replace() -> None:
            held.clear()
            held.append(streams.open())  # The place of the dropped stream is free at once.
            held[0].wait()

        with pytest.warns(ResourceWarning, match=r"SlotStream \(1 pictures seen\): dropped without close"):
            replace()
        held[0].close()
    dropped = [predictor.streams()]
    thread = dropped[0].scheduler.thread

    def drop() -> None:
        dropped.clear()
        thread.join(60)

    with pytest.warns(ResourceWarning, match="Streams: dropped without close"):
        drop()
    assert not thread.is_alive()


def test_invalid_arguments_are_refused_before_any_work(predictor: Predictor) -> None:
    with predictor.streams() as streams, streams.open() as stream:
        stream.push(pictures(1)[0])
        for wrong in (float("nan"), float("inf"), -1, True, "1"):
            for call in (
                lambda wrong=wrong: stream.push(pictures(1)[0], deadline_ms=wrong),
                lambda wrong=wrong: stream.push(pictures(1)[0], timeout_ms=wrong),
                lambda wrong=wrong: stream.predict(1, timeout_ms=wrong),
                lambda wrong=wrong: stream.predict_async(1, timeout_ms=wrong),
                lambda wrong=wrong: stream.wait(timeout_ms=wrong),
                lambda wrong=wrong: streams.close(timeout_ms=wrong),
            ):
                with pytest.raises(ConfigError, match=r"_ms: got .*, expected a finite number"):
                    call()
        for horizon in (10**12, 10**13):
            for much in (stream.predict, stream.forecast, stream.predict_async):
                with pytest.raises(ResourceLimit, match="out of memory"):
                    much(horizon)
        for way in (pickle.dumps, copy.copy, copy.deepcopy):
            for one in (stream, streams):
                with pytest.raises(TypeError, match=r"pickle `stream.snapshot\(\)`, load the bundle"):
                    way(one)
        stream.wait()
        assert stream.pushed == 1
