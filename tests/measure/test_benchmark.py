"""Benchmarks with a simulated clock: no test depends on the speed of a machine."""

import json
import logging
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import cycle, repeat
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy import inventory
from e3d_deploy.bundle.folder import MODEL
from e3d_deploy.commands._benchmark_tables import answer_line, device_time
from e3d_deploy.errors import BenchmarkError, ConfigError
from e3d_deploy.measure.baseline import compare, read_baseline, regressions
from e3d_deploy.measure.benchmark import benchmark
from e3d_deploy.measure.environment import PACKAGES
from e3d_deploy.measure.memory import peak_alone
from e3d_deploy.measure.results import Answer, Point
from e3d_deploy.measure.stream_curve import MAX_STREAMS, LatencyGoal, max_streams, portions, stream_curve
from e3d_deploy.measure.tasks import Task, make_task
from e3d_deploy.measure.timing import PATIENCE, Block, Runner, blocks_in_turn, median_interval, summary
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from tests.fake_backend import FakeBackend
from tests.tools import Clock, e3d

DOCS = (Path(__file__).parents[2] / "docs" / "benchmark.md").read_text()


class Paced:
    """Real backend. Its calls advance the simulated clock by given times."""

    device: Any = None

    def __init__(
        self,
        bundle: Bundle,
        clock: Clock,
        ms: Callable[[int], float],
        *,
        name: str = "paced",
        sizes: tuple[int, ...] = (1,),
        pads: bool = False,
    ) -> None:
        self.inner, self.clock, self.ms, self.name = OnnxRuntimeBackend(bundle, threads=1), clock, ms, name
        self.sizes, self.pads = sizes, pads
        self.steps: list[int] = []
        self.seen: list[np.dtype[Any]] = []

    def initial_state(self, batch: int | None = None) -> Any:
        return self.inner.initial_state(1)

    def step(self, frame: NDArray[Any], state: Any) -> Any:
        self.clock.now += self.ms(len(frame)) / 1000
        self.steps.append(len(frame))
        self.seen.append(frame.dtype)
        prediction, state = self.inner.step(frame[:1], state)
        return prediction.repeat(len(frame), axis=0), state

    def gather(self, rows: Sequence[tuple[Any, int]]) -> Any:
        return rows[0][0]

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> Any:
        return self.inner.from_arrays(arrays)

    def clip(self, context: NDArray[np.float32]) -> Any:
        self.clock.now += 5 * self.ms(1) / 1000
        return self.inner.clip(context)

    def rollout(self, prediction: NDArray[np.float32], state: Any) -> Any:
        self.clock.now += 2 * self.ms(1) / 1000
        return self.inner.rollout(prediction, state)

    def to_arrays(self, state: Any) -> Any:
        return self.inner.to_arrays(state)


@pytest.fixture
def bundle(exported: Path) -> Bundle:
    """Return the tiny bundle, with context length 4, horizon 3 and history length 4."""
    return Bundle.open(exported / "tiny.e3d")


def lasting(clock: Clock, ms: Iterator[float]) -> Task:
    """Return a task whose calls take the given times in order."""

    def call() -> None:
        clock.now += next(ms) / 1000

    return Task(call, steps=1, fill=4, forecasts=False)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3, 1, 2, 5, 4], (1, 5, 0.9375)),
        (list(range(10)), (1, 8, 1 - 22 / 1024)),
        ([2, 1], (1, 2, 0.5)),
        ([7], (7, 7, 0)),
    ],
)
def test_the_interval_of_a_median_depends_only_on_order_statistics(
    values: list[float], expected: tuple[float, float, float]
) -> None:
    assert median_interval(values) == pytest.approx(expected)


def test_a_summary_takes_the_median_of_blocks_and_percentiles_of_all_calls() -> None:
    blocks = [Block([0.001, 0.002, 0.003], [0.5]), Block([0.004, 0.005, 0.1], [0.7])]
    told = summary(blocks)
    assert told.median_ms == pytest.approx(3.5)
    assert told.median_ci_ms == pytest.approx([2, 5])
    assert told.p99_ms == pytest.approx(np.percentile([1, 2, 3, 4, 5, 100], 99))
    assert told.device_median_ms == pytest.approx(0.6)
    assert told.calls == 6
    assert summary([Block([0.001])]).device_median_ms is None


