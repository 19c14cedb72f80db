"""Renewal of states: ages, forecasts equal to those of new streams, faults, memory, and snapshots."""

import json
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from e3d_deploy import runtime
from e3d_deploy.card import Card, Decay, Window
from e3d_deploy.cli import main
from e3d_deploy.errors import ConfigError, ResourceLimit, SnapshotError, StreamError
from e3d_deploy.measure.tasks import make_task
from e3d_deploy.runtime import Bundle, Predictor, Snapshot
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.renewal import Renewal, default_renewal
from tests.data.test_data import write_video
from tests.fake_backend import CONFIG, FakeBackend, asked, picture, pushed, together

RENEWALS = [("refresh", C, M) for C in (1, 2, 3, 5, 10, 20) for M in range(2, max(2, C) + 1)]
SAME = 2e-6
"""Largest difference between forecasts of a single stream and of rows stepped together; measured 3e-7."""


def fake(backend: FakeBackend, context_length: int = 3) -> Predictor:
    """Return a predictor whose card records the context of training but no decay."""
    card = Card(window=Window(context_length=context_length, horizon=4))
    return Predictor(CONFIG, backend, identity="fake", card=card)


def values(count: int) -> list[int]:
    return np.random.default_rng(3).integers(0, 256, count).tolist()


def new_stream(seen: list[int], horizon: int = 3) -> NDArray[np.float32]:
    """Return the forecast of a new stream, of one state, after these pictures."""
    stream = fake(FakeBackend()).stream(renewal="none")
    for value in seen:
        stream.push(picture(value))
    return stream.forecast(horizon)


@pytest.mark.parametrize(("kind", "C", "M"), RENEWALS)
def test_states_begin_and_end_as_their_ages_say(kind: str, C: int, M: int) -> None:
    renewal = Renewal("refresh", C, M)
    S = renewal.spacing
    assert max(2 if M == 2 else 1, round(C / (M - 0.5))) == S
    ages: list[int] = []
    steps = 0
    for n in range(6 * M * S):
        assert renewal.ages(n) == tuple(ages)
        if ages and renewal.ends(n):
            assert ages.pop(0) == M * S - 1
        if renewal.begins(n):
            ages.append(0)
        ages = [age + 1 for age in ages]
        if n >= 2 * M * S:
            steps += len(ages)
        expected = n + 1 if n + 1 < M * S else (M - 1) * S + (n + 1) % S
        assert renewal.age(n + 1) == expected == ages[0]
    assert steps == pytest.approx(4 * M * S * renewal.steps_per_frame)


def test_refresh_2_for_10_frames_has_ages_7_to_13_and_13_steps_in_7_frames() -> None:
    renewal = Renewal.parse("refresh:2", 10)
    assert {renewal.age(n) for n in range(14, 100)} == set(range(7, 14))
    assert (renewal.spacing, renewal.steps_per_frame) == (7, 13 / 7)


@pytest.mark.parametrize(
    "text",
    ["", "refresh:1", "refresh:11", "refresh:x", "refresh:-2", "refresh:٣", "none:2", "Replay", "replay:3", 2, b"none"],
)
def test_unknown_renewals_are_refused(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"renewal: got .*expected"):
        Renewal.parse(text, 10)


def test_two_states_are_always_possible_and_more_only_up_to_the_context() -> None:
    assert str(Renewal.parse("refresh", 1)) == "refresh:2"
    assert Renewal.parse("refresh:10", 10).states == 10
    with pytest.raises(ConfigError, match="expected 2 to 2 states for a context of 1 frames"):
        Renewal.parse("refresh:3", 1)


def decay(**errors: float) -> Decay:
    mse = {5: (1.0,)} | {int(age[1:]): (error,) for age, error in errors.items()}
    return Decay(context_length=5, data="", clips=1, mse=mse, copy_last=(2.0,))


