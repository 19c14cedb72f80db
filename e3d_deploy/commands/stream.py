"""`e3d stream`: forecasts of videos and cameras while they play."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from e3d_deploy.commands._failures import explain
from e3d_deploy.commands._help import GroupedCommand
from e3d_deploy.commands._open import open_predictor
from e3d_deploy.commands._options import (
    BACKEND,
    BUNDLE_OR_MODEL,
    EVERY,
    MOST_FRAMES,
    PATH,
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
    "e3d stream film.e3d a.mp4 b.mp4 --horizon 5 -o beside",
)


def shape(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """`480x640x3` as height, width and colours."""
    found = numbers(context, parameter, text)
    if found is not None and len(found) != 3:
        raise click.BadParameter(f"{text!r} is not HEIGHTxWIDTHxCOLOURS, such as 480x640x3")
    return found


@click.command(cls=GroupedCommand, groups=GROUPS, examples=EXAMPLES)
@BUNDLE_OR_MODEL
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=Source())
@click.option("--raw", metavar="HxWxC", callback=shape, help="Size of the frames on stdin, uint8 row by row.")
@click.option("--realtime", is_flag=True, help="Play files at their own rate.")
@EVERY
@RESAMPLE
@click.option(
    "--policy",
    type=click.Choice(["block", "drop-oldest"]),
    help="What to do when the queue is full; default: block for files, drop-oldest for live sources.",
)
@click.option(
    "--queue",
    "queue_length",
    metavar="N",
    type=Count(1000),
    help="Pictures that may wait; default: 4, for live sources 1.",
)
@click.option(
    "--silence",
    "silence_s",
    metavar="S",
    type=Finite(min=0, min_open=True, max=3600),
    default=10.0,
    help="Seconds without a picture after which a live source is opened again.",
)
@click.option(
    "--attempts", type=click.IntRange(min=0), default=5, help="Reconnects without a picture before a source is lost."
)
@click.option("--horizon", type=Count(MOST_FRAMES), default=10, help="Frames to look ahead.")
@click.option("--renewal", help="none, refresh:M or replay; default: chosen from the model's measured decay.")
@click.option("--reset-on", type=click.Choice(["cut"]), help="Reset the state where the scene changes.")
@BACKEND
@THREADS
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="What came beside what had been forecast for it: .mp4, .gif or a folder; of several sources a folder.",
)
@click.option("--push", metavar="URL", multiple=True, help="Send the same as H.264, once for each source.")
@click.option("--raw-output", type=PATH, metavar="FILE|-", help="Last frame of each forecast, uint8 [H, W, C].")
@click.option("--jsonl", type=PATH, metavar="FILE|-", help="A line of JSON for each picture.")
@click.option("--zoom", type=click.IntRange(min=1), default=4, help="Enlarge the video.")
@json_option("The summary as JSON.")
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
    """Forecast videos and cameras while they play: after each picture, the next HORIZON.

    A SOURCE is a video, a folder of pictures, a camera (/dev/video0), an address (rtsp:// or http://), or - for raw
    frames on stdin. Several play at the same time.
    """
    from e3d_deploy.data.form import Form
    from e3d_deploy.data.live.address import parse_address
    from e3d_deploy.data.live.feed import FeedOptions
    from e3d_deploy.data.rate import Selection, warn_of_interval
    from e3d_deploy.live.summary import summarise
    from e3d_deploy.live.workers import open_workers

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
        predictor = stack.enter_context(open_predictor(model, backend, threads))
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
        if not any(worker.counts.has_begun for worker in workers):
            raise_first(failures)  # before an empty folder becomes the output
    summary = summarise(workers, [(one.video, one.push) for one in sinks], predictor.backend.name)
    tell(summary, outputs, json=json_)
    raise_first(failures)
    stop.finish()


def follow(workers: "Sequence[SourceWorker]", sinks: Sequence[Sinks], stop: Stop) -> None:
    """Run the workers until all have ended or a signal has come, and show how far they are."""
    from e3d_deploy.live.workers import SourceWorkers

    with SourceWorkers(workers, sinks[0].shared) as running, showing(workers) as show:
        for _ in stop.each(running.ticks()):
            show()
        if stop.number is not None:
            remark("ending after the picture at hand; once more to end at once")


def failures_of(workers: "Sequence[SourceWorker]", sinks: Sequence[Sinks]) -> list[Exception]:
    """Return the errors of sources and peers; a reader of an output who had enough is none."""
    errors = [*(worker.error for worker in workers), *(one.push.lost for one in sinks if one.push)]
    return [error for error in errors if error is not None and not isinstance(error, BrokenPipeError)]


def tell(summary: "Summary", outputs: Outputs, *, json: bool) -> None:
    """Print the place of the videos, and the summary."""
    if any(one.output is not None for one in summary.sources):
        click.echo(outputs.video, err=json or outputs.take_stdout)
    if json:
        as_json(summary.to_json())
    else:
        show_summary(summary, err=outputs.take_stdout)


def raise_first(failures: Sequence[Exception]) -> None:
    """Print all errors but the first, and raise that."""
    for error in failures[1:]:
        click.echo(f"Error: {explain(error)[0]}", err=True)
    if failures:
        raise failures[0]