def test_a_block_has_three_calls_unless_one_takes_its_whole_time() -> None:
    clock = Clock()
    assert len(Runner("short", lasting(clock, repeat(10)), clock).block(0.001).seconds) == 1
    assert len(Runner("even", lasting(clock, repeat(10)), clock).block(0.015).seconds) == 3
    assert len(Runner("long", lasting(clock, repeat(10)), clock).block(0.095).seconds) == 10


def test_warm_up_fills_the_history_and_ends_when_time_settles() -> None:
    clock = Clock()
    times = [50.0] * 4 + [20.0] * 3 + [10.0] * 3 + [10.2] * 3
    runner = Runner("settles", lasting(clock, iter(times)), clock)
    runner.warm_up(0.025)
    assert (runner.settled, runner.warm_up_calls) == (True, 4 + 3 * 3)


def test_warm_up_ends_if_the_time_never_settles_and_says_so() -> None:
    clock = Clock()
    runner = Runner("restless", lasting(clock, cycle([*[10.0] * 3, *[20.0] * 3])), clock)
    runner.warm_up(0.03)
    assert not runner.settled
    assert runner.warm_up_calls > 2 * PATIENCE


def test_sides_take_turns() -> None:
    clock, order = Clock(), []

    def side(name: str) -> Runner:
        def call() -> None:
            order.append(name)
            clock.now += 1

        return Runner(name, Task(call, 1, 0, forecasts=False), clock)

    blocks = blocks_in_turn([side("a"), side("b")], seconds=1, repeats=3, progress=lambda _: None)
    assert "".join(order) == "aa" + "bb" + "ab" * 3
    assert [len(done) for done in blocks] == [3, 3]


def test_units_follow_from_the_median(bundle: Bundle) -> None:
    clock = Clock()
    sides = [Paced(bundle, clock, lambda _: 20, name="slow"), Paced(bundle, clock, lambda _: 5, name="fast")]
    result = benchmark(bundle, sides, ("step", "rollout", "clip", "end-to-end"), seconds=0.05, clock=clock)  # type: ignore[arg-type]
    rows = {(row.what, row.backend): row for row in result.rows}
    assert list(rows)[:3] == [("step", "slow"), ("step", "fast"), ("rollout", "slow")]
    step, rollout = rows["step", "fast"], rows["rollout", "fast"]
    assert step.timing.median_ms == pytest.approx(5)
    assert step.timing.median_ci_ms == pytest.approx([5, 5])
    assert step.speedup == pytest.approx(4)
    assert step.frames_per_second == pytest.approx(200)
    assert (step.sequences_per_second, rollout.sequences_per_second) == (None, None)
    assert step.settled
    assert (rollout.steps_per_call, rollout.ms_per_step) == (2, pytest.approx(5))
    for what, calls_ms in (("clip", 25), ("end-to-end", 4 * 5 + 10)):
        row = rows[what, "fast"]
        assert row.timing.median_ms == pytest.approx(calls_ms)
        assert row.steps_per_call == 6
        assert row.sequences_per_second == pytest.approx(1000 / calls_ms)
        assert row.frames_per_second == pytest.approx(6 * 1000 / calls_ms)
    assert all((row.accuracy.max_abs_difference or 0) < 1e-4 and row.accuracy.within_budget for row in rows.values())
    assert result.compared_with == "slow"
    assert result.confidence == pytest.approx(0.9375)


def test_end_to_end_reads_pictures_from_the_video(bundle: Bundle) -> None:
    backend, played = Paced(bundle, Clock(), lambda _: 1), []

    def play() -> Iterator[NDArray[np.uint8]]:
        for number in range(100):
            played.append(number)
            yield np.full((16, 24, 1), number, np.uint8)

    make_task("end-to-end", bundle, backend, play).call()  # type: ignore[arg-type]
    assert played == [0, 1, 2, 3]
    assert backend.seen == [np.uint8] * 4


