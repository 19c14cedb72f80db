"""`e3d benchmark`: how long a step takes, and what else one would have timed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands._benchmark_tables import baseline_remarks, benchmark_table, streams_table
from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import BUNDLE, PATH, THREADS, Count, Finite, counts, json_option, milliseconds, names
from e3d_deploy.commands._output import as_json, check_picture, verdict, warn, working
from e3d_deploy.files import write_file

if TYPE_CHECKING:
    from e3d_deploy.config import ModelConfig
    from e3d_deploy.measure.tasks import Pictures


FPS, TOLERANCE = 30.0, 0.1
"""Defaults of --fps and --tolerance, applied in the body so that it can tell whether the options were given."""


@click.command()
@BUNDLE
@click.option("--backends", default="torch,onnxruntime", callback=names, help="Names; the first is compared with.")
@click.option("--what", default="step", callback=names, help="Names of step, stream, rollout, clip, end-to-end.")
@click.option(
    "--renewal", help="none, refresh:M or replay, of --what stream and --streams; else as the model asks for."
)
@THREADS
@click.option(
    "--seconds",
    type=Finite(min=0, max=3600, min_open=True),
    default=1.0,
    help="Length of a block; each backend runs --repeats of them and the warm-up.",
)
@click.option("--repeats", type=Count(1000, least=5), default=5, help="Blocks of each backend, in turn.")
@click.option("--streams", callback=counts(1024), help="Numbers of streams such as 1,2,4: the time of a round of each.")
@click.option("--latency-goal", callback=milliseconds, help="Such as 33ms: how many streams stay below it.")
@click.option(
    "--fps",
    type=Finite(min=0, max=100_000, min_open=True),
    help="Frames a second of each such stream.",
    show_default=str(FPS),
)
@click.option("--memory/--no-memory", default=True, help="Peak memory, of a process for each backend.")
@click.option("--baseline", type=PATH, help="What an earlier run printed with --json: exit 3 when slower now.")
@click.option(
    "--tolerance", type=Finite(min=0), help="How much slower is allowed, as a share.", show_default=str(TOLERANCE)
)
@click.option("--picture", type=PATH, help="Draw the times, and the streams, into this PNG.")
@json_option("Everything, with the environment, as JSON.")
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
    """Time several backends in turn, and say how right each is."""
    from contextlib import ExitStack
    from dataclasses import replace

    from e3d_deploy.measure.baseline import compare, read_baseline, regressions
    from e3d_deploy.measure.benchmark import benchmark as run
    from e3d_deploy.measure.stream_curve import LatencyGoal, stream_curve
    from e3d_deploy.measure.tasks import check_what
    from e3d_deploy.runtime.backends.registry import open_backend

    if fps is not None and latency_goal is None:
        raise click.UsageError("--fps is of the streams of --latency-goal: give both, or neither.")
    if tolerance is not None and baseline is None:
        raise click.UsageError("--tolerance is of --baseline: give both, or neither.")
    if renewal is not None and not ("stream" in what or streams or latency_goal):
        raise click.UsageError("--renewal is for streams; give --what stream, --streams or --latency-goal with it.")
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
            warn("no verdict: the baseline has none of these rows")
        elif result.baseline.comparable:
            slower = regressions(result.baseline)
            verdict(not slower, "; ".join(slower) or "nothing is slower than the baseline allows")


def real_clip(config: "ModelConfig") -> "Callable[[], Pictures] | None":
    """Plays a real video for ever; None where none can be decoded."""
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
