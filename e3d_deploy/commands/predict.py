"""`e3d predict`: forecasts clips."""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._open import open_predictor
from e3d_deploy.commands._options import (
    BACKEND,
    BUNDLE_OR_MODEL,
    CONTEXT,
    EVERY,
    HORIZON,
    LAYOUT,
    PATH,
    RESAMPLE,
    THREADS,
    check_zoom,
)
from e3d_deploy.commands._output import working
from e3d_deploy.commands._process import stoppable

if TYPE_CHECKING:
    from e3d_deploy.data.clips import Clips
    from e3d_deploy.data.rate import Selection
    from e3d_deploy.measure.forecasts import Forecasts

log = logging.getLogger(__name__)


GROUPS = {
    "Input": ("start", "every", "resample", "layout"),
    "Forecast": ("context_length", "horizon", "backend", "threads"),
    "Output": ("output", "forecast_only", "zoom"),
}
EXAMPLES = (
    "e3d predict small.e3d clip.mp4 -o forecast.gif",
    "e3d predict small.e3d clips/ -o forecast.npz --start 30 --horizon 20",
)


@click.command(cls=GroupedCommand, groups=GROUPS, examples=EXAMPLES)
@BUNDLE_OR_MODEL
@click.argument("clip", metavar="INPUT", type=PATH)
@option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="Output path: an .npz, .mp4 or .gif file, which is replaced, or a new folder for pictures.",
)
@CONTEXT
@HORIZON
@EVERY
@RESAMPLE
@LAYOUT
@BACKEND
@THREADS
@option("--zoom", type=click.IntRange(min=1), default=1, help="Enlargement of videos and pictures.")
@option("--start", type=click.IntRange(min=0), default=0, help="First frame of the context, counted from 0.")
@option("--forecast-only", is_flag=True, help="Show only the forecast, without truth and difference.")
def predict(
    model: Path,
    clip: Path,
    output: Path,
    context_length: int | None,
    horizon: int | None,
    every: int | None,
    resample: float | None,
    layout: str | None,
    backend: str,
    threads: int | None,
    zoom: int,
    start: int,
    forecast_only: bool,
) -> None:
    """Predict the frames that follow the context of each clip.

    INPUT is a video, a picture, an array file or a folder. If it also contains the true frames, the output shows truth,
    forecast and their absolute difference side by side.
    """
    from e3d_deploy.commands._places import check_apart
    from e3d_deploy.data.clips import read_clips
    from e3d_deploy.data.form import Form
    from e3d_deploy.data.mosaic import Mosaic
    from e3d_deploy.data.rate import Selection, warn_of_interval
    from e3d_deploy.data.write import check_clips_path, check_size, write_clips
    from e3d_deploy.measure.forecasts import forecast_clip, needed_bytes, with_truth
    from e3d_deploy.memory import check_memory
    from e3d_deploy.progress import within

    stop = click.get_current_context().with_resource(stoppable())
    selection = Selection(every=every, resample=resample)
    check_apart(output, clip, model, holds_clips=not output.suffix)
    check_clips_path(output)
    check_zoom(output)
    with open_predictor(model, backend, threads) as predictor:
        horizon = horizon or predictor.horizon
        context_length = context_length or predictor.context_length
        begin = start + context_length
        form = Form.of(predictor.config, predictor.card, layout)
        wanted, less = f"--horizon {horizon}", "give a smaller --horizon, or fewer clips"
        check_memory(wanted, needed_bytes(predictor, 1, horizon), less)
        most = min(begin + horizon, sys.maxsize)
        clips = read_clips(clip, form, most=most, selection=selection)
        warn_of_interval(str(clip), clips.rates, predictor.card.window, selection=selection)
        clips = long_enough(clip, clips, start, begin, selection)
        check_memory(wanted, needed_bytes(predictor, len(clips.clips), horizon), less)
        contexts = [pictures[start:begin] for pictures in clips.clips]
        true_frames = [pictures[begin:most] for pictures in clips.clips]
        compared = not forecast_only and any(len(pictures) for pictures in true_frames)
        mosaic = Mosaic(clips=len(contexts), image_size=form.image_size, compared=compared)
        shown: dict[str, Any] = {"frames_per_second": clips.frames_per_second, "zoom": zoom}
        check_size(output, mosaic.size, form.channels, **shown)
        forecasts = []
        with working(f"predicting {clip}") as progress:
            for number, context in enumerate(stop.each(contexts)):
                say = within(progress, f"clip {number + 1} of {len(contexts)}" if len(contexts) > 1 else "")
                forecasts.append(forecast_clip(predictor, context, horizon, progress=say))
        done = with_truth(forecasts, contexts[: len(forecasts)], true_frames[: len(forecasts)])
        write_clips(output, done.frames, truth=done.truth if compared else None, **shown)
    click.echo(output)
    click.echo(f"{len(forecasts)} × {horizon} frames, backend {predictor.backend.name}", err=True)
    show_errors(clip, done)
    stop.finish()


def long_enough(path: Path, clips: "Clips", start: int, begin: int, selection: "Selection") -> "Clips":
    """Return the clips that are long enough for the context; log the names of the shorter clips.

    Args:
        path: input as the user gave it, for the log.
        clips: clips to choose from.
        start: first frame of the context.
        begin: first frame after the context.
        selection: frames that are taken from the source.

    Raises:
        ShapeError: no clip is long enough.
    """
    from e3d_deploy.data.folders import warn_of_short
    from e3d_deploy.errors import ShapeError

    lengths = [len(pictures) for pictures in clips.clips]
    longest, context_length = max(lengths), begin - start
    if longest < begin:
        latest = longest - context_length
        remedy = "a longer clip or a smaller --context" if latest < 0 else f"--start {latest} or less"
        name = clips.names[lengths.index(longest)]
        lack = f"the context of {context_length} begins at frame {start}" if start else f"expected {begin} or more"
        has = f"{longest} {'frame' if longest == 1 else 'frames'}"
        raise ShapeError(f"{name}: has {has}, {lack}; give {remedy}{selection.longer}")
    kept = [number for number, length in enumerate(lengths) if length >= begin]
    if short := [name for name, length in zip(clips.names, lengths, strict=True) if length < begin]:
        warn_of_short(path, short, of=len(lengths), length=begin)
    return replace(
        clips, clips=[clips.clips[number] for number in kept], names=[clips.names[number] for number in kept]
    )


def show_errors(clip: Path, done: "Forecasts") -> None:
    """Print the error of the forecasts and of copying the last frame on stderr, or that the error is unknown."""
    known = int(done.known.sum())
    if known == 0:
        click.echo(f"no truth: {clip} ends before the forecast begins, so the error is unknown", err=True)
        return
    if known < done.known.size:
        click.echo(f"truth for {known} of {done.known.size} frames: {clip} ends before the forecast does", err=True)
    click.echo(f"forecast: MSE {done.mse:.4g} per frame", err=True)
    click.echo(f"copying the last frame: MSE {done.copy_mse:.4g} per frame", err=True)
