"""Streams of a server's sequences, without a server, on a fake backend."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy.errors import ConfigError, E3DError, ShapeError, StreamError
from e3d_deploy.runtime import Predictor
from e3d_deploy.triton.requests import Answer, Counts, Request
from e3d_deploy.triton.table import Table
from tests.fake_backend import FakeBackend, alone, picture, until

Make = Callable[..., Table]


@pytest.fixture
def make(predictor: Predictor) -> Iterator[Make]:
    """Yield a function that makes a table; the tables are closed after the test."""
    tables: list[Table] = []

    def table(**changes: Any) -> Table:
        tables.append(Table(predictor, **{"max_streams": 8, "idle_s": 60.0, **changes}))
        return tables[-1]

    yield table
    for one in tables:
        one.close()


def request(sequence: int, value: int = 0, **changes: Any) -> Request:
    return Request(**{"sequence": sequence, "picture": picture(value), **changes})


def prediction_of(answer: Answer | E3DError) -> NDArray[np.float32]:
    assert isinstance(answer, Answer), answer
    assert answer.prediction is not None
    return answer.prediction


def error_of(answer: Answer | E3DError, kind: type[E3DError] = StreamError) -> str:
    assert isinstance(answer, kind), answer
    return str(answer)


def test_the_streams_of_a_batch_are_stepped_together(backend: FakeBackend, make: Make) -> None:
    table = make()
    table.answer([request(number, start=True) for number in range(8)])
    backend.calls.clear()
    answers = table.answer([request(number, 10 * number) for number in range(4)])
    assert backend.calls == [4], "they wait for no other stream"
    for number, answer in enumerate(answers):
        np.testing.assert_array_equal(prediction_of(answer), alone([0, 10 * number], 1)[0])


def test_forecasts_are_computed_together_and_only_where_requested(backend: FakeBackend, make: Make) -> None:
    table = make()
    horizons = (None, 3, 3, 3, 3)
    requests = [request(number, 9, start=True, horizon=horizon) for number, horizon in enumerate(horizons)]
    answers = table.answer([*requests[:4], request(4, 9, start=True, horizon=3, prediction=False)])
    assert backend.calls == [4, 1, 4, 4], "five pictures, and two further frames of four forecasts"
    expected = make().answer([request(0, 9, start=True, horizon=3)])[0]
    assert isinstance(expected, Answer)
    for answer, horizon in zip(answers, horizons, strict=True):
        assert isinstance(answer, Answer)
        if horizon is None:
            assert answer.forecast is None
        else:
            assert answer.forecast is not None
            np.testing.assert_array_equal(answer.forecast, expected.forecast)
    assert isinstance(answers[4], Answer)
    assert answers[4].prediction is None


def test_a_bad_request_fails_alone_and_its_picture_is_not_seen(make: Make) -> None:
    table = make()
    table.answer([request(1, 10, start=True), request(2, 20, start=True)])
    answers = table.answer([
        request(1, 11, horizon=0), request(2, 21), request(3, 31, start=True, horizon=1001),
        Request(sequence=4, picture=picture(1)[:2], start=True),
    ])  # fmt: skip
    assert "horizon: got 0, expected 1 to 1000" in error_of(answers[0], ConfigError)
    np.testing.assert_array_equal(prediction_of(answers[1]), alone([20, 21], 1)[0])
    assert "horizon: got 1001" in error_of(answers[2], ConfigError)
    assert "picture: got [2, 8, 1] uint8" in error_of(answers[3], ShapeError)
    for sequence, values in ((1, [10, 12]), (3, [12]), (4, [12])):
        (answer,) = table.answer([request(sequence, 12)])
        np.testing.assert_array_equal(prediction_of(answer), alone(values, 1)[0])


def test_a_sequence_without_a_state_is_refused_alone(make: Make) -> None:
    table = make()
    lost, found = table.answer([request(7), request(8, 20, start=True, end=True)])
    assert "sequence 7: has no state" in error_of(lost)
    assert "begin the sequence again with START" in error_of(lost)
    np.testing.assert_array_equal(prediction_of(found), alone([20], 1)[0])
    assert "sequence 8: has no state" in error_of(table.answer([request(8)])[0])
    assert table.counts == Counts(streams=0, frames=1, expired=0)


def test_a_sequence_may_end_and_start_again_in_one_batch(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    table = make()
    table.answer([request(1, 10, start=True)])
    ended, started = table.answer([request(1, 11, end=True), request(1, 50, start=True)])
    np.testing.assert_array_equal(prediction_of(ended), alone([10, 11], 1)[0])
    np.testing.assert_array_equal(prediction_of(started), alone([50], 1)[0])
    (answer,) = table.answer([request(1, 60, start=True)])
    np.testing.assert_array_equal(prediction_of(answer), alone([60], 1)[0])
    until(lambda: table._streams.stats()["streams"] == 1)
    table.close()
    assert "dropped without close" not in caplog.text


@pytest.mark.parametrize("first", [True, False])
def test_a_picture_with_a_prediction_that_is_not_finite_is_ignored(
    backend: FakeBackend, make: Make, first: bool
) -> None:
    table, seen = make(), [] if first else [10]
    for value in seen:
        table.answer([request(1, value, start=True)])
    backend.answer = lambda frames, found: np.where(frames == np.float32(66 / 255), np.float32(np.nan), found)
    bad, good = table.answer([request(1, 66, start=first), request(2, 20, start=True)])
    assert "sequence 1: the prediction after this picture is not finite, so the picture is ignored" in error_of(bad)
    np.testing.assert_array_equal(prediction_of(good), alone([20], 1)[0])
    (answer,) = table.answer([request(1, 11)])
    np.testing.assert_array_equal(prediction_of(answer), alone([*seen, 11], 1)[0])


def test_a_forecast_that_is_not_finite_fails_alone(backend: FakeBackend, make: Make) -> None:
    table = make()
    table.answer([request(1, 100, start=True), request(2, 200, start=True)])
    bad_frame = alone([100, 100], 1)[0]
    backend.answer = lambda frames, found: np.where(
        (frames == bad_frame).all(axis=(1, 2, 3), keepdims=True), np.float32(np.nan), found
    )
    bad, good = table.answer([request(1, 100, horizon=3), request(2, 200, horizon=3)])
    assert "forecast frame 1: the prediction is not finite" in error_of(bad)
    prediction_of(good)
    (answer,) = table.answer([request(1, 50)])
    np.testing.assert_array_equal(prediction_of(answer), alone([100, 100, 50], 1)[0])


def test_a_stream_whose_step_failed_must_start_again(backend: FakeBackend, make: Make) -> None:
    def answer(frames: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float32]:
        if (frames == np.float32(66 / 255)).any():
            raise RuntimeError("the graph is broken")
        return found

    table = make()
    backend.answer = answer
    bad, good = table.answer([request(1, 66, start=True), request(2, 20, start=True)])
    assert "the graph is broken" in error_of(bad)
    assert "begin the sequence again with START" in error_of(bad)
    assert "reset" not in error_of(bad), "a client cannot reset a stream"
    np.testing.assert_array_equal(prediction_of(good), alone([20], 1)[0])
    assert "sequence 1: has no state" in error_of(table.answer([request(1, 1)])[0])
    np.testing.assert_array_equal(prediction_of(table.answer([request(1, 5, start=True)])[0]), alone([5], 1)[0])


def test_idle_streams_are_closed_without_a_further_request(make: Make) -> None:
    reports: list[Counts] = []
    table = make(idle_s=0.2, report=reports.append)
    table.answer([request(1, start=True), request(2, start=True)])
    until(lambda: table.counts.expired == 2)
    until(lambda: bool(reports) and reports[-1] == Counts(streams=0, frames=2, expired=2))
    assert "sequence 1: has no state" in error_of(table.answer([request(1)])[0])
    until(lambda: table._streams.stats()["streams"] == 0)


def test_a_stream_in_use_does_not_expire(make: Make) -> None:
    table = make(idle_s=0.2)
    table.answer([request(1, start=True)])
    end = time.monotonic() + 1
    while time.monotonic() < end:
        prediction_of(table.answer([request(1)])[0])
    assert table.counts.expired == 0


def test_time_in_the_queue_of_the_server_does_not_count_as_idle(backend: FakeBackend, make: Make) -> None:
    """While a batch takes longer than the idle time, requests of other sequences wait in the server's queue."""
    reports: list[Counts] = []
    table = make(idle_s=0.2, report=reports.append)
    table.answer([request(1, 10, start=True), request(2, start=True)])
    backend.gate.clear()
    threading.Timer(1, backend.gate.set).start()
    table.answer([request(2)])
    reports.clear()
    until(lambda: bool(reports))
    np.testing.assert_array_equal(prediction_of(table.answer([request(1, 20)])[0]), alone([10, 20], 1)[0])