def test_device_time_is_separate_if_a_backend_reports_it(bundle: Bundle) -> None:
    clock = Clock()
    backend, measured = Paced(bundle, clock, lambda _: 10), []
    backend.device = SimpleNamespace(device_ms=2.0, measure=measured.append)  # type: ignore[assignment]
    result = benchmark(bundle, [backend], ("step", "end-to-end"), seconds=0.02, clock=clock)  # type: ignore[list-item]
    step, whole = result.rows
    assert (step.timing.median_ms, step.timing.device_median_ms) == (pytest.approx(10), pytest.approx(2))
    assert whole.timing.device_median_ms == pytest.approx(4 * 2 + 2)
    assert not step.on_host
    assert set(measured) == {True}


@pytest.mark.parametrize(
    ("device_ms", "on_host", "shown"),
    [(None, True, "same as median"), (None, False, "not reported"), (1.5, False, "1.50 ms")],
)
def test_the_device_column_distinguishes_host_times_from_missing_times(
    device_ms: float | None, on_host: bool, shown: str
) -> None:
    row: Any = SimpleNamespace(timing=SimpleNamespace(device_median_ms=device_ms), on_host=on_host)
    assert device_time(row) == shown


def test_a_backend_with_wrong_predictions_is_shown_as_wrong(bundle: Bundle) -> None:
    class Broken(Paced):
        def step(self, frame: NDArray[Any], state: Any) -> Any:
            prediction, following = super().step(frame, state)
            return prediction * np.nan, following

    clock = Clock()
    (row,) = benchmark(bundle, [Broken(bundle, clock, lambda _: 1)], seconds=0.01, clock=clock).rows  # type: ignore[list-item]
    assert row.accuracy.max_abs_difference is None
    assert not row.accuracy.within_budget


@pytest.mark.parametrize(
    ("what", "names", "message"),
    [
        (("step",), (), "backends: got none, expected at least one"),
        ((), ("a",), "what: got nothing"),
        (("step", "frame"), ("a",), "what: got frame, expected one or more of step, stream, rollout"),
        (("step",), ("a", "a"), "given twice"),
    ],
)
def test_missing_or_unknown_tasks_are_refused(
    bundle: Bundle, what: tuple[str, ...], names: tuple[str, ...], message: str
) -> None:
    sides = [Paced(bundle, Clock(), lambda _: 1, name=name) for name in names]
    with pytest.raises(ConfigError, match=message):
        benchmark(bundle, sides, what)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("streams", "sizes", "pads", "expected"),
    [
        (3, (1,), False, [1, 1, 1]),
        (7, (1, 2, 4, 8), False, [4, 2, 1]),
        (7, (1, 2, 4, 8), True, [8]),
        (19, (1, 2, 4, 8), True, [8, 8, 4]),
        (6, (4,), False, [4, 4]),
        (1, (4,), True, [4]),
    ],
)
def test_streams_share_steps_of_the_available_sizes(
    streams: int, sizes: tuple[int, ...], pads: bool, expected: list[int]
) -> None:
    assert portions(FakeBackend(sizes, pads=pads), streams) == expected


def point_of(streams: int, ms: float) -> Point:
    return Point(
        streams=streams, step_sizes=(streams,), frames_per_second=1.0, p50_ms=ms, p99_ms=ms, mean_ms=ms, rounds=1
    )


@pytest.mark.parametrize(
    ("ms", "goal", "expected"),
    [
        (4.0, LatencyGoal(33, 30), (8, False)),
        (4.0, LatencyGoal(1000, 30), (8, False)),  # a round must not take longer than the time between two frames
        (4.0, LatencyGoal(10, 30), (2, False)),
        (40.0, LatencyGoal(33, 30), (0, False)),
        (0.01, LatencyGoal(33, 30), (MAX_STREAMS, True)),
    ],
)
def test_the_maximum_number_of_streams_is_found(ms: float, goal: LatencyGoal, expected: tuple[int, bool]) -> None:
    known: dict[int, Point] = {}
    answer = max_streams("a", lambda streams: point_of(streams, ms * streams), goal, known)
    assert (answer.streams, answer.at_least) == expected
    assert answer.at == known.get(expected[0])
    assert answer.beyond == (None if expected[1] else known[expected[0] + 1])


