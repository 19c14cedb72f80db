"""`e3d predict`: forecasts clips."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from e3d_deploy.commands._help import GroupedCommand, option
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
    from e3d_deploy.measure.forecasts import Forecasts

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
    from e3d_deploy.workflows.predict import predict as run

    stop = click.get_current_context().with_resource(stoppable())
    check_zoom(output)
    with working(f"predicting {clip}") as progress:
        done = run(
            model,
            clip,
            output,
            context_length=context_length,
            horizon=horizon,
            start=start,
            every=every,
            resample=resample,
            layout=layout,
            backend=backend,
            threads=threads,
            forecast_only=forecast_only,
            zoom=zoom,
            loop=stop.each,
            progress=progress,
        )
    click.echo(output)
    click.echo(f"{len(done.frames)} × {done.frames.shape[1]} frames, backend {done.backend}", err=True)
    show_errors(clip, done)
    stop.finish()


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