@pytest.mark.parametrize(
    ("card", "expected", "reason"),
    [
        (Card(), Renewal("refresh", 10, 2), "was not measured; `e3d evaluate --streaming --record` measures it"),
        (Card(window=Window(context_length=5, horizon=2)), Renewal("refresh", 5, 2), "was not measured"),
        (Card(decay=decay(a30=1.02)), Renewal("none", 5), "may be any number of frames old"),
        (Card(decay=decay(a30=1.5)), Renewal("refresh", 5, 2), "after 30 frames a state's forecasts are 1.50 times"),
        (Card(decay=decay(a10=1.01)), Renewal("refresh", 5, 2), "the measurement ends at age 10"),
    ],
)
def test_default_follows_from_the_measured_decay(card: Card, expected: Renewal, reason: str) -> None:
    found, why = default_renewal(card, 10)
    assert found == expected
    assert reason in why


def test_default_is_said_once_for_a_predictor(caplog: pytest.LogCaptureFixture) -> None:
    predictor = fake(FakeBackend())
    assert predictor.stream().renewal == "refresh:2"
    with predictor.streams() as streams:
        assert streams.open().renewal == "refresh:2"
    (record,) = caplog.records
    assert "the default because the decay of this model was not measured" in record.message


def test_horizon_beyond_that_of_training_and_context_beyond_the_ring_work_and_are_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    predictor = fake(FakeBackend(), context_length=CONFIG.history_length + 1)
    stream = predictor.stream(renewal="refresh:2")
    predictor.stream(renewal="replay")
    stream.push(picture(1))
    assert len(stream.forecast(4)) == 4
    assert len([one for one in caplog.records if "longer than the history" in one.message]) == 1
    for _ in range(2):
        assert len(stream.forecast(5)) == 5
    with predictor.streams(renewal="none") as streams:
        assert len(pushed(streams.open(), 1).forecast(6)) == 6
    assert len([one for one in caplog.records if "longer than the 4 frames in training" in one.message]) == 1


@pytest.mark.parametrize("sizes", [(1,), (1, 2), (1, 2, 4, 8)])
@pytest.mark.parametrize(
    ("text", "C"), [("refresh:2", 10), ("refresh:2", 1), ("refresh:3", 5), ("replay", 4), ("none", 3)]
)
def test_forecast_is_that_of_a_new_stream_fed_the_last_frames(sizes: tuple[int, ...], text: str, C: int) -> None:
    renewal, seen = Renewal.parse(text, C), []
    stream = fake(FakeBackend(sizes), C).stream(renewal=text)
    with fake(FakeBackend(sizes), C).streams(renewal=text) as streams:
        slot = streams.open()
        for value in values(4 * renewal.states * renewal.spacing):
            seen.append(value)
            stream.push(picture(value))
            slot.push(picture(value))
            expected = new_stream(seen[-renewal.age(len(seen)) :])
            np.testing.assert_array_equal(stream.forecast(3), expected)
            np.testing.assert_array_equal(slot.forecast(3), expected)
            assert stream.age == slot.age == renewal.age(len(seen))
            assert stream.pushed == slot.pushed == len(seen)


@pytest.fixture(params=["onnxruntime", "openvino"])
def real(request: pytest.FixtureRequest, any_batch: Path) -> Iterator[Predictor]:
    pytest.importorskip(request.param)
    with runtime.load(any_batch, request.param) as predictor:
        yield predictor