def test_after_an_internal_error_all_requests_fail(backend: FakeBackend, make: Make) -> None:
    def end(frames: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float32]:
        raise SystemExit("the library ended the thread")

    table = make()
    backend.answer = end
    answers = table.answer([request(1, start=True), request(2, start=True)])
    assert all("the library ended the thread" in error_of(answer) for answer in answers)
    with pytest.raises(StreamError, match="internal error"):
        table.answer([request(1)])


def test_one_stream_more_than_allowed_replaces_the_longest_idle(make: Make) -> None:
    """The server has given up that sequence: it keeps no more than `max_streams` alive."""
    table = make(max_streams=2)
    table.answer([request(1, start=True)])
    table.answer([request(2, start=True)])
    _, started = table.answer([request(1), request(3, 30, start=True)])
    np.testing.assert_array_equal(prediction_of(started), alone([30], 1)[0])
    assert table.counts.expired == 1
    kept, lost = table.answer([request(1), request(2)])
    prediction_of(kept)
    error_of(lost)


def test_closing_ends_the_threads(make: Make) -> None:
    before = set(threading.enumerate())
    table = make()
    table.answer([request(1, start=True)])
    assert {one.name for one in set(threading.enumerate()) - before} == {"e3d-idle-streams", "e3d-streams"}
    table.close()
    assert set(threading.enumerate()) <= before
