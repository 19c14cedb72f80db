"""Tables of `e3d benchmark`: times, numbers of streams, and the comparison with an earlier run."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from e3d_deploy.commands._output import megabytes, table, warn

if TYPE_CHECKING:
    from e3d_deploy.measure.results import Answer, BenchmarkResult, Comparison, Row, StreamCurves


def benchmark_table(result: "BenchmarkResult") -> None:
    """Print the times as a table, and the conditions of the measurement on stderr."""
    rows = result.rows
    columns: dict[str, Callable[[Row], str]] = {
        "task": lambda row: row.what,
        "backend": lambda row: row.backend,
        "median": lambda row: f"{row.timing.median_ms:.2f} ms",
        f"{result.confidence:.0%} CI": lambda row: "–".join(f"{end:.2f}" for end in row.timing.median_ci_ms),
        "p90": lambda row: f"{row.timing.p90_ms:.2f}",
        "p99": lambda row: f"{row.timing.p99_ms:.2f}{'' if row.timing.calls >= 100 else '*'}",
        "device time": device_time,
        "ms/step": lambda row: "–" if row.ms_per_step is None else f"{row.ms_per_step:.2f}",
        "ms/frame": lambda row: f"{row.ms_per_frame:.2f}",
        "frames/s": lambda row: f"{row.frames_per_second:.1f}",
        "sequences/s": lambda row: "–" if row.sequences_per_second is None else f"{row.sequences_per_second:.2f}",
        "speed-up": lambda row: f"{row.speedup:.2f}×",
        "peak memory": lambda row: "–" if row.peak_bytes is None else megabytes(row.peak_bytes),
        "max |Δ|": accuracy,
    }
    if all(row.steps_per_call == 1 for row in rows):
        del columns["ms/step"], columns["ms/frame"]
    if all(row.sequences_per_second is None for row in rows):
        del columns["sequences/s"]
    table(list(columns), [[cell(row) for cell in columns.values()] for row in rows], left=2)
    environment = result.environment
    threads = environment["threads"] or "chosen by the library"
    click.echo(
        f"on {environment['cpu']}, {environment['cores']} cores, threads: {threads}; "
        f"speed-up relative to {result.compared_with}",
        err=True,
    )
    for name, sentence in result.what.items():
        click.echo(f"{name}: {sentence}", err=True)
    if result.renewal is not None:
        click.echo(f"renewal of the stream: {result.renewal}", err=True)
    if any(row.timing.calls < 100 for row in rows):
        click.echo("* p99 of fewer than 100 calls; a larger --seconds makes it more accurate", err=True)
    for row in rows:
        if not row.settled:
            click.echo(f"{row.what} on {row.backend}: the time did not settle during the warm-up", err=True)


def device_time(row: "Row") -> str:
    """Describe the median time of a call on the device."""
    if row.timing.device_median_ms is None:
        return "same as median" if row.on_host else "not reported"
    return f"{row.timing.device_median_ms:.2f} ms"


def accuracy(row: "Row") -> str:
    """Describe the largest difference from PyTorch; mark differences beyond the budget of the precision."""
    found = row.accuracy.max_abs_difference
    words = "not finite" if found is None else f"{found:.1e}"
    return words if row.accuracy.within_budget else f"{words} (beyond the budget)"


def streams_table(streams: "StreamCurves | None") -> None:
    """Print the times for each number of streams, and how many streams meet the latency goal."""
    if streams is None:
        return
    click.echo()
    table(
        ["backend", "streams", "frames/s", "p50 of a round", "p99 of a round", "batch sizes"],
        [
            (
                curve.backend,
                point.streams,
                f"{point.frames_per_second:.1f}",
                f"{point.p50_ms:.2f} ms",
                f"{point.p99_ms:.2f}",
                in_words(point.step_sizes),
            )
            for curve in streams.curves
            for point in curve.points
        ],
    )
    for answer in streams.answers:
        assert streams.target_p99_ms is not None, "answers exist only with a latency goal"
        assert streams.fps is not None
        click.echo(answer_line(answer, streams.target_p99_ms, streams.fps))
    click.echo(streams.how, err=True)


def in_words(sizes: tuple[int, ...]) -> str:
    """Format the batch sizes of a round: (4, 4, 1) is `2 × 4 + 1`."""
    different = dict.fromkeys(sizes)
    return " + ".join(f"{sizes.count(size)} × {size}" if sizes.count(size) > 1 else str(size) for size in different)


def answer_line(answer: "Answer", goal_ms: float, fps: float) -> str:
    """Describe how many streams meet a latency goal."""
    asked = f"{answer.backend}: streams at {fps:g} frames/s with p99 ≤ {goal_ms:g} ms:"
    if answer.at is None:
        best = answer.best
        return (
            f"{asked} 0; the best is {best.streams} with p99 {best.p99_ms:.2f} ms, "
            f"{best.frames_per_second:.1f} frames/s"
        )
    number = f"at least {answer.streams}" if answer.at_least else f"{answer.streams}"
    beyond = f"; with {answer.streams + 1} streams, p99 is {answer.beyond.p99_ms:.2f} ms" if answer.beyond else ""
    return f"{asked} {number}, with p99 {answer.at.p99_ms:.2f} ms{beyond}"


def baseline_remarks(comparison: "Comparison") -> None:
    """Print the ratios to an earlier run, or the reason why the runs cannot be compared."""
    for row in comparison.rows:
        click.echo(f"{row.what} on {row.backend}: {row.ratio:.2f} times the baseline", err=True)
    if comparison.missing:
        click.echo(f"only in one of the two runs: {', '.join(comparison.missing)}", err=True)
    if not comparison.comparable:
        warn(f"no verdict: the baseline differs in {'; '.join(comparison.different)}")
