"""`e3d stream`: forecasts the next frames of videos and cameras as their pictures arrive."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from e3d_deploy.commands._failures import explain
from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._options import (
    BACKEND,
    BUNDLE_OR_MODEL,
    EVERY,
    MAX_FRAMES,
    PATH,
    RENEWAL,
    RESAMPLE,
    THREADS,
    Count,
    Finite,
    Source,
    json_option,
    numbers,
)
from e3d_deploy.commands._output import as_json
from e3d_deploy.commands._process import Stop, stoppable
from e3d_deploy.commands._sinks import Outputs, Sinks, open_sinks, or_stdout, remark
from e3d_deploy.commands._sources import check_horizon, check_options, open_feeds
from e3d_deploy.commands._stream_tables import show_summary, showing

if TYPE_CHECKING:
    from e3d_deploy.live.summary import Summary
    from e3d_deploy.live.worker import SourceWorker

GROUPS = {
    "Sources": ("raw", "realtime", "every", "resample", "policy", "queue_length", "silence_s", "attempts"),
    "Forecast": ("horizon", "renewal", "reset_on", "backend", "threads"),
    "Outputs": ("output", "push", "raw_output", "jsonl", "zoom", "json_"),
}
EXAMPLES = (
    "e3d stream film.e3d rtsp://camera.local/front --jsonl front.jsonl",
    "e3d stream film.e3d a.mp4 b.mp4 --horizon 5 -o videos/",
)


def shape(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Parse a height, width and number of channels such as `480x640x3`."""
    found = numbers(context, parameter, text)
    if found is not None and len(found) != 3:
        raise click.BadParameter(f"got {text!r}, expected HEIGHTxWIDTHxCHANNELS such as 480x640x3")
    return found


