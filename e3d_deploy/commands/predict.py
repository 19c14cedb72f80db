"""`e3d predict`: forecasts of clips."""

from pathlib import Path

import click

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
)
from e3d_deploy.commands._output import working
from e3d_deploy.commands._process import stoppable


@click.command()
@BUNDLE_OR_MODEL
@click.argument("clip", metavar="INPUT", type=PATH)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help=".npz, .mp4 or .gif, replaced if it is there, or a new folder for pictures.",
)
@CONTEXT
@HORIZON
@EVERY
@RESAMPLE
@LAYOUT
@BACKEND
@THREADS
@click.option("--zoom", type=click.IntRange(min=1), default=1, help="Enlarge videos and pictures.")
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
) -> None:
    """Predict the frames that follow the first of each clip in INPUT."""
    import numpy as np

    from e3d_deploy.data.clips import read_clips
    from e3d_deploy.data.form import Form
    from e3d_deploy.data.rate import Selection, warn_of_interval
    from e3d_deploy.data.write import check_target, write_clips

    stop = click.get_current_context().with_resource(stoppable())
    selection = Selection(every=every, resample=resample)
    check_target(output, clip)
    with open_predictor(model, backend, threads) as predictor:
        context_length = context_length or predictor.context_length
        horizon = horizon or predictor.horizon
        form = Form.of(predictor.config, predictor.card, layout)
        clips = read_clips(clip, form, most=context_length, least=context_length, selection=selection)
        warn_of_interval(str(clip), clips.rates, predictor.card.window, selection=selection)
        forecasts = []
        with working(f"predicting {clip}") as progress:
            for number, pictures in enumerate(stop.each(clips.clips)):
                progress(f"clip {number + 1} of {len(clips.clips)}")
                stream = predictor.stream(renewal="none")
                for picture in pictures[:]:
                    stream.push(picture)
                forecasts.append(stream.forecast(horizon))
        write_clips(output, np.stack(forecasts), frames_per_second=clips.frames_per_second, zoom=zoom)
    click.echo(output)
    click.echo(f"{len(forecasts)} × {horizon} frames by {predictor.backend.name}", err=True)
    stop.finish()
