"""`e3d benchmark`: times steps, forecasts and streams on several backends."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands._benchmark_tables import baseline_remarks, benchmark_table, streams_table
from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import BUNDLE, PATH, THREADS, Count, Finite, counts, json_option, milliseconds, names
from e3d_deploy.commands._output import as_json, check_picture, verdict, warn, working
from e3d_deploy.files import write_file

if TYPE_CHECKING:
    from e3d_deploy.config import ModelConfig
    from e3d_deploy.measure.tasks import Pictures


FPS, TOLERANCE = 30.0, 0.1
"""Defaults of --fps and --tolerance. The command applies the defaults, so that it knows which options were given."""
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
    show_default=f"{FPS:g}",
)
@option("--memory/--no-memory", default=True, help="Measure peak memory, in one process per backend.")
@option("--baseline", type=PATH, help="Result of an earlier run with --json; exit with 3 if this run is slower.")
@option(
    "--tolerance",
    type=Finite(min=0),
    metavar="SHARE",
    help="Allowed slowdown as a fraction; requires --baseline.",
    show_default=str(TOLERANCE),
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
    from contextlib import ExitStack
    from dataclasses import replace

    from e3d_deploy.measure.baseline import compare, read_baseline, regressions
    from e3d_deploy.measure.benchmark import benchmark as run
    from e3d_deploy.measure.stream_curve import LatencyGoal, stream_curve
    from e3d_deploy.measure.tasks import check_what
    from e3d_deploy.runtime.backends.registry import open_backend

    if fps is not None and latency_goal is None:
        raise click.UsageError("--fps requires --latency-goal; give both, or neither")
    if tolerance is not None and baseline is None:
        raise click.UsageError("--tolerance requires --baseline; give both, or neither")
    if renewal is not None and not ("stream" in what or streams or latency_goal):
        raise click.UsageError("--renewal requires --what stream, --streams or --latency-goal; give one of them too")
    check_picture(picture, bundle, baseline)
    check_what(what)
    before = None if baseline is None else read_baseline(baseline)
    goal = None if latency_goal is None else LatencyGoal(latency_goal, fps or FPS)
    opened = open_bundle(bundle)
    play = real_clip(opened.config) if "end-to-end" in what else None
    with ExitStack() as stack, working(f"benchmarking {bundle}") as progress:
        sides = [stack.enter_context(open_backend(opened, name, threads=threads)) for name in backends]
        timing: dict[str, Any] = {"seconds": seconds, "repeats": repeats, "progress": progress}
        result = run(opened, sides, what, threads=threads, play=play, renewal=renewal, memory=memory, **timing)
        if streams or goal:
            curves = stream_curve(opened, sides, streams or (), goal=goal, renewal=renewal, **timing)
            result = replace(result, streams=curves)
    if before is not None:
        compared = compare(result.to_json(), before, TOLERANCE if tolerance is None else tolerance)
        result = replace(result, baseline=compared)
    if picture is not None:
        from e3d_deploy.measure import plots

        write_file(picture, plots.latency(result))
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


def real_clip(config: "ModelConfig") -> "Callable[[], Pictures] | None":
    """Return a function that plays a real video in a loop.

    The result is None if the video library is missing or the frames are neither gray nor RGB.
    """
    from e3d_deploy.data import clips
    from e3d_deploy.data.form import Form
    from e3d_deploy.data.remarks import Remarks
    from e3d_deploy.libraries import is_importable
    from e3d_deploy.shipped import extracted

    if not is_importable("av") or config.channels not in (1, 3):
        return None
    form = Form(image_size=config.image_size, channels=config.channels)

    def play() -> Iterator[Any]:
        while True:
            with extracted(clips.PEDESTRIANS) as path:
                yield from clips.play(path, form, remarks=Remarks(silent=True)).pictures

    return play
