"""Forecast of the clips in a file, a folder or an array."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.clips import Clips, read_clips
from e3d_deploy.data.folders import warn_of_short
from e3d_deploy.data.form import Form
from e3d_deploy.data.mosaic import Mosaic
from e3d_deploy.data.rate import Selection, warn_of_interval
from e3d_deploy.data.write import check_clips_path, check_size, write_clips
from e3d_deploy.errors import ConfigError, ShapeError
from e3d_deploy.measure.forecasts import Forecasts, forecast_clip, needed_bytes, with_truth
from e3d_deploy.memory import check_memory
from e3d_deploy.paths import check_path
from e3d_deploy.progress import Notify, silent, within
from e3d_deploy.runtime import Bundle, Predictor
from e3d_deploy.runtime.arguments import check_counts
from e3d_deploy.workflows.opening import open_predictor
from e3d_deploy.workflows.places import check_apart

Contexts = Iterable[NDArray[Any]]
LESS = "give a smaller --horizon, or fewer clips"


def predict(
    model: Bundle | str | Path,
    clip: str | Path | NDArray[Any],
    output: str | Path | None = None,
    *,
    context_length: int | None = None,
    horizon: int | None = None,
    start: int = 0,
    every: int | None = None,
    resample: float | None = None,
    layout: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    forecast_only: bool = False,
    zoom: int = 1,
    loop: Callable[[Contexts], Contexts] = iter,
    progress: Notify = silent,
) -> Forecasts:
    """Forecast the frames that follow the context of each clip.

    Args:
        model: bundle, opened or as its path, or model file.
        clip: video, picture, array file or folder; or the pictures of one clip, uint8 or float in [0, 1],
            [T, H, W, C].
        output: file to write, which is replaced (`.npz`, `.mp4` or `.gif`), or a new folder for pictures; None writes
            nothing.
        context_length, horizon: numbers of context frames and of predicted frames; None for the lengths of the model.
        start: first frame of the context, counted from 0.
        every: use every n-th frame of the source.
        resample: resample the source to this rate (frames per second).
        layout: axes of array files, such as `NTHW`; None to infer them from the shape.
        backend: name of a backend, or `auto`.
        threads: CPU threads of a step; None leaves the number to the library.
        forecast_only: write the forecast without truth and difference.
        zoom: pixels of a written picture per pixel of a frame.
        loop: called with the contexts of the clips; yields those to forecast. A program may end the loop early.
        progress: called with lines about the current clip.

    Returns:
        The forecasts, [B, T, C, H, W], with their truth as far as the source contains it.

    Raises:
        ShapeError: no clip is long enough, or the pictures do not fit the model.
        ClipError, SourceLost: the source cannot be read.
        ConfigError: an argument is invalid, or the output path is an input or cannot be written.
        BundleError, CheckpointError, BackendUnavailable: the model cannot be opened; see `open_predictor`.
        ResourceLimit: the forecasts need more than the free memory.
    """
    source = None if isinstance(clip, np.ndarray) else check_path("clip", clip)
    output = None if output is None else check_path("output", output)
    selection = Selection(every=every, resample=resample)
    check_counts(context_length=context_length, horizon=horizon, zoom=zoom)
    check_counts(start=start, least=0)
    if zoom != 1 and (output is None or output.suffix.lower() == ".npz"):
        raise ConfigError(f"zoom: got {zoom}, but no video or picture is written; leave it out")
    if output is not None:
        check_apart(output, source, check_path("model", model), holds_clips=not output.suffix)
        check_clips_path(output)
    with open_predictor(model, backend, threads=threads) as predictor:
        context_length, horizon = context_length or predictor.context_length, horizon or predictor.horizon
        check_memory(f"--horizon {horizon}", needed_bytes(predictor, 1, horizon), LESS)
        begin = start + context_length
        most = min(begin + horizon, sys.maxsize)
        form = Form.of(predictor.config, predictor.card, layout)
        if source is None:
            clips = _one_clip(clip, selection, layout)
        else:
            clips = read_clips(source, form, most=most, selection=selection)
            warn_of_interval(str(source), clips.rates, predictor.card.window, selection=selection)
        clips = long_enough(source, clips, start, begin, selection)
        check_memory(f"--horizon {horizon}", needed_bytes(predictor, len(clips.clips), horizon), LESS)
        true_pictures = [pictures[begin:most] for pictures in clips.clips]
        compared = not forecast_only and any(len(pictures) for pictures in true_pictures)
        shown: dict[str, Any] = {"frames_per_second": clips.frames_per_second, "zoom": zoom}
        if output is not None:
            mosaic = Mosaic(clips=len(clips.clips), image_size=form.image_size, compared=compared)
            check_size(output, mosaic.size, form.channels, **shown)
        contexts = [pictures[start:begin] for pictures in clips.clips]
        done = _forecasts(predictor, contexts, true_pictures, horizon, loop=loop, progress=progress)
        if output is not None:
            write_clips(output, done.frames, truth=done.truth if compared else None, **shown)
    return done


def _one_clip(clip: Any, selection: Selection, layout: str | None) -> Clips:
    """Return an array of pictures as one clip."""
    if clip.ndim != 4:
        raise ShapeError(f"clip: got {list(clip.shape)}, expected pictures of one clip, [T, H, W, C]")
    if not selection.takes_all or layout is not None:
        raise ConfigError("clip: got an array with every, resample or layout, which apply to files; slice the array")
    return Clips(clips=[clip], names=["clip"])


def _forecasts(
    predictor: Predictor,
    contexts: list[NDArray[Any]],
    true_pictures: list[NDArray[Any]],
    horizon: int,
    *,
    loop: Callable[[Contexts], Contexts],
    progress: Notify,
) -> Forecasts:
    """Forecast the clips that `loop` yields."""
    forecasts = []
    for number, context in enumerate(loop(contexts)):
        say = within(progress, f"clip {number + 1} of {len(contexts)}" if len(contexts) > 1 else "")
        forecasts.append(forecast_clip(predictor, context, horizon, progress=say))
    if not forecasts:
        raise ConfigError("loop: yielded no context, expected at least one; yield the contexts that it is called with")
    count = len(forecasts)
    done = with_truth(forecasts, contexts[:count], true_pictures[:count])
    return replace(done, backend=predictor.backend.name)


def long_enough(source: Path | None, clips: Clips, start: int, begin: int, selection: Selection) -> Clips:
    """Return the clips that are long enough for the context; log the names of the shorter clips.

    Args:
        source: input as the user gave it, for the log; None for an array.
        clips: clips to choose from.
        start: first frame of the context.
        begin: first frame after the context.
        selection: frames that are taken from the source.

    Raises:
        ShapeError: no clip is long enough.
    """
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
        assert source is not None, "an array is one clip"
        warn_of_short(source, short, of=len(lengths), length=begin)
    return replace(
        clips, clips=[clips.clips[number] for number in kept], names=[clips.names[number] for number in kept]
    )
