"""Pictures of single clips: as the original saves them, as a strip, and as an animation. Needs Pillow."""

from math import ceil
from pathlib import Path

import numpy as np

from e3d_deploy import metrics, plots
from e3d_deploy.data.write import write_clips
from e3d_deploy.errors import ConfigError
from e3d_deploy.frames import Frames

STRIP_LENGTH = 12
"""Most frames in a row of a strip."""
ANIMATION_SIDE = 192
"""Pixels that the longer side of an animated frame is enlarged to, about."""


def write_samples(folder: Path, truth: Frames, forecast: Frames, context_length: int) -> None:
    """Write a clip and its forecast as the original does: gt01.png …, and pd11.png … after a context of 10.

    Values are clipped to [0, 1] and cut off to 8 bits. Colour is written as RGB.

    Args:
        folder: new; the original calls it gen_frm_dir/ITERATION/BATCH. Folders above it are made.
        truth: the whole clip, [T, C, H, W], 1 or 3 colours.
        forecast: [horizon, C, H, W], as computed.

    Raises:
        ConfigError: there is something at `folder`, or the frames have other colours.

    Source: google/e3d_lstm src/trainer.py, test.
    """
    from PIL import Image

    if truth.shape[1] not in (1, 3):
        raise ConfigError(f"{folder}: pictures have 1 or 3 colours, the frames {truth.shape[1]}; ask for no samples")
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"{folder}: is there already, samples are not overwritten; choose another folder") from error
    for name, frames, first in (("gt", truth, 1), ("pd", forecast, context_length + 1)):
        for number, picture in enumerate(np.moveaxis(metrics.eight_bits(frames), 1, -1), first):
            Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(
                folder / f"{name}{number:02d}.png"
            )


def show_sample(folder: Path, name: str, truth: Frames, forecast: Frames, context_length: int) -> None:
    """Write the samples into NAME, truth above forecast as NAME.png, and the two playing side by side as NAME.gif.

    Args:
        truth, forecast: as for `write_samples`.

    Raises:
        ConfigError: as `write_samples`.
    """
    write_samples(folder / name, truth, forecast, context_length)
    shown = forecast.clip(0, 1)
    every = ceil(max(context_length, len(shown)) / STRIP_LENGTH)
    rows = {"given": truth[:context_length], "truth": truth[context_length:], "forecast": shown}
    labels = {row: row if every == 1 else f"{row}\n1 in {every}" for row in rows}
    (folder / f"{name}.png").write_bytes(plots.strips({labels[row]: clip for row, clip in rows.items()}, every=every))
    beside = np.concatenate([truth[:context_length], shown])
    film = np.concatenate([framed(truth, 0.25), framed(beside, 0.25, bright_from=context_length)], axis=-1)
    zoom = max(1, round(ANIMATION_SIDE / max(truth.shape[-2:])))
    write_clips(folder / f"{name}.gif", film[None], frames_per_second=6, zoom=zoom)


def framed(clip: Frames, gray: float, bright_from: int | None = None) -> Frames:
    """A clip [T, C, H, W] with a border of one pixel, which is white from a frame on: from there it is forecast."""
    bordered = np.pad(clip, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=gray)
    if bright_from is not None:
        late = bordered[bright_from:]
        late[..., 0, :] = late[..., -1, :] = 1.0
        late[..., 0] = late[..., -1] = 1.0
    return bordered
