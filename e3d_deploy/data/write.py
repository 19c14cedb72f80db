"""Clips to files: .npz, .mp4, .gif, or a folder of pictures."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.pictures import NEEDS_VIDEO
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.files import new_file, new_folder
from e3d_deploy.frames import Frames, to_pictures


def check_target(path: Path, source: Path | None = None) -> None:
    """Check that `write_clips` can write to a path, before any work is done.

    Args:
        source: what is read for it, which it shall not replace.

    Raises:
        ConfigError: a suffix that stands for nothing, a folder with something in it, no such parent, or the source.
    """
    if source is not None and source.exists() and path.exists() and path.samefile(source):
        raise ConfigError(f"{path}: is what is read, and would be replaced; choose another name")
    if path.suffix not in (".npz", ".mp4", ".gif", ""):
        raise ConfigError(f"{path}: writes .npz, .mp4, .gif, or a folder (no suffix); got {path.suffix}")
    if path.suffix and path.is_dir():
        raise ConfigError(f"{path}: is a folder; choose another name")
    if path.suffix == "" and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: is there already and not an empty folder; choose another")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist; make it first")


def write_clips(path: Path, frames: Frames, *, frames_per_second: float = 10, zoom: int = 1) -> None:
    """Write clips [B, T, C, H, W] to `path`, whole or not at all, as its suffix says. A file there is replaced.

    `.npz`: array `frames`, float32 [B, T, H, W, C], as computed. `.mp4`, `.gif` and a folder of PNG:
    clipped to [0, 1], the clips side by side.

    Args:
        zoom: pixels of the picture per pixel of a frame, not for `.npz`.

    Raises:
        ConfigError: as `check_target`.
        BackendUnavailable: pictures or a video without the extra `video`.
    """
    check_target(path)
    with new_file(path) if path.suffix else new_folder(path) as partial:
        if path.suffix == ".npz":
            np.savez_compressed(partial, frames=np.moveaxis(frames, -3, -1))
            return
        if frames.shape[2] not in (1, 3):
            raise ConfigError(f"{path}: pictures have 1 or 3 colours, the frames {frames.shape[2]}; write .npz")
        pictures = to_pictures(np.concatenate(list(frames), axis=-1))  # [T, H, B·W, C]
        pictures = pictures.repeat(zoom, axis=1).repeat(zoom, axis=2)
        write = {".mp4": _write_mp4, ".gif": _write_gif, "": _write_folder}[path.suffix]
        write(partial, pictures, frames_per_second)


def _write_mp4(path: Path, pictures: NDArray[np.uint8], frames_per_second: float) -> None:
    try:
        import av
    except ImportError as error:
        raise BackendUnavailable(NEEDS_VIDEO) from error
    # H.264 for browsers wants even sides.
    _, height, width, C = pictures.shape
    pictures = np.pad(pictures, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1001))
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}
        for picture in pictures:
            rgb = np.ascontiguousarray(picture if C == 3 else picture.repeat(3, axis=2))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())


def _write_gif(path: Path, pictures: NDArray[np.uint8], frames_per_second: float) -> None:
    images = _images(pictures)
    duration_ms = round(1000 / frames_per_second)
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=duration_ms, loop=0)


def _write_folder(path: Path, pictures: NDArray[np.uint8], _: float) -> None:
    for number, image in enumerate(_images(pictures)):
        image.save(path / f"frame_{number:04d}.png")


def _images(pictures: NDArray[np.uint8]) -> list[Any]:
    try:
        from PIL import Image
    except ImportError as error:
        raise BackendUnavailable(NEEDS_VIDEO) from error
    return [Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture) for picture in pictures]
