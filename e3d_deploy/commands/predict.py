"""`e3d predict` and `e3d stream`: forecasts of clips, and of a video while it plays."""

from pathlib import Path

import click

from e3d_deploy.commands._open import open_predictor
from e3d_deploy.commands._options import (
    BACKEND,
    BUNDLE_OR_MODEL,
    CONTEXT,
    EVERY,
    HORIZON,
    PATH,
    RESAMPLE,
    THREADS,
    json_option,
)
from e3d_deploy.commands._output import as_json, table, working


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
    backend: str,
    threads: int | None,
    zoom: int,
) -> None:
    """Predict the frames that follow the first of each clip in INPUT."""
    import numpy as np

    from e3d_deploy.data.clips import read_clips
    from e3d_deploy.data.rate import Selection, warn_of_interval
    from e3d_deploy.data.write import check_target, write_clips
    from e3d_deploy.errors import ShapeError

    selection = Selection(every=every, resample=resample)
    check_target(output, clip)
    with open_predictor(model, backend, threads) as predictor:
        config = predictor.config
        context_length = context_length or predictor.context_length
        horizon = horizon or predictor.horizon
        clips = read_clips(
            clip, image_size=config.image_size, channels=config.channels, most=context_length, selection=selection
        )
        warn_of_interval(str(clip), [clips.rate], predictor.card.window, selection=selection)
        if clips.frames.shape[1] < context_length:
            raise ShapeError(
                f"{clip}: has {clips.frames.shape[1]} frames, the context is {context_length}; "
                "give a longer clip or a smaller --context"
            )
        forecasts = []
        with working(f"predicting {clip}") as progress:
            for number, pictures in enumerate(clips.frames):
                progress(f"clip {number + 1} of {len(clips.frames)}")
                stream = predictor.stream(renewal="none")
                for picture in pictures:
                    stream.push(picture)
                forecasts.append(stream.forecast(horizon))
        write_clips(output, np.stack(forecasts), frames_per_second=clips.frames_per_second, zoom=zoom)
    click.echo(output)
    click.echo(f"{len(forecasts)} × {horizon} frames by {predictor.backend.name}", err=True)


@click.command()
@BUNDLE_OR_MODEL
@click.argument("video", metavar="SOURCE", type=PATH)
@click.option("--horizon", type=click.IntRange(min=1), default=10, help="Frames to look ahead.")
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

    from e3d_deploy.data.clips import play
    from e3d_deploy.data.rate import Selection, warn_of_interval
    from e3d_deploy.data.write import check_target, write_clips
    from e3d_deploy.measure.live import follow

    selection = Selection(every=every, resample=resample)
    if output is not None:
        check_target(output, video)
    with open_predictor(model, backend, threads) as predictor:
        config = predictor.config
        playing = play(video, image_size=config.image_size, channels=config.channels, selection=selection)
        warn_of_interval(str(video), [playing.rate], predictor.card.window, selection=selection)
        with working(f"streaming {video}") as progress:
            summary, seen, forecast = follow(
                predictor,
                playing.pictures,
                horizon=horizon,
                renewal=renewal,
                keep=output is not None,
                progress=lambda count, rate: progress(f"{count} frames, {rate:.1f} frames/s"),
            )
    if output is not None:
        side_by_side = np.concatenate([seen, forecast], axis=-1)[None]
        write_clips(output, side_by_side, frames_per_second=playing.frames_per_second, zoom=zoom)
        click.echo(output)
    if json_:
        as_json({**summary, "source_frames_per_second": playing.frames_per_second})
        return
    table(
        [f"{summary['frames']} frames by {summary['backend']}, renewal {summary['renewal']}", "p50", "p99"],
        [
            (name, f"{summary[key]['p50']:.1f} ms", f"{summary[key]['p99']:.1f} ms")
            for name, key in (("push one picture", "push_ms"), (f"forecast {horizon} frames", "forecast_ms"))
        ],
    )
    click.echo(f"{summary['frames_per_second']:.1f} frames/s, the source has {playing.frames_per_second:.1f}")
    if summary["mse"] is not None:
        click.echo(
            f"{horizon} frames ahead: MSE {summary['mse']:.1f} a frame, "
            f"copying the last frame {summary['copy_mse']:.1f}"
        )
