"""Results of `e3d benchmark`; docs/benchmark.md describes the JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from e3d_deploy.json_values import json_object

SCHEMA = 1
DIFFERENCE_FROM = "PyTorch float32: predictions of the whole rollout, step by step and by each graph"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of a call."""

    median_ms: float
    median_ci_ms: tuple[float, float]
    """Interval of the median (ms)."""
    p90_ms: float
    p99_ms: float
    device_median_ms: float | None
    """Median on the device (ms); None where the backend does not tell."""
    calls: int
    """Calls timed."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Difference of a backend from PyTorch."""

    max_abs_difference: float | None
    """Largest absolute difference of predictions; None for what is not finite."""
    dssim: float | None
    """SSIM lost against the truth."""
    dpsnr_db: float | None
    """PSNR lost against the truth (dB)."""
    within_budget: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task on one backend."""

    what: str
    """Task that was timed."""
    backend: str
    on_host: bool
    """The backend computes on the host."""
    timing: Timing
    steps_per_call: int
    frames_per_call: int
    ms_per_step: float | None
    ms_per_frame: float
    frames_per_second: float
    """Frames of all streams per second."""
    sequences_per_second: float | None
    """Contexts that became forecasts per second; None for a task that gives no forecast."""
    speedup: float
    """Median of the ratios to the first backend within a turn."""
    warm_up_calls: int
    settled: bool
    """The time had settled when the warm-up ended."""
    peak_bytes: int | None
    """Peak memory of a process with this backend alone (bytes)."""
    accuracy: Accuracy

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values, without levels."""
        found = json_object(self)
        timing, accuracy = found.pop("timing"), found.pop("accuracy")
        first = {name: found.pop(name) for name in ("what", "backend", "on_host")}
        return {**first, **timing, **found, **accuracy}


@dataclass(frozen=True, kw_only=True)
class Point:
    """Time of a round of so many streams."""

    streams: int
    step_sizes: tuple[int, ...]
    """Streams in each step of a round."""
    frames_per_second: float
    """Frames of all streams per second."""
    p50_ms: float
    p99_ms: float
    mean_ms: float
    rounds: int
    """Rounds timed."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points of one backend, the fewest streams first."""

    backend: str
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Most streams of one backend that keep a latency goal."""

    backend: str
    streams: int
    """Number of streams; 0 where one is too many."""
    at_least: bool
    """The search ended before a number was too large."""
    at: Point | None
    """Point of that number; None for 0."""
    beyond: Point | None
    """Point of one stream more; None where it was not measured."""
    best: Point
    """Point with the least p99."""


@dataclass(frozen=True, kw_only=True)
class StreamCurves:
    """Times of rounds by number of streams, and answers to a latency goal."""

    how: str
    """Meaning of a round."""
    target_p99_ms: float | None
    """Latency goal (ms); None where none was given."""
    fps: float | None
    """Frames that each stream gets per second; None without a goal."""
    renewal: str
    curves: tuple[Curve, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Median of a row over that of an earlier run."""

    what: str
    backend: str
    median_ms: float
    baseline_ms: float
    ratio: float
    regressed: bool
    """Slower than the tolerance allows, under the same conditions."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Benchmark beside an earlier one."""

    date: str | None
    """Date of the earlier run; None where it was not recorded."""
    tolerance: float
    """Share by which a median may grow."""
    comparable: bool
    """The conditions are the same, so that there is a verdict."""
    different: tuple[str, ...]
    """Conditions that differ, in words."""
    rows: tuple[Ratio, ...]
    missing: tuple[str, ...]
    """Rows of one side alone."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """Rows of a benchmark, and the conditions that they depend on."""

    what: Mapping[str, str]
    """Tasks that were timed, with a sentence on each."""
    decodes: bool
    """The task `end-to-end` decoded a video."""
    renewal: str | None
    """Renewal of the stream of the task `stream`; None where that was not timed."""
    compared_with: str
    """Backend that speed-ups are over."""
    repeats: int
    block_seconds: float
    confidence: float
    """Chance that the true median lies in its interval."""
    bundle: Mapping[str, Any]
    """Path, digest, batch and precision of the bundle."""
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
