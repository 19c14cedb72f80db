"""`e3d stream`: forecasts of a video while it plays."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
    check_zoom,
    json_option,
)
from e3d_deploy.commands._output import as_json, table, working
from e3d_deploy.commands._process import stoppable

if TYPE_CHECKING:
    from e3d_deploy.measure.live import Followed


@click.command()
@BUNDLE_OR_MODEL
@click.argument("video", metavar="SOURCE", type=PATH)
@click.option("--horizon", type=Count(MOST_FRAMES), default=10, help="Frames to look ahead.")
@click.option("--renewal", help="none, refresh:M or replay; else as the measured decay of the model asks for.")
@EVERY
@RESAMPLE
@BACKEND
@THREADS
@click.option(
    "-o", "--output", type=PATH, help="What came beside what had been forecast for it: .mp4, .gif or a folder."
)
@click.option("--zoom", type=click.IntRange(min=1), default=4, help="Enlarge the output.")
@json_option("The summary as JSON.")
def stream(
    model: Path,
    video: Path,
    horizon: int,
    renewal: str | None,
    every: int | None,
    resample: float | None,
    backend: str,
    threads: int | None,
    output: Path | None,
    zoom: int,
    json_: bool,
) -> None:
    """Forecast a video while it plays: after each picture, the next HORIZON."""
    import numpy as np

    from e3d_deploy.commands._places import check_apart
    from e3d_deploy.data.clips import play
    from e3d_deploy.data.form import Form
    from e3d_deploy.data.levels import watch_range
    from e3d_deploy.data.play import UntilLost
    from e3d_deploy.data.rate import Selection, warn_of_interval
    from e3d_deploy.data.remarks import Remarks
    from e3d_deploy.data.write import check_target, writing
    from e3d_deploy.measure.forecasts import needed_bytes
    from e3d_deploy.measure.live import follow
    from e3d_deploy.memory import check_memory

    stop = click.get_current_context().with_resource(stoppable())
    selection = Selection(every=every, resample=resample)
    check_zoom(output)
    if output is not None:
        check_apart(output, video, model, holds_clips=not output.suffix)
        check_target(output)
    with ExitStack() as stack:
        predictor = stack.enter_context(open_predictor(model, backend, threads))
        check_memory(f"--horizon {horizon}", needed_bytes(predictor, 2, horizon), "give a smaller --horizon")
        form = Form.of(predictor.config, predictor.card)
        remarks = Remarks()
        playing = play(video, form, remarks=remarks, selection=selection)
        source = UntilLost(watch_range(video.name, playing.pictures, remarks))
        warn_of_interval(str(video), [playing.rate], predictor.card.window, selection=selection)
        put = None
        if output is not None:
            height, width = form.image_size
            put = stack.enter_context(
                writing(
                    output,
                    (height, 2 * width),
                    form.channels,
                    frames_per_second=playing.frames_per_second,
                    zoom=zoom,
                )
            )
        progress = stack.enter_context(working(f"streaming {video}"))
        summary, _, _ = follow(
            predictor,
            stop.each(source),
            horizon=horizon,
            renewal=renewal,
            show=None if put is None else lambda seen, forecast: put(np.concatenate([seen, forecast], axis=-1)),
            progress=progress,
            remark=lambda text: click.echo(text, err=True),
        )
    if output is not None:
        click.echo(output, err=json_)
    if json_:
        as_json({**summary.to_json(), "source_frames_per_second": playing.frames_per_second})
    else:
        show_summary(summary, playing.frames_per_second)
    source.finish()
    stop.finish()


def show_summary(summary: "Followed", source_frames_per_second: float) -> None:
    """Show times as a table, and what they mean below it."""
    horizon = summary.horizon
    table(
        [f"{summary.frames} frames by {summary.backend}, renewal {summary.renewal}", "p50", "p99"],
        [
            (name, f"{times.p50:.1f} ms", f"{times.p99:.1f} ms")
            for name, times in (
                ("push one picture", summary.push_ms),
                (f"forecast {horizon} frames", summary.forecast_ms),
            )
        ],
    )
    click.echo(f"{summary.frames_per_second:.1f} frames/s, the source has {source_frames_per_second:.1f}")
    if summary.mse is not None:
        click.echo(
            f"{horizon} frames ahead: MSE {summary.mse:.1f} a frame, copying the last frame {summary.copy_mse:.1f}"
        )