def test_measured_points_are_not_measured_again() -> None:
    known = {streams: point_of(streams, 4.0 * streams) for streams in (1, 4, 16)}
    asked: list[int] = []

    def measure(streams: int) -> Point:
        asked.append(streams)
        return point_of(streams, 4.0 * streams)

    assert max_streams("a", measure, LatencyGoal(33, 30), known).streams == 8
    assert asked == [10, 7, 8, 9]


def test_a_curve_has_rates_times_and_the_answer_to_a_latency_goal(bundle: Bundle) -> None:
    clock = Clock()
    batching = Paced(bundle, clock, lambda size: 8 + 2 * size, name="batching", sizes=(1, 2, 4))
    single = Paced(bundle, clock, lambda _: 40, name="single")
    options: dict[str, Any] = {"goal": LatencyGoal(33, 30), "renewal": "none", "seconds": 0.02, "clock": clock}
    found = stream_curve(bundle, [batching, single], [2, 1], **options)  # type: ignore[list-item]
    curve = {point.streams: point for point in found.curves[0].points}
    assert curve[2].p50_ms == pytest.approx(12)
    assert curve[2].frames_per_second == pytest.approx(2 / 0.012)
    assert curve[9].step_sizes == (4, 4, 1)
    first, second = found.answers
    assert (first.backend, first.streams) == ("batching", 8)  # two steps of batch size 4
    assert (second.backend, second.streams, second.best.streams) == ("single", 0, 1)
    assert second.best.p99_ms == pytest.approx(40)
    assert [point.streams for point in found.curves[1].points] == [1, 2]
    assert set(batching.steps) == {1, 2, 4}


def test_a_curve_counts_the_states_of_a_renewal(bundle: Bundle) -> None:
    """For C = 4, refresh:2 has S = 3: both states are stepped in two of three frames."""
    clock = Clock()
    side = Paced(bundle, clock, lambda size: 10 * size, sizes=(1, 2, 4))
    found = stream_curve(bundle, [side], [2], renewal="refresh:2", seconds=0.5, clock=clock)  # type: ignore[list-item]
    (point,) = found.curves[0].points
    assert found.renewal == "refresh:2"
    assert point.step_sizes == (4,)
    assert point.mean_ms == pytest.approx(10 * 2 * 5 / 3, rel=0.05)
    with pytest.raises(ConfigError, match="replay, which makes no steps"):
        stream_curve(bundle, [side], [2], renewal="replay")  # type: ignore[list-item]


def test_a_curve_of_graphs_for_two_streams_has_no_renewal(two_streams: Path) -> None:
    bundle = Bundle.open(two_streams)
    with closing(OnnxRuntimeBackend(bundle, threads=1)) as side:
        found = stream_curve(bundle, [side], [3], seconds=0.001, repeats=1)
        with pytest.raises(ConfigError, match="renewal: got refresh:2, but the graphs step 2 streams at once"):
            stream_curve(bundle, [side], [3], renewal="refresh:2")
    (point,) = found.curves[0].points
    assert (found.renewal, point.step_sizes) == ("none", (2, 2))


@pytest.mark.parametrize("counts", [[], [0], [1, -2]])
def test_a_curve_of_no_streams_is_refused(bundle: Bundle, counts: list[int]) -> None:
    with pytest.raises(ConfigError, match="expected numbers of at least 1"):
        stream_curve(bundle, [], counts)


def test_an_answer_is_one_line() -> None:
    two, three = point_of(2, 20), point_of(3, 40)
    answer = Answer(backend="a", streams=2, at_least=False, at=two, beyond=three, best=two)
    assert (
        answer_line(answer, 33, 30)
        == "a: streams at 30 frames/s with p99 ≤ 33 ms: 2, with p99 20.00 ms; with 3 streams, p99 is 40.00 ms"
    )
    most = replace(answer, streams=MAX_STREAMS, at_least=True, beyond=None)
    asked = "a: streams at 30 frames/s with p99 ≤ 33 ms"
    assert answer_line(most, 33, 30) == f"{asked}: at least {MAX_STREAMS}, with p99 20.00 ms"


