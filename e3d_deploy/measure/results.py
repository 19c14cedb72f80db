"""Results of `e3d benchmark`; docs/benchmark.md describes the JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from e3d_deploy.json_values import json_object

SCHEMA = 1
DIFFERENCE_FROM = "PyTorch float32: predictions of the whole rollout, step by step and by each graph"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Statistics of the time of a call."""

    median_ms: float
    median_ci_ms: tuple[float, float]
    """Confidence interval of the median (ms)."""
    p90_ms: float
    p99_ms: float
    device_median_ms: float | None
    """Median time on the device (ms); None if the backend does not report it."""
    calls: int
    """Number of calls timed."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Difference of a backend from PyTorch."""

    max_abs_difference: float | None
    """Largest absolute difference of predictions; None if it is not finite."""
    dssim: float | None
    """Loss of SSIM against the truth."""
    dpsnr_db: float | None
    """Loss of PSNR against the truth (dB)."""
    within_budget: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """Result of one task on one backend."""

    what: str
    """Name of the task."""
    backend: str
    on_host: bool
    """True if the backend computes on the host."""
    timing: Timing
    steps_per_call: int
    frames_per_call: int
    ms_per_step: float | None
    ms_per_frame: float
    frames_per_second: float
    """Frames of all streams per second."""
    sequences_per_second: float | None
    """Number of forecasts from a context per second; None for tasks that do not make such forecasts."""
    speedup: float
    """Median over the turns of the time of the first backend divided by the time of this backend in the same turn."""
    warm_up_calls: int
    settled: bool
    """True if the median time had settled, by `timing.SETTLED`, when the warm-up ended."""
    peak_bytes: int | None
    """Peak memory of a process that runs only this backend (bytes)."""
    accuracy: Accuracy

    def to_json(self) -> dict[str, Any]:
        """Return the row as one flat JSON object."""
        found = json_object(self)
        timing, accuracy = found.pop("timing"), found.pop("accuracy")
        first = {name: found.pop(name) for name in ("what", "backend", "on_host")}
        return {**first, **timing, **found, **accuracy}


@dataclass(frozen=True, kw_only=True)
class Point:
    """Time of a round at one number of streams."""

    streams: int
    step_sizes: tuple[int, ...]
    """Number of streams in each step of a round."""
    frames_per_second: float
    """Frames of all streams per second."""
    p50_ms: float
    p99_ms: float
    mean_ms: float
    rounds: int
    """Number of rounds timed."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points of one backend, ordered by the number of streams."""

    backend: str
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Maximum number of streams at which one backend meets a latency goal."""

    backend: str
    streams: int
    """Maximum number of streams; 0 if the backend misses the goal with one stream."""
    at_least: bool
    """True if the search ended at its limit, so that the maximum may be higher."""
    at: Point | None
    """Point at the maximum number of streams; None for 0."""
    beyond: Point | None
    """Point with one more stream; None if it was not measured."""
    best: Point
    """Point with the lowest p99."""


@dataclass(frozen=True, kw_only=True)
class StreamCurves:
    """Time of a round per number of streams, and the number of streams that meet a latency goal."""

    how: str
    """Description of a round."""
    target_p99_ms: float | None
    """Latency goal (ms); None if none was given."""
    fps: float | None
    """Frame rate of each stream (frames/s); None without a latency goal."""
    renewal: str
    curves: tuple[Curve, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Median time of a task on a backend, compared with the median time in an earlier run."""

    what: str
    backend: str
    median_ms: float
    baseline_ms: float
    ratio: float
    regressed: bool
    """True if the conditions are the same and the ratio exceeds 1 + tolerance."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparison of a benchmark with an earlier benchmark."""

    date: str | None
    """Date of the earlier run; None if it was not recorded."""
    tolerance: float
    """Allowed increase of a median, as a share."""
    comparable: bool
    """True if the conditions are the same, so that regressions are detected."""
    different: tuple[str, ...]
    """Descriptions of the conditions that differ."""
    rows: tuple[Ratio, ...]
    missing: tuple[str, ...]
    """Tasks and backends that only one of the two runs measured."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """Results of a benchmark, and the conditions of the measurement."""

    what: Mapping[str, str]
    """Tasks timed, each with its description."""
    decodes: bool
    """True if the task `end-to-end` decoded a video."""
    renewal: str | None
    """Renewal of the stream in the task `stream`; None if this task was not timed."""
    compared_with: str
    """Backend to which the speed-ups are relative."""
    repeats: int
    block_seconds: float
    confidence: float
    """Probability that the true median is in its confidence interval."""
    bundle: Mapping[str, Any]
    """Path, digest, batch size and precision policy of the bundle."""
    rows: tuple[Row, ...]
    streams: StreamCurves | None = None
    baseline: Comparison | None = None
    environment: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values of schema 1, which `--baseline` reads."""
        return json_object(
            {
                "schema": SCHEMA,
                "what": self.what,
                "decodes": self.decodes,
                "renewal": self.renewal,
                "compared_with": self.compared_with,
                "max_abs_difference_from": DIFFERENCE_FROM,
                "repeats": self.repeats,
                "block_seconds": self.block_seconds,
                "confidence": self.confidence,
                "bundle": self.bundle,
                "results": [row.to_json() for row in self.rows],
                "streams": self.streams,
                "baseline": self.baseline,
                "environment": self.environment,
            }
        )