@click.command(cls=GroupedCommand, groups=GROUPS, examples=EXAMPLES)
@BUNDLE_OR_MODEL
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=Source())
@option(
    "--raw", metavar="HxWxC", callback=shape, help="Shape of the raw uint8 pictures on stdin; requires the source -."
)
@option("--realtime", is_flag=True, help="Play files at their own rate.")
@EVERY
@RESAMPLE
@option(
    "--policy",
    type=click.Choice(["block", "drop-oldest"]),
    help="Behaviour when the queue of a source is full.",
    show_default="block; drop-oldest for live sources",
)
@option(
    "--queue",
    "queue_length",
    metavar="N",
    type=Count(1000),
    help="Maximum number of pictures in the queue of a source.",
    show_default="4; 1 for live sources",
)
@option(
    "--silence",
    "silence_s",
    metavar="S",
    type=Finite(min=0, min_open=True, max=3600),
    default=10.0,
    help="Time without a picture after which a live source is reopened (seconds).",
)
@option(
    "--attempts",
    type=click.IntRange(min=0),
    default=5,
    help="Failed attempts to reopen a live source before it counts as lost.",
)
@option("--horizon", type=Count(MAX_FRAMES), default=10, help="Number of frames to predict.")
@RENEWAL
@option("--reset-on", type=click.Choice(["cut"]), help="Reset the state when the scene changes.")
@BACKEND
@THREADS
@option(
    "-o",
    "--output",
    type=PATH,
    help="Video of each picture beside its earlier forecast: .mp4, .gif, .npz or a folder; several sources require a "
    "folder.",
)
@option(
    "--push",
    metavar="URL",
    multiple=True,
    help="Address to which the video of pictures and forecasts is sent as H.264; give one address for each source.",
)
@option(
    "--raw-output", type=PATH, metavar="PATH|-", help="Last frame of each forecast as a raw picture, uint8 [H, W, C]."
)
@option("--jsonl", type=PATH, metavar="PATH|-", help="One line of JSON for each picture.")
@option("--zoom", type=click.IntRange(min=1), default=4, help="Enlargement of the video.")
@json_option("Print the summary as JSON.")
def stream(
    model: Path,
    sources: tuple[str, ...],
    raw: tuple[int, int, int] | None,
    realtime: bool,
    every: int | None,
    resample: float | None,
    policy: Literal["block", "drop-oldest"] | None,
    queue_length: int | None,
    silence_s: float,
    attempts: int,
    horizon: int,
    renewal: str | None,
    reset_on: str | None,
    backend: str,
    threads: int | None,
    output: Path | None,
    push: tuple[str, ...],
    raw_output: Path | None,
    jsonl: Path | None,
    zoom: int,
    json_: bool,
) -> None:
    """Forecast the next frames of videos and cameras.

    After each picture that arrives, the next HORIZON frames are predicted. SOURCE is a video, a folder of pictures, a
    camera (/dev/video0), an address (rtsp:// or http://), or - for raw pictures on stdin. Several sources are forecast
    at the same time.
    """
    from e3d_deploy.data.form import Form
    from e3d_deploy.data.live.address import parse_address
    from e3d_deploy.data.live.feed import FeedOptions
    from e3d_deploy.data.rate import Selection, warn_of_interval
    from e3d_deploy.live.summary import summarise
    from e3d_deploy.live.workers import open_workers
    from e3d_deploy.workflows.opening import open_predictor

    stop = click.get_current_context().with_resource(stoppable())
    selection = Selection(every=every, resample=resample)
    addresses = [parse_address(text, raw=raw) for text in sources]
    check_options(addresses)
    outputs = Outputs(video=output, push=push, raw=or_stdout(raw_output), lines=or_stdout(jsonl), zoom=zoom)
    outputs.check(model, addresses, json=json_)
    options = FeedOptions(
        policy=policy, queue_length=queue_length, silence_s=silence_s, attempts=attempts, realtime=realtime
    )
    with ExitStack() as stack:
        predictor = stack.enter_context(open_predictor(model, backend, threads=threads))
        check_horizon(predictor, horizon, len(addresses))
        form = Form.of(predictor.config, predictor.card)
        feeds = open_feeds(addresses, form, options, selection, stack)
        for label, feed in feeds.items():
            warn_of_interval(label, [feed.frames_per_second], predictor.card.window, selection=selection)
        sinks = open_sinks(outputs, addresses, list(feeds.values()), form, stack)
        streams = stack.enter_context(predictor.streams(renewal=renewal, max_streams=len(feeds)))
        puts = [one.puts for one in sinks]
        workers = open_workers(predictor, streams, feeds, puts, horizon=horizon, reset_on_cut=reset_on is not None)
        follow(workers, sinks, stop)
        failures = failures_of(workers, sinks)
        if not any(worker.statistics.has_begun for worker in workers):
            raise_first(failures)  # raised inside the stack, so that the empty output folder is removed
    summary = summarise(workers, [(one.video, one.push) for one in sinks], predictor.backend.name)
    tell(summary, outputs, json=json_)
    raise_first(failures)
    stop.finish()


def follow(workers: "Sequence[SourceWorker]", sinks: Sequence[Sinks], stop: Stop) -> None:
    """Run the workers until all have ended or a signal has arrived, and show their progress."""
    from e3d_deploy.live.workers import SourceWorkers

    with SourceWorkers(workers, sinks[0].shared) as running, showing(workers) as show:
        for _ in stop.each(running.ticks()):
            show()
        if stop.number is not None:
            remark("stopping after the current picture; interrupt again to stop now")


def failures_of(workers: "Sequence[SourceWorker]", sinks: Sequence[Sinks]) -> list[Exception]:
    """Return the errors of sources and peers. A closed pipe at an output is not an error."""
    errors = [*(worker.error for worker in workers), *(one.push.lost for one in sinks if one.push)]
    return [error for error in errors if error is not None and not isinstance(error, BrokenPipeError)]


def tell(summary: "Summary", outputs: Outputs, *, json: bool) -> None:
    """Print the path of the videos, then the summary."""
    if any(one.output is not None for one in summary.sources):
        click.echo(outputs.video, err=json or outputs.take_stdout)
    if json:
        as_json(summary.to_json())
    else:
        show_summary(summary, err=outputs.take_stdout)


def raise_first(failures: Sequence[Exception]) -> None:
    """Print all errors except the first, and raise the first."""
    for error in failures[1:]:
        click.echo(f"Error: {explain(error)[0]}", err=True)
    if failures:
        raise failures[0]
