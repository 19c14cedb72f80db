"""Pictures of single clips: single frames as the original code saves them, a strip, and an animation. Needs Pillow."""

from math import ceil
from pathlib import Path

import numpy as np

from e3d_deploy import metrics, plots
from e3d_deploy.data.write import write_clips
from e3d_deploy.errors import ConfigError
from e3d_deploy.frames import Frames

STRIP_LENGTH = 12
"""Maximum number of frames side by side in a strip."""
ANIMATION_SIDE = 192
"""Approximate length of the longer side of a frame in the animation, after enlarging (pixels)."""


def write_samples(folder: Path, truth: Frames, forecast: Frames, context_length: int) -> None:
    """Write a clip and its forecast as picture files with the names that the original code uses.

    The clip is written as gt01.png, gt02.png, …; after a context of 10 frames the forecast is written as pd11.png,
    pd12.png, …. Values are clipped to [0, 1] and truncated to 8 bits. Frames of 3 colours are written as RGB.

    Args:
        folder: folder to create, with missing parent folders; the original uses gen_frm_dir/ITERATION/BATCH.
        truth: the whole clip, [T, C, H, W]; C is 1 or 3.
        forecast: unclipped, [horizon, C, H, W].

    Raises:
        ConfigError: `folder` exists, or the frames do not have 1 or 3 colours.

    Source: google/e3d_lstm src/trainer.py, test.
    """
    from PIL import Image

    if truth.shape[1] not in (1, 3):
        raise ConfigError(f"{folder}: got frames of {truth.shape[1]} colours, expected 1 or 3; turn off the samples")
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(
            f"{folder}: exists already, and samples are not overwritten; choose another folder"
        ) from error
    for name, frames, first in (("gt", truth, 1), ("pd", forecast, context_length + 1)):
        for number, picture in enumerate(np.moveaxis(metrics.eight_bits(frames), 1, -1), first):
            Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(
                folder / f"{name}{number:02d}.png"
            )


def show_sample(folder: Path, name: str, truth: Frames, forecast: Frames, context_length: int) -> None:
    """Write the single pictures, a strip and an animation of one clip.

    Writes the pictures of `write_samples` into the folder NAME, truth above forecast as NAME.png, and an animation of
    the two side by side as NAME.gif.

    Args:
        truth, forecast: as for `write_samples`.

    Raises:
        ConfigError: as for `write_samples`.
    """
    write_samples(folder / name, truth, forecast, context_length)
    shown = forecast.clip(0, 1)
    every = ceil(max(context_length, len(shown)) / STRIP_LENGTH)
    rows = {"context": truth[:context_length], "truth": truth[context_length:], "forecast": shown}
    labels = {row: row if every == 1 else f"{row}\n1 in {every}" for row in rows}
    (folder / f"{name}.png").write_bytes(plots.strips({labels[row]: clip for row, clip in rows.items()}, every=every))
    beside = np.concatenate([truth[:context_length], shown])
    film = np.concatenate([framed(truth, 0.25), framed(beside, 0.25, bright_from=context_length)], axis=-1)
    zoom = max(1, round(ANIMATION_SIDE / max(truth.shape[-2:])))
    write_clips(folder / f"{name}.gif", film[None], frames_per_second=6, zoom=zoom)


def framed(clip: Frames, gray: float, bright_from: int | None = None) -> Frames:
    """Return a clip [T, C, H, W] with a border of one pixel around each frame.

    Args:
        gray: value of the border.
        bright_from: index of the first frame with a white border, which marks forecast frames; None if no border is
            white.
    """
    bordered = np.pad(clip, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=gray)
    if bright_from is not None:
        late = bordered[bright_from:]
        late[..., 0, :] = late[..., -1, :] = 1.0
        late[..., 0] = late[..., -1] = 1.0
    return bordered