def result_of(**ms: float) -> dict[str, Any]:
    """Return the part of a result that a comparison reads."""
    return {
        "schema": 1,
        "bundle": {"digest": "d" * 64, "batch": 1},
        "environment": {"cpu": "one", "gpu": None, "threads": 1, "date": "2026-11-22"},
        "results": [{"what": "step", "backend": backend, "median_ms": median} for backend, median in ms.items()],
    }


def test_a_result_beyond_the_tolerance_has_regressed() -> None:
    found = compare(result_of(torch=10.9, onnxruntime=12.0), result_of(torch=10.0, onnxruntime=10.0), 0.1)
    assert [row.regressed for row in found.rows] == [False, True]
    assert regressions(found) == [
        "step of onnxruntime: 12.00 ms is 1.20 times the baseline's 10.00 ms, but at most 1.10 times is allowed"
    ]
    assert regressions(compare(result_of(torch=12.0), result_of(torch=10.0), tolerance=0.25)) == []


@pytest.mark.parametrize(
    ("part", "field", "value", "words"),
    [
        ("environment", "cpu", "two", "cpu: two, now one"),
        ("environment", "gpu", "NVIDIA H200", "gpu: NVIDIA H200, now None"),
        ("environment", "threads", None, "threads: None, now 1"),
        ("bundle", "digest", "e" * 64, f"bundle: {'e' * 16}, now {'d' * 16}"),
        ("bundle", "batch", 2, "batch: 2, now 1"),
    ],
)
def test_no_verdict_if_conditions_differ(part: str, field: str, value: object, words: str) -> None:
    baseline = result_of(torch=1.0)
    baseline[part][field] = value
    found = compare(result_of(torch=100.0), baseline, 0.1)
    assert not found.comparable
    assert found.different == (words,)
    assert found.rows[0].ratio == 100
    assert regressions(found) == []


def test_a_baseline_that_records_no_gpu_is_one_without_gpu() -> None:
    baseline = result_of(torch=1.0)
    del baseline["environment"]["gpu"]
    assert compare(result_of(torch=1.0), baseline, 0.1).comparable


def test_the_gpu_is_named_if_there_is_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    core = type(sys)("cuda.core")
    core.Device = lambda _: SimpleNamespace(name="NVIDIA H200", compute_capability=(9, 0))  # type: ignore[attr-defined]
    core.system = SimpleNamespace(get_user_mode_driver_version=lambda: (13, 0))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", type(sys)("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.core", core)
    monkeypatch.setattr(inventory, "has_nvidia_driver", lambda: False)
    assert inventory.machine()["gpu"] is None
    assert "GPU: –" in e3d("doctor").stdout
    monkeypatch.setattr(inventory, "has_nvidia_driver", lambda: True)
    assert inventory.machine()["gpu"] == "NVIDIA H200, compute capability 9.0, driver for CUDA 13.0"
    for nothing in (type(sys)("cuda.core"), None):  # a version without Device, and no cuda.core
        monkeypatch.setitem(sys.modules, "cuda.core", nothing)
        assert inventory.machine()["gpu"] is None
    monkeypatch.undo()
    monkeypatch.setattr(inventory, "_gpu", lambda: "NVIDIA H200")
    assert "GPU: NVIDIA H200" in e3d("doctor").stdout


def test_versions_of_the_packages_in_extras_are_recorded() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    assert set(PACKAGES) <= {one.partition(">=")[0] for requirements in lists for one in requirements}


def test_results_that_only_one_run_has_are_named() -> None:
    found = compare(result_of(torch=1.0), result_of(openvino=1.0), 0.1)
    assert found.rows == ()
    assert found.missing == ("step of openvino", "step of torch")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 1}', json.dumps(result_of(torch=0.0)), json.dumps(result_of() | {"schema": 9})]
)
def test_a_file_that_is_not_a_benchmark_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "before.json").write_text(text)
    with pytest.raises(BenchmarkError, match=r"before.json: (not a result|schema 9)"):
        read_baseline(tmp_path / "before.json")
    with pytest.raises(ConfigError, match="no such file; make one with"):
        read_baseline(tmp_path / "nowhere.json")


