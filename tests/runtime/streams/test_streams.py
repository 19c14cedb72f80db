"""Many streams on a fake backend: which streams are stepped together, and which items wait, are dropped or refused."""

import asyncio
import gc
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.errors import ConfigError, ResourceLimit, ShapeError, StreamError
from e3d_deploy.runtime import Predictor, SlotStream, Streams
from e3d_deploy.runtime.streams.waiting import Reply
from tests.fake_backend import CONFIG, FakeBackend, alone, asked, picture, predictor_of, pushed, together, until


@pytest.fixture(autouse=True)
def all_step_together(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which a step of several streams failed, because stepping them alone would hide the error."""
    yield
    assert not [record for record in caplog.get_records("call") if "each state is stepped alone" in record.message]


# Results.


@pytest.mark.parametrize("pads", [False, True])
def test_streams_of_all_ages_from_all_threads_give_what_each_gives_alone(pads: bool) -> None:
    """The states also never take more memory than `most_bytes` allows for."""
    backend = FakeBackend(pads=pads)
    found: dict[int, list[tuple[list[int], NDArray[np.float32]]]] = {}

    def run(number: int, stream: SlotStream) -> None:
        random, values = np.random.default_rng(number), []
        for _ in range(40):
            values.append(int(random.integers(256)))
            stream.push(picture(values[-1]))
            if random.random() < 0.3:
                horizon = int(random.integers(1, 6))
                found.setdefault(number, []).append((list(values), stream.forecast(horizon)))
            if random.random() < 0.05:
                stream.reset()
                values.clear()
                stream.push(picture(number))
                values.append(number)

    with predictor_of(backend).streams(max_streams=11, max_wait_ms=0.2) as streams:
        slots = [streams.open() for _ in range(11)]
        threads = [threading.Thread(target=run, args=pair) for pair in enumerate(slots)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one_state = sum(tensor.nbytes for tensor in contract.states(CONFIG))
        assert backend.most_rows <= streams.most_bytes(11) // one_state + 1, "1 more row for the initial state"
    assert len(found) == 11
    for answers in found.values():
        for values, forecast in answers:
            np.testing.assert_array_equal(forecast, alone(values, len(forecast)))
    assert len(backend.threads) == 1, "one thread calls the backend"


def test_a_forecast_begins_where_its_stream_is_in_the_order_of_calls(
    backend: FakeBackend, predictor: Predictor
) -> None:
    with predictor.streams() as streams:
        stream = pushed(streams.open(), 10, 20)
        backend.gate.clear()
        pushed(stream, 30)
        future = asked(stream, 3)
        pushed(stream, 200, 201)
        backend.gate.set()
        np.testing.assert_array_equal(future.result(), alone([10, 20, 30], 3))
        np.testing.assert_array_equal(stream.forecast(2), alone([10, 20, 30, 200, 201], 2))
        assert stream.predict(3).shape == (3, 4, 8, 1)
        assert stream.pushed == 5


def test_a_picture_may_be_changed_after_its_push(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams() as streams:
        stream = pushed(streams.open(), 1)
        backend.gate.clear()
        for buffer in (picture(100), np.full((4, 8, 1), 0.25, np.float32)):
            stream.push(buffer)
            buffer[:] = 0
        backend.gate.set()
        other = predictor_of(FakeBackend()).stream()
        for seen in (picture(1), picture(100), np.full((4, 8, 1), 0.25)):
            other.push(seen)
        np.testing.assert_array_equal(stream.forecast(2), other.forecast(2))


def test_forecasts_are_written_where_one_says(predictor: Predictor) -> None:
    with predictor.streams() as streams:
        for stream in (predictor.stream(), streams.open()):
            pushed(stream, 100)  # type: ignore[arg-type]
            pictures, frames = np.empty((3, 4, 8, 1), np.uint8), np.empty((3, 1, 4, 8), np.float32)
            assert stream.predict(3, out=pictures) is pictures
            assert stream.forecast(3, out=frames) is frames
            np.testing.assert_array_equal(frames, alone([100], 3))
            np.testing.assert_array_equal(pictures, stream.predict(3))
            with pytest.raises(ShapeError, match=r"out: got \[3, 4, 8, 1\] uint8, expected an array \[2, 4, 8, 1\]"):
                stream.predict(2, out=pictures)
            with pytest.raises(ShapeError, match="out: got list"):
                stream.forecast(2, out=[])  # type: ignore[arg-type]
            pictures.flags.writeable = False
            with pytest.raises(ShapeError, match="that can be written"):
                stream.predict(3, out=pictures)


def test_await_runs_others_meanwhile_and_can_be_cancelled(backend: FakeBackend, predictor: Predictor) -> None:
    async def run(streams: Streams) -> None:
        one, other = pushed(streams.open(), 10), pushed(streams.open(), 20)
        both = await asyncio.gather(one.predict_async(3), other.predict_async(4))
        assert [len(forecast) for forecast in both] == [3, 4]
        backend.entered.clear()
        backend.gate.clear()
        task = asyncio.create_task(one.predict_async(5))
        await asyncio.to_thread(backend.entered.wait, 5)
        task.cancel()
        backend.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        calls = len(backend.calls)
        np.testing.assert_array_equal(one.forecast(2), alone([10], 2))
        assert len(backend.calls) <= calls + 2, "the cancelled forecast has stopped"

    with predictor.streams() as streams:
        asyncio.run(run(streams))


def test_snapshot_restore_fork_and_reset(predictor: Predictor) -> None:
    with predictor.streams() as streams:
        stream = pushed(streams.open(), 10, 20)
        snapshot, fork = stream.snapshot(), stream.fork()
        pushed(stream, 30)
        assert (snapshot.pushed, fork.pushed) == (2, 2)
        for other in (fork, streams.open(snapshot), predictor.stream(snapshot)):
            other.push(picture(40))
            np.testing.assert_array_equal(other.forecast(3), alone([10, 20, 40], 3))
        np.testing.assert_array_equal(stream.forecast(3), alone([10, 20, 30], 3))
        stream.restore(snapshot)
        np.testing.assert_array_equal(stream.forecast(3), alone([10, 20], 3))
        stream.reset()
        assert stream.pushed == 0
        with pytest.raises(StreamError, match="no picture was pushed yet"):
            stream.predict(1)
        pushed(stream, 7)
        np.testing.assert_array_equal(stream.forecast(3), alone([7], 3))


def test_a_snapshot_of_another_network_is_refused_and_no_place_is_lost(predictor: Predictor) -> None:
    foreign = Predictor(CONFIG, FakeBackend(), identity="another").stream().snapshot()
    with predictor.streams(max_streams=1) as streams:
        with pytest.raises(StreamError, match="taken from another network"):
            streams.open(foreign)
        streams.open()


# Streams that are stepped together.


def test_steady_cameras_copy_nothing(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams(max_wait_ms=1000) as streams:
        slots = [streams.open() for _ in range(6)]
        for value in range(10):
            together(slots, value)
        assert streams.stats()["batch_sizes"] == {1: 0, 2: 10, 4: 10, 8: 0}
        assert backend.gathers == 2, "one for the batch of 4 and one for the batch of 2"


def test_where_steps_are_filled_up_nobody_notices(predictor: Predictor) -> None:
    backend = FakeBackend((1, 8), pads=True)
    with predictor_of(backend).streams(max_wait_ms=100) as streams:
        slots = [streams.open() for _ in range(5)]
        for value in range(3):
            together(slots, value)
        assert backend.calls == [8, 8, 8]
        assert backend.gathers == 1
        for slot in slots:
            np.testing.assert_array_equal(slot.forecast(2), alone([0, 1, 2], 2))


def test_who_is_left_behind_keeps_no_memory_of_others(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams(max_wait_ms=1000) as streams:
        slots = [streams.open() for _ in range(8)]
        together(slots, 1)
        for slot in slots[1:]:
            slot.close()
        slots[0].wait()
        slots[0].wait()  # The first round after the closing moves the stream to a batch of its own.
        assert backend.live_rows == 1 + 1, "the row of the stream and that of the initial state"
        np.testing.assert_array_equal(slots[0].forecast(2), alone([1], 2))


def test_waits_for_others_but_not_longer_than_asked(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams(max_wait_ms=60) as streams:
        one, other = streams.open(), streams.open()
        started = time.perf_counter()
        pushed(one, 1)
        until(lambda: one.pushed == 1)
        assert time.perf_counter() - started >= 0.06
    with predictor.streams(max_wait_ms=10_000) as streams:
        one, other = streams.open(), streams.open()
        pushed(one, 1)
        time.sleep(0.05)  # By then the thread waits for the other stream.
        pushed(other, 1)
        until(lambda: other.pushed == 1)  # Once all streams are ready, the thread steps without waiting.
        assert backend.calls[-1] == 2


def test_any_wait_is_one_that_a_thread_can_wait(predictor: Predictor) -> None:
    with predictor.streams(max_wait_ms=1e15) as streams:
        one, other = streams.open(), streams.open()
        pushed(one, 1)
        time.sleep(0.02)
        pushed(other, 1)
        until(lambda: other.pushed == 1)


def test_pictures_and_frames_go_in_one_step(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams(max_wait_ms=500) as streams:
        one, other = streams.open(), streams.open()
        pushed(one, 100)
        other.push(np.full((4, 8, 1), 100 / 255, np.float32))
        for slot in (one, other):
            np.testing.assert_allclose(slot.forecast(1), alone([100], 1), rtol=0, atol=1e-6)
        assert backend.calls == [2]


def test_a_forecast_and_a_push_of_one_stream_do_not_take_the_row_beside_it(
    backend: FakeBackend, predictor: Predictor
) -> None:
    with predictor.streams(max_wait_ms=0) as streams:
        one, idle = streams.open(), streams.open()
        backend.gate.clear()
        pushed(one, 10)
        pushed(idle, 200)
        backend.gate.set()
        one.wait()
        idle.wait()
        other = streams.open()
        backend.entered.clear()
        backend.gate.clear()
        pushed(other, 1)
        backend.entered.wait(60)
        future = asked(one, 2)
        pushed(one, 30)
        backend.gate.set()
        np.testing.assert_array_equal(future.result(), alone([10], 2))
        np.testing.assert_array_equal(one.forecast(2), alone([10, 30], 2))
        np.testing.assert_array_equal(idle.forecast(2), alone([200], 2))


def test_a_round_of_several_steps_keeps_the_order_and_the_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.perf_counter
    backend = FakeBackend((1,))
    with predictor_of(backend).streams(max_wait_ms=10_000) as streams:
        slots = [streams.open() for _ in range(4)]
        backend.gate.clear()
        for number, slot in enumerate(slots):
            slot.push(picture(number), deadline_ms=None if number == 1 else 60_000)
        assert backend.entered.wait(60)
        monkeypatch.setattr(time, "perf_counter", lambda: clock() + 61)
        backend.gate.set()
        for slot in slots:
            slot.wait()
        assert [slot.pushed for slot in slots] == [1, 1, 0, 0], (
            "the picture that came first, and the picture without a deadline"
        )
        assert streams.stats()["dropped"]["late"] == 2


def test_closing_waits_for_the_step_that_is_on_its_way(backend: FakeBackend, predictor: Predictor) -> None:
    streams = predictor.streams()
    backend.gate.clear()
    stream = pushed(streams.open(), 1)
    backend.entered.wait(60)
    closing = threading.Thread(target=streams.close)
    closing.start()
    time.sleep(0.05)
    assert closing.is_alive()
    backend.gate.set()
    closing.join(60)
    assert not closing.is_alive()
    stream.close()


def test_a_forecast_that_is_interrupted_is_not_finished(
    backend: FakeBackend, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with predictor.streams() as streams:
        stream = pushed(streams.open(), 1)
        stream.wait()
        backend.gate.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Reply, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                stream.predict(1000)
        backend.gate.set()
        stream.wait()
        assert len(backend.calls) < 10


# Items that wait, and items that are refused.


@pytest.mark.parametrize(
    ("policy", "seen", "dropped"), [("drop-oldest", [1, 5, 6], {"full": 3}), ("drop-newest", [1, 2, 3], {"full": 3})]
)
def test_a_full_queue_drops_what_its_policy_says(
    backend: FakeBackend, predictor: Predictor, policy: Any, seen: list[int], dropped: dict[str, int]
) -> None:
    with predictor.streams(policy=policy, queue_length=2) as streams:
        stream = streams.open()
        backend.gate.clear()
        pushed(stream, 1)
        backend.entered.wait(60)
        pushed(stream, 2, 3, 4, 5, 6)
        assert stream.stats()["queue"] == 2
        backend.gate.set()
        np.testing.assert_array_equal(stream.forecast(1), alone(seen, 1))
        assert {reason: count for reason, count in stream.stats()["dropped"].items() if count} == dropped


def test_a_full_queue_refuses_or_blocks(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams(policy="refuse", queue_length=1) as streams:
        stream = streams.open()
        backend.gate.clear()
        pushed(stream, 1)
        backend.entered.wait(60)
        pushed(stream, 2)
        with pytest.raises(StreamError, match="1 pictures are queued already; push less often"):
            pushed(stream, 3)
        backend.gate.set()
        np.testing.assert_array_equal(stream.forecast(1), alone([1, 2], 1))
    with predictor.streams(policy="block", queue_length=1) as streams:
        stream = streams.open()
        backend.gate.clear()
        thread = threading.Thread(target=pushed, args=(stream, 1, 2, 3, 4))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        backend.gate.set()
        thread.join(60)
        np.testing.assert_array_equal(stream.forecast(1), alone([1, 2, 3, 4], 1))


def test_a_picture_whose_deadline_is_over_is_dropped_and_counted(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams() as streams:
        stream = streams.open()
        backend.gate.clear()
        pushed(stream, 1)
        backend.entered.wait(60)
        stream.push(picture(2), deadline_ms=1)
        stream.push(picture(3), deadline_ms=60_000)
        time.sleep(0.01)
        backend.gate.set()
        np.testing.assert_array_equal(stream.forecast(1), alone([1, 3], 1))
        assert stream.stats()["dropped"]["late"] == 1


def test_more_streams_than_allowed_are_refused(predictor: Predictor) -> None:
    with predictor.streams(max_streams=2) as streams:
        one, _ = streams.open(), streams.open()
        for another in (streams.open, one.fork):
            with pytest.raises(ResourceLimit, match="2 are open, which is max_streams; close a stream") as caught:
                another()
            assert caught.value.exit_code == 7
        one.close()
        streams.open()


def test_more_memory_than_allowed_is_refused(predictor: Predictor) -> None:
    with predictor.streams() as streams:
        enough, too_little = streams.most_bytes(3), streams.most_bytes(1) - 1
    with predictor.streams(memory_limit_bytes=enough) as streams:
        _slots = [streams.open() for _ in range(3)]
        with pytest.raises(
            ResourceLimit,
            match=rf"3 are open, and another does not fit into memory_limit_bytes = {enough}; close a stream",
        ):
            streams.open()
    with pytest.raises(ResourceLimit, match="one stream can take"):
        predictor.streams(memory_limit_bytes=too_little)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "newest"}, "policy: got 'newest', expected one of block, drop-oldest"),
        ({"on_bad_output": "ignore"}, "on_bad_output: got 'ignore'"),
        ({"max_streams": 0}, "max_streams: got 0"),
        ({"queue_length": 0}, "queue_length: got 0"),
        ({"max_wait_ms": -1}, "max_wait_ms: got -1"),
    ],
)
def test_options_that_cannot_work_are_refused(predictor: Predictor, options: dict[str, Any], message: str) -> None:
    threads = threading.active_count()
    with pytest.raises(ConfigError, match=message):
        predictor.streams(**options)
    assert threading.active_count() == threads


def test_a_backend_that_steps_no_stream_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="steps 4 streams at once, but not a single stream"):
        predictor_of(FakeBackend((4,))).streams()


def test_10000_streams_opened_and_closed_leave_nothing(backend: FakeBackend, predictor: Predictor) -> None:
    with predictor.streams(max_streams=8) as streams:

        def open_and_close(count: int) -> None:
            for number in range(count):
                stream = pushed(streams.open(), number % 256)
                if number % 10 == 0:
                    stream.wait()
                stream.close()
            pushed(streams.open(), 1).wait()
            assert backend.live_rows <= 3

        open_and_close(1000)
        streams.open().close()
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        backend.calls.clear()
        for stream in [streams.open() for _ in range(6)]:
            stream.close()
        open_and_close(9_000)
        backend.calls.clear()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert after - before < 50_000
    assert backend.live_rows == 0
