"""`e3d benchmark`: times steps, forecasts and streams on several backends."""

from pathlib import Path

import click

from e3d_deploy.commands._benchmark_tables import baseline_remarks, benchmark_table, streams_table
from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._options import BUNDLE, PATH, THREADS, Count, Finite, counts, json_option, milliseconds, names
from e3d_deploy.commands._output import as_json, verdict, warn, working

GROUPS = {
    "Work": ("backends", "what", "renewal", "streams", "latency_goal", "fps"),
    "Measurement": ("threads", "seconds", "repeats", "memory"),
    "Comparison with an earlier run": ("baseline", "tolerance"),
    "Output": ("picture", "json_"),
}
EXAMPLES = (
    "e3d benchmark small.e3d --backends torch,onnxruntime --threads 1",
    "e3d benchmark small.e3d --what stream --latency-goal 33ms --fps 25",
)


@click.command(cls=GroupedCommand, groups=GROUPS, examples=EXAMPLES)
@BUNDLE
@option(
    "--backends",
    default="torch,onnxruntime",
    callback=names,
    metavar="NAMES",
    help="Backends to time. Ratios are relative to the first backend.",
)
@option(
    "--what",
    default="step",
    callback=names,
    metavar="NAMES",
    help="Work to time: any of step, stream, rollout, clip, end-to-end.",
)
@option(
    "--renewal",
    metavar="RULE",
    help="Renewal of old states: none, refresh:M or replay; requires --what stream, --streams or --latency-goal.",
    show_default="the renewal of the model",
)
@THREADS
@option(
    "--seconds",
    type=Finite(min=0, max=3600, min_open=True),
    default=1.0,
    metavar="S",
    help="Duration of one timed block (seconds).",
)
@option("--repeats", type=Count(1000, least=5), default=5, help="Number of timed blocks of each backend.")
@option(
    "--streams",
    callback=counts(1024),
    metavar="N,N,…",
    help="Time a round for each of these numbers of streams, such as 1,2,4.",
)
@option(
    "--latency-goal",
    callback=milliseconds,
    metavar="TIME",
    help="Find how many streams have a p99 of at most this time, such as 33ms.",
)
@option(
    "--fps",
    type=Finite(min=0, max=100_000, min_open=True),
    metavar="FPS",
    help="Frames per second of each stream; requires --latency-goal.",
    show_default="30",
)
@option("--memory/--no-memory", default=True, help="Measure peak memory, in one process per backend.")
@option("--baseline", type=PATH, help="Result of an earlier run with --json; exit with 3 if this run is slower.")
@option(
    "--tolerance",
    type=Finite(min=0),
    metavar="SHARE",
    help="Allowed slowdown as a fraction; requires --baseline.",
    show_default="0.1",
)
@option("--picture", type=PATH, help="PNG file for a plot of the times.")
@json_option("Print all results and the environment as JSON.")
def benchmark(
    bundle: Path,
    backends: tuple[str, ...],
    what: tuple[str, ...],
    renewal: str | None,
    threads: int | None,
    seconds: float,
    repeats: int,
    streams: tuple[int, ...] | None,
    latency_goal: float | None,
    fps: float | None,
    memory: bool,
    baseline: Path | None,
    tolerance: float | None,
    picture: Path | None,
    json_: bool,
) -> None:
    """Time several backends and compare their results with PyTorch.

    The backends are measured alternately, so that load on the machine affects all of them alike.
    """
    from e3d_deploy.measure.baseline import regressions
    from e3d_deploy.workflows.benchmark import benchmark as run

    with working(f"benchmarking {bundle}") as progress:
        result = run(
            bundle,
            backends,
            what,
            renewal=renewal,
            threads=threads,
            seconds=seconds,
            repeats=repeats,
            streams=streams or (),
            latency_goal_ms=latency_goal,
            fps=fps,
            memory=memory,
            baseline=baseline,
            tolerance=tolerance,
            picture=picture,
            progress=progress,
        )
    if json_:
        as_json(result.to_json())
    else:
        benchmark_table(result)
        streams_table(result.streams)
    if result.baseline is not None:
        baseline_remarks(result.baseline)
        if result.baseline.comparable and not result.baseline.rows:
            warn("no verdict: the baseline and this run have no measurement in common")
        elif result.baseline.comparable:
            slower = regressions(result.baseline)
            verdict(not slower, "; ".join(slower) or "no measurement is slower than the tolerance allows")