def test_peak_memory_is_measured_in_a_separate_process(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    peak = peak_alone(bundle, "onnxruntime", ["step"], threads=1)
    assert peak is not None
    assert 20e6 < peak < 1e9
    with caplog.at_level(logging.WARNING):
        assert peak_alone(bundle, "no_such", ["step"], threads=1) is None
    assert "peak memory of no_such is unknown" in caplog.text


def test_peak_memory_of_another_bundle_is_not_used(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    opened = replace(bundle, manifest=replace(bundle.manifest, files={**bundle.manifest.files, MODEL: "another"}))
    with caplog.at_level(logging.WARNING):
        assert peak_alone(opened, "onnxruntime", ["step"], threads=1) is None
    assert "was exported again in the meantime; run the command again" in caplog.text


# Schema of the output of `e3d benchmark --json`: a type, a tuple of types, a list of one kind, or fields of an object.
POINT = {
    "streams": int,
    "step_sizes": [int],
    "frames_per_second": float,
    "p50_ms": float,
    "p99_ms": float,
    "mean_ms": float,
    "rounds": int,
}
SCHEMA: dict[str, Any] = {
    "schema": int,
    "what": dict,
    "decodes": bool,
    "renewal": (str, NoneType),
    "compared_with": str,
    "max_abs_difference_from": str,
    "repeats": int,
    "block_seconds": float,
    "confidence": float,
    "bundle": {"path": str, "digest": str, "batch": int, "precision": str},
    "results": [
        {
            "what": str,
            "backend": str,
            "on_host": bool,
            "median_ms": float,
            "median_ci_ms": [float],
            "p90_ms": float,
            "p99_ms": float,
            "device_median_ms": (float, NoneType),
            "calls": int,
            "steps_per_call": int,
            "frames_per_call": int,
            "ms_per_step": (float, NoneType),
            "ms_per_frame": float,
            "frames_per_second": float,
            "sequences_per_second": (float, NoneType),
            "speedup": float,
            "warm_up_calls": int,
            "settled": bool,
            "peak_bytes": (int, NoneType),
            "max_abs_difference": (float, NoneType),
            "dssim": (float, NoneType),
            "dpsnr_db": (float, NoneType),
            "within_budget": bool,
        }
    ],
    "streams": {
        "how": str,
        "target_p99_ms": (float, NoneType),
        "fps": (float, NoneType),
        "renewal": str,
        "curves": [{"backend": str, "points": [POINT]}],
        "answers": [
            {
                "backend": str,
                "streams": int,
                "at_least": bool,
                "at": (dict, NoneType),
                "beyond": (dict, NoneType),
                "best": POINT,
            }
        ],
    },
    "baseline": {
        "date": str,
        "tolerance": float,
        "comparable": bool,
        "different": [str],
        "rows": [
            {
                "what": str,
                "backend": str,
                "median_ms": float,
                "baseline_ms": float,
                "ratio": float,
                "regressed": bool,
            }
        ],
        "missing": [str],
    },
    "environment": {
        "system": str,
        "cpu": str,
        "cores": int,
        "nvidia_driver": bool,
        "gpu": (str, NoneType),
        "threads": (int, NoneType),
        "clock_mhz": (float, NoneType),
        "max_clock_mhz": (float, NoneType),
        "governor": (str, NoneType),
        "load_1_minute": (float, NoneType),
        "versions": dict,
        "date": str,
        "peak_resident_bytes": (int, NoneType),
    },
}


def check(value: Any, schema: Any, place: str = "result") -> None:
    if isinstance(schema, dict):
        assert set(value) == set(schema), place
        for name, inner in schema.items():
            check(value[name], inner, f"{place}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list), place
        for number, one in enumerate(value):
            check(one, schema[0], f"{place}[{number}]")
    else:
        assert isinstance(value, schema), f"{place}: {value!r}"


def fields(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return fields(schema[0])
    if not isinstance(schema, dict):
        return set()
    return set(schema).union(*(fields(inner) for inner in schema.values()))


QUICK = ("--backends", "onnxruntime", "--threads", 1, "--seconds", 0.001, "--no-memory")


def test_json_follows_its_schema_and_a_later_run_is_compared(exported: Path, tmp_path: Path) -> None:
    everything = ["--what", "step,rollout,clip,end-to-end", "--streams", "1,2", "--latency-goal", "0.0001ms"]
    command = ["benchmark", exported / "tiny.e3d", *QUICK, *everything, "--json"]
    before = tmp_path / "before.json"
    before.write_text(e3d(*command).stdout)
    first = json.loads(before.read_text())
    check(first, SCHEMA | {"baseline": NoneType})
    assert [row["what"] for row in first["results"]] == ["step", "rollout", "clip", "end-to-end"]
    assert first["decodes"]

    for row in first["results"]:
        row["median_ms"] *= 1e6  # no machine is this much slower in the second run
    before.write_text(json.dumps(first))
    picture = tmp_path / "times.png"
    again = e3d(*command, "--baseline", before, "--picture", picture)
    check(json.loads(again.stdout), SCHEMA)
    assert "step on onnxruntime: 0.00 times the baseline" in again.stderr
    assert "PASS no measurement is slower" in again.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")

    first["results"][0]["median_ms"] /= 1e12
    before.write_text(json.dumps(first))
    slower = e3d(*command, "--baseline", before, code=3)
    assert slower.stderr.splitlines()[-1].startswith("FAIL step of onnxruntime: ")
    assert "rollout" not in slower.stderr.splitlines()[-1]

    first["results"], kept = [{**first["results"][0], "backend": "openvino"}], first["results"]
    before.write_text(json.dumps(first))
    none = e3d(*command, "--baseline", before)
    assert "WARN no verdict: the baseline and this run have no measurement in common" in none.stderr
    assert "PASS" not in none.stderr

    first["results"] = kept
    first["environment"]["threads"] = 64
    before.write_text(json.dumps(first))
    other = e3d(*command, "--baseline", before)
    assert "WARN no verdict: the baseline differs in threads: 64, now 1" in other.stderr


def test_every_field_is_documented() -> None:
    assert {field for field in fields(SCHEMA) if f"`{field}`" not in DOCS} == set()


def test_the_table_shows_streams_and_the_answer(exported: Path) -> None:
    none = e3d(
        "benchmark",
        exported / "tiny.e3d",
        *QUICK,
        "--streams",
        "1,3",
        "--latency-goal",
        "0.0001ms",
        "--renewal",
        "none",
    ).stdout
    assert "3 × 1" in none
    assert "onnxruntime: streams at 30 frames/s with p99 ≤ 0.0001 ms: 0; the best is" in none
    memory = e3d("benchmark", exported / "tiny.e3d", *QUICK[:-1], "--what", "clip").stdout
    assert "sequences/s" in memory
    assert " MB" in memory
    assert "same as median" in memory


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backends", ""], "expected names separated by commas"),
        (["--backends", "torch,,openvino"], "expected names separated by commas"),
        (["--backends", "torch,torch"], "expected each name once"),
        (["--what", "frame"], "what: got frame, expected one or more of step, stream, rollout, clip, end-to-end"),
        (["--what", ""], "expected names separated by commas"),
        (["--streams", "0,1"], "expected numbers of 1 or more"),
        (["--streams", ""], "expected whole numbers"),
        (["--streams", "two"], "expected whole numbers"),
        (["--latency-goal", "33"], "expected a time above 0 with its unit"),
        (["--latency-goal", "0ms"], "expected a time above 0 with its unit"),
        (["--latency-goal", "soons"], "expected a time above 0 with its unit"),
        (["--latency-goal", "nanms"], "expected a time above 0 with its unit"),
        (["--fps", "0"], "0.0 is not in the range"),
        (["--repeats", "4"], "got 4, expected a whole number from 5 to 1,000"),
        (["--seconds", "0"], "0.0 is not in the range"),
        (["--tolerance", "-1"], "is not in the range"),
        (["--baseline", "nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_bad_options_are_refused_before_the_work(exported: Path, options: list[str], message: str) -> None:
    assert message in e3d("benchmark", exported / "tiny.e3d", *options, code=2).stderr


def test_a_baseline_of_something_else_exits_5(exported: Path) -> None:
    line = e3d("benchmark", exported / "tiny.e3d", "--baseline", exported / "tiny.e3d" / "manifest.json", code=5).stderr
    assert "not a result of `e3d benchmark --json`" in line