@pytest.mark.parametrize("path", ["exported", "any_batch"])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_stream_without_renewal_is_a_loop_over_the_backend_bit_for_bit(
    name: str, path: str, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip(name)
    folder: Path = request.getfixturevalue(path)
    rng = np.random.default_rng(2)
    with runtime.load(folder / "tiny.e3d" if path == "exported" else folder, name, threads=1) as predictor:
        stream, state = predictor.stream(renewal="none"), predictor.backend.initial_state(1)
        for _ in range(12):
            seen = rng.integers(0, 256, (1, *predictor.config.image_size, 1), np.uint8)
            prediction, state = predictor.backend.step(seen, state)
            stream.push(seen[0])
            np.testing.assert_array_equal(stream.prediction, prediction)
        ahead = [prediction]
        for _ in range(2):
            prediction, state = predictor.backend.step(prediction, state)
            ahead.append(prediction)
        np.testing.assert_array_equal(stream.forecast(3), np.concatenate(ahead))


@pytest.mark.parametrize("text", ["refresh:2", "refresh:3", "replay"])
def test_real_forecast_is_that_of_a_new_stream_fed_the_last_frames(real: Predictor, text: str) -> None:
    real.card = Card(window=Window(context_length=5, horizon=5))
    renewal = Renewal.parse(text, 5)
    rng = np.random.default_rng(1)
    seen = [rng.integers(0, 256, (*real.config.image_size, real.config.channels), np.uint8) for _ in range(26)]
    stream = real.stream(renewal=text)
    with real.streams(renewal=text) as streams:
        slot = streams.open()
        for n, one in enumerate(seen, 1):
            stream.push(one)
            slot.push(one)
            new = real.stream(renewal="none")
            for before in seen[n - renewal.age(n) : n]:
                new.push(before)
            expected = new.forecast(2)
            np.testing.assert_allclose(stream.forecast(2), expected, rtol=0, atol=SAME)
            np.testing.assert_allclose(slot.forecast(2), expected, rtol=0, atol=SAME)
    assert math.isfinite(float(np.abs(expected).max()))


def test_states_of_a_stream_are_stepped_together_where_there_is_a_size() -> None:
    both, single = FakeBackend((1, 2)), FakeBackend((1,))
    for backend in (both, single):
        stream = fake(backend, 10).stream(renewal="refresh:2")
        for value in values(14):
            stream.push(picture(value))
        backend.calls.clear()
        for value in values(7):
            stream.push(picture(value))
    assert sorted(both.calls) == [1, 2, 2, 2, 2, 2, 2]
    assert single.calls == [1] * 13


def test_replay_steps_nothing_while_pushing_and_keeps_the_state_of_a_forecast() -> None:
    backend = FakeBackend()
    stream = fake(backend, 4).stream(renewal="replay")
    for value in values(9):
        stream.push(picture(value))
    assert (backend.calls, stream.prediction, stream.age) == ([], None, 4)
    stream.forecast(3)
    assert len(backend.calls) == 4 + 2
    assert stream.prediction is not None
    stream.forecast(3)
    assert len(backend.calls) == 4 + 2 + 2
    stream.push(picture(1))
    assert stream.prediction is None


def test_replay_among_many_streams_keeps_the_state_of_a_forecast_until_the_next_push() -> None:
    backend = FakeBackend()
    with fake(backend, 4).streams(renewal="replay") as streams:
        slot = pushed(streams.open(), *values(9))
        slot.wait()
        assert backend.calls == []
        slot.forecast(3)
        slot.forecast(3)
        assert len(backend.calls) == 4 + 2 + 2
        backend.gate.clear()
        future = asked(slot, 3)
        slot.push(picture(7))
        backend.gate.set()
        np.testing.assert_array_equal(future.result(), new_stream(values(9)[-4:]))
        np.testing.assert_array_equal(slot.forecast(3), new_stream([*values(9), 7][-4:]))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_replay_takes_the_clip_graph_where_the_lengths_match(
    name: str, any_batch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    rng = np.random.default_rng(4)
    with runtime.load(any_batch, name, threads=1) as predictor:
        calls: list[str] = []
        step, clip = predictor.backend.step, predictor.backend.clip
        monkeypatch.setattr(predictor.backend, "step", lambda *given: (calls.append("step"), step(*given))[1])
        monkeypatch.setattr(predictor.backend, "clip", lambda *given: (calls.append("clip"), clip(*given))[1])
        stream, seen = predictor.stream(renewal="replay"), rng.integers(0, 256, (7, 16, 24, 1), np.uint8)
        for picture_ in seen:
            stream.push(picture_)
        found = stream.forecast(3), stream.forecast(3), stream.predict(3)
        assert calls == ["clip"]
        assert stream.prediction is not None
        np.testing.assert_array_equal(stream.prediction[0], found[0][0])
        np.testing.assert_array_equal(found[0], found[1])
        longer = stream.forecast(5)
        assert calls == ["clip", *["step"] * 8]
        np.testing.assert_allclose(longer[:3], found[0], rtol=0, atol=SAME)
        stream.push(seen[0])
        np.testing.assert_allclose(stream.forecast(3), fed(predictor, [*seen[4:], seen[0]]), rtol=0, atol=SAME)


def fed(predictor: Predictor, seen: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return the forecast of a new stream, of one state, after these pictures."""
    stream = predictor.stream(renewal="none")
    for picture_ in seen:
        stream.push(picture_)
    return stream.forecast(3)


def test_replayed_picture_whose_prediction_is_not_finite_is_named() -> None:
    backend = FakeBackend()
    backend.answer = lambda _, found: found * np.float32(np.nan)
    stream = fake(backend, 3).stream(renewal="replay")
    with fake(backend, 3).streams(renewal="replay") as streams:
        slot = pushed(streams.open(), 1, 2)
        with pytest.raises(StreamError, match="forecast: the prediction after a replayed picture is not finite"):
            slot.forecast(2)
    for value in (1, 2):
        stream.push(picture(value))
    with pytest.raises(StreamError, match="frame 0: the prediction is not finite"):
        stream.forecast(2)


def test_plain_stream_holds_one_state() -> None:
    backend = FakeBackend()
    stream = fake(backend).stream(renewal="none")
    for value in values(5):
        stream.push(picture(value))
    assert backend.live_rows == 1


def test_replayed_pictures_are_copies() -> None:
    stream, reused = fake(FakeBackend(), 2).stream(renewal="replay"), picture(10)
    stream.push(reused)
    reused[:] = 200
    np.testing.assert_array_equal(stream.forecast(3), new_stream([10]))


@pytest.mark.parametrize("sizes", [(1,), (1, 2)])
@pytest.mark.parametrize("fault", ["raises", "not finite"])
def test_picture_is_seen_by_all_states_or_by_none(sizes: tuple[int, ...], fault: str) -> None:
    """Only the step of the younger state fails; with steps of one state, the older state was stepped before."""
    backend = FakeBackend(sizes)
    stream, seen = fake(backend, 10).stream(renewal="refresh:2"), values(10)
    for value in seen:
        stream.push(picture(value))
    before = stream.forecast(3)
    calls = len(backend.calls)

    def answer(frames: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(frames) == 2 or len(backend.calls) == calls + 2:
            if fault == "raises":
                raise RuntimeError("no answer")
            found[-1] = np.nan
        return found

    backend.answer = answer
    with pytest.raises((StreamError, RuntimeError)):
        stream.push(picture(99))
    backend.answer = lambda _, found: found
    assert stream.pushed == 10
    np.testing.assert_array_equal(stream.forecast(3), before)
    for value in (1, 2, 3, 4, 5):
        stream.push(picture(value))
        seen.append(value)
    np.testing.assert_array_equal(stream.forecast(3), new_stream(seen[-8:]))


@pytest.mark.parametrize("sizes", [(1,), (1, 2, 4)])
@pytest.mark.parametrize("policy", ["raise", "hold", "reset"])
def test_bad_output_of_one_state_is_that_of_its_stream_alone(sizes: tuple[int, ...], policy: str) -> None:
    backend = FakeBackend(sizes)

    def answer(frames: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float32]:
        worst = frames.max(axis=(1, 2, 3)) > 0.999
        first = np.flatnonzero(worst)[-1:]
        found[first] = np.nan
        return found

    with fake(backend, 10).streams(renewal="refresh:2", on_bad_output=policy, max_wait_ms=100) as streams:
        good, bad = streams.open(), streams.open()
        for value in values(10):
            together([good, bad], value)
        backend.answer = answer
        good.push(picture(50))
        bad.push(picture(255))
        good.wait()
        if policy == "raise":
            with pytest.raises(StreamError, match="frame 10: the prediction is not finite"):
                bad.wait()
        else:
            bad.wait()
        backend.answer = lambda _, found: found
        np.testing.assert_array_equal(good.forecast(3), new_stream([*values(10), 50]))
        assert bad.pushed == (0 if policy == "reset" else 10)
        if policy == "raise":
            return
        pushed(bad, 60, 61)
        after = [60, 61] if policy == "reset" else [*values(10), 60, 61]
        np.testing.assert_array_equal(bad.forecast(3), new_stream(after))
        assert streams.stats()["bad_outputs"] == 1


def test_late_picture_is_dropped_for_all_states() -> None:
    backend = FakeBackend()
    with fake(backend, 10).streams(renewal="refresh:2") as streams:
        slot = pushed(streams.open(), *values(10))
        slot.wait()
        backend.gate.clear()
        slot.push(picture(1))
        slot.push(picture(2), deadline_ms=0)
        backend.gate.set()
        slot.wait()
        assert slot.stats()["dropped"]["late"] == 1
        np.testing.assert_array_equal(slot.forecast(3), new_stream([*values(10), 1]))


def test_reset_in_mid_cycle_begins_anew() -> None:
    stream = fake(FakeBackend(), 10).stream(renewal="refresh:2")
    with fake(FakeBackend(), 10).streams(renewal="refresh:2") as streams:
        slot = streams.open()
        for one in (stream, slot):
            for value in values(17):
                one.push(picture(value))
            one.reset()
            for value in values(16):
                one.push(picture(value))
            np.testing.assert_array_equal(one.forecast(3), new_stream(values(16)[-9:]))


def test_streams_of_different_renewals_do_not_mix() -> None:
    names, backend = ["none", "refresh:2", "refresh:3", "replay"] * 2, FakeBackend()
    with fake(backend, 5).streams(max_wait_ms=20) as streams:
        slots = [streams.open(renewal=name) for name in names]
        seen: list[list[int]] = [[] for _ in names]
        rng = np.random.default_rng(5)
        for _ in range(30):
            for slot, own in zip(slots, seen, strict=True):
                if rng.random() < 0.7:
                    own.append(int(rng.integers(256)))
                    slot.push(picture(own[-1]))
            for slot, own, name in zip(slots, seen, names, strict=True):
                if own and rng.random() < 0.3:
                    age = Renewal.parse(name, 5).age(len(own))
                    np.testing.assert_array_equal(slot.forecast(3), new_stream(own[-age:]))
        assert max(backend.calls) == 8, "states of different streams are stepped together"


def test_memory_limit_counts_states_and_max_streams_counts_streams() -> None:
    with fake(FakeBackend(), 10).streams(renewal="none") as streams:
        limit = streams.most_bytes(3)
    with fake(FakeBackend(), 10).streams(renewal="refresh:5", memory_limit_bytes=limit) as streams:
        _slot = streams.open()
        with pytest.raises(ResourceLimit, match="1 are open, and another does not fit into memory_limit_bytes"):
            streams.open()
    with fake(FakeBackend(), 10).streams(renewal="none", memory_limit_bytes=limit) as streams:
        _slots = streams.open(renewal="refresh:3"), streams.open()
        with pytest.raises(ResourceLimit, match="2 are open, and another does not fit into memory_limit_bytes"):
            streams.open()
    with fake(FakeBackend(), 10).streams(renewal="refresh:2", max_streams=2) as streams:
        _slots = streams.open(), streams.open()
        with pytest.raises(ResourceLimit, match="2 are open, which is max_streams"):
            streams.open()


@pytest.mark.parametrize("text", ["none", "refresh:2", "refresh:3", "replay"])
@pytest.mark.parametrize("count", [0, 1, 4, 11, 12, 17])
def test_snapshot_carries_its_renewal_and_all_states(text: str, count: int, tmp_path: Path) -> None:
    renewal, seen = Renewal.parse(text, 5), values(40)
    predictor = fake(FakeBackend(), 5)
    stream = predictor.stream(renewal=text)
    with fake(FakeBackend(), 5).streams(renewal=text) as streams:
        slot = streams.open()
        for value in seen[:count]:
            stream.push(picture(value))
            slot.push(picture(value))
        fork = slot.fork()
        for number, taken in enumerate((stream.snapshot(), slot.snapshot())):
            taken.save(tmp_path / f"{number}.npz")
        snapshots = [Snapshot.load(tmp_path / f"{number}.npz") for number in (0, 1)]
        again = [predictor.stream(snapshots[1]), streams.open(snapshots[0]), fork, stream]
        for one in again:
            assert (one.renewal, one.pushed, one.age) == (text, count, renewal.age(count))
            for n, value in enumerate(seen[count:], count + 1):
                one.push(picture(value))
                if n % 5 == 0:
                    np.testing.assert_array_equal(one.forecast(3), new_stream(seen[:n][-renewal.age(n) :]))


def test_stream_from_a_snapshot_takes_its_renewal_and_naming_another_is_refused() -> None:
    predictor = fake(FakeBackend(), 5)
    stream = predictor.stream(renewal="refresh:3")
    stream.push(picture(1))
    snapshot = stream.snapshot()
    with predictor.streams(renewal="none") as streams:
        restored, other = streams.open(snapshot), streams.open()
        assert restored.renewal == "refresh:3"
        with pytest.raises(StreamError, match=r"has the renewal refresh:3 .*, the stream has none"):
            streams.open(snapshot, renewal="none")
        with pytest.raises(StreamError, match="open a stream from the snapshot without `renewal`"):
            other.restore(snapshot)
        assert streams.stats()["streams"] == 2, "the refused stream is closed"
    assert predictor.stream(snapshot, renewal="refresh:3").renewal == "refresh:3"
    with pytest.raises(StreamError, match="snapshot: has the renewal refresh:3"):
        predictor.stream(snapshot, renewal="refresh:2")


@pytest.mark.parametrize("text", ["refresh:4", "refresh:2", "replay"])
def test_fork_of_a_stream_keeps_the_context_of_its_snapshot(text: str) -> None:
    seen, stream = values(20), fake(FakeBackend(), 6).stream(renewal=text)
    for value in seen[:9]:
        stream.push(picture(value))
    renewal = Renewal.parse(text, 6)
    with fake(FakeBackend(), 3).streams() as streams:
        fork = streams.open(stream.snapshot()).fork()
        for n, value in enumerate(seen[9:], 10):
            pushed(fork, value).wait()
            assert fork.age == renewal.age(n)
            np.testing.assert_array_equal(fork.forecast(3), new_stream(seen[:n][-renewal.age(n) :]))


def test_snapshot_that_lacks_a_state_is_refused(tmp_path: Path) -> None:
    stream = fake(FakeBackend(), 5).stream(renewal="refresh:2")
    for value in values(7):
        stream.push(picture(value))
    taken = stream.snapshot()
    lacking = Snapshot(taken.identity, taken.states[:1], taken.prediction, taken.pushed, taken.renewal, 5)
    with pytest.raises(SnapshotError, match="got 1 states and 0 frames, expected 2 and 0 for renewal refresh:2"):
        stream.restore(lacking)
    negative = Snapshot(taken.identity, taken.states[:1], taken.prediction, -5, "none", 5)
    with pytest.raises(SnapshotError, match="got pushed -5"):
        fake(FakeBackend(), 5).stream(negative)
    odd = Snapshot(taken.identity, taken.states, taken.prediction, taken.pushed, "refresh:9", 5)
    with pytest.raises(SnapshotError, match="got refresh:9, expected 2 to 5"):
        fake(FakeBackend(), 5).stream(odd)


def test_streams_that_end_leave_no_states() -> None:
    backend = FakeBackend()
    with fake(backend, 5).streams(max_wait_ms=0) as streams:
        for text in ["refresh:3", "replay", "none"] * 5:
            slot = streams.open(renewal=text)
            pushed(slot, *values(9)).forecast(2)
            slot.close()
        streams.open().wait()
        assert backend.live_rows <= 2, "the row of the initial state, and at most one more"


def test_benchmark_times_whole_cycles_of_a_stream(any_batch: Path) -> None:
    bundle = Bundle.open(any_batch)
    with closing(open_backend(bundle, "onnxruntime", threads=1)) as backend:
        stepped = 0
        step = backend.step

        def counted(frame: NDArray[np.uint8], state: object) -> object:
            nonlocal stepped
            stepped += len(frame)
            return step(frame, state)

        backend.step = counted  # type: ignore[method-assign, assignment]
        for text, steps, frames in (("none", 1, 1), ("refresh:2", 5, 3), ("refresh:4", 3, 1), ("replay", 0, 1)):
            task = make_task("stream", bundle, backend, renewal=text)
            for _ in range(task.fill):
                task.call()
            for _ in range(3):
                stepped = 0
                task.call()
                assert (task.steps, task.frames) == (stepped, frames) == (steps, frames)


def test_benchmark_of_a_renewal_reports_time_per_frame(any_batch: Path) -> None:
    command = ["benchmark", str(any_batch), "--backends", "onnxruntime", "--seconds", "0.01", "--no-memory", "--json"]
    done = CliRunner().invoke(main, [*command, "--what", "stream", "--renewal", "refresh:2"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    (row,) = found["results"]
    assert (found["renewal"], row["steps_per_call"], row["frames_per_call"]) == ("refresh:2", 5, 3)
    assert row["ms_per_frame"] == pytest.approx(row["median_ms"] / 3)
    assert row["frames_per_second"] == pytest.approx(1000 / row["ms_per_frame"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["benchmark", "BUNDLE", "--renewal", "none"], "--renewal requires --what stream"),
        (["benchmark", "BUNDLE", "--what", "clip", "--renewal", "none"], "--renewal requires --what stream"),
        (["benchmark", "BUNDLE", "--what", "stream", "--renewal", "often"], "renewal: got 'often', expected none"),
        (["benchmark", "BUNDLE", "--streams", "2", "--renewal", "replay"], "replay, which makes no steps"),
        (["stream", "BUNDLE", "CLIP", "--renewal", "refresh:5"], "renewal: got refresh:5, expected 2 to 4 states"),
    ],
)
def test_bad_renewals_end_commands_with_exit_code_2(
    arguments: list[str], message: str, any_batch: Path, tmp_path: Path
) -> None:
    write_video(tmp_path / "clip.mp4", np.zeros((6, 16, 24), np.uint8))
    names = {"BUNDLE": str(any_batch), "CLIP": str(tmp_path / "clip.mp4")}
    quick = ["--seconds", "0.01", "--no-memory"] if arguments[0] == "benchmark" else []
    done = CliRunner().invoke(main, [*(names.get(one, one) for one in arguments), *quick])
    assert done.exit_code == 2, done.output
    assert message in done.stderr


@pytest.mark.parametrize("text", ["none", "refresh:2", "replay"])
def test_stream_command_takes_a_renewal(text: str, any_batch: Path, tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (20, 16, 24), np.uint8)
    write_video(tmp_path / "clip.mp4", clip)
    command = ["stream", str(any_batch), str(tmp_path / "clip.mp4"), "--horizon", "2", "--json", "--renewal", text]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["renewal"], found["frames"]) == (text, 20)
    assert math.isfinite(found["sources"][0]["mse"])
