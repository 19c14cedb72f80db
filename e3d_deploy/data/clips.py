"""Clips from files: .npz, .npy, a folder of pictures, or a video. Needs no PyTorch."""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.pictures import NEEDS_VIDEO, play_folder, say_change
from e3d_deploy.errors import BackendUnavailable, ClipError, ShapeError, SourceLost

PEDESTRIANS = Path(__file__).parent / "clips" / "pedestrians.mp4"
"""The package's own video, for a network of any size."""


@dataclass(frozen=True)
class Clips:
    """Clips of one source, all of one length."""

    frames: NDArray[Any]
    """[B, T, H, W, C], uint8 or float in [0, 1]."""
    frames_per_second: float
    """As the source says; 10 where it does not."""


def read_clips(path: Path, *, image_size: tuple[int, int], channels: int, most: int | None = None) -> Clips:
    """All clips in `path`, at the size and with the colours that a model wants.

    Videos and pictures are scaled and converted, which is logged; arrays are taken as they are.

    Args:
        path: `.npz` with an array `frames`, `.npy`, a folder of pictures, or a video. Arrays are
            [B, T, H, W, C] or [T, H, W, C].
        image_size: height and width, pixels.
        channels: 1 for gray, 3 for RGB.
        most: read no more frames than this.

    Raises:
        ClipError: nothing there that can be read, or nothing in it.
        ShapeError: arrays of another size or number of colours.
        BackendUnavailable: a video or pictures without the extra `video`.
    """
    if not path.exists():
        raise ClipError(f"{path}: no such file or folder; give .npz, .npy, a folder of pictures or a video")
    if path.suffix in (".npz", ".npy"):
        frames = _read_array(path)
        if list(frames.shape[2:]) != [*image_size, channels]:
            raise ShapeError(
                f"{path}: frames {list(frames.shape[2:])}, expected {[*image_size, channels]}; "
                "resize them, or take a model for this size"
            )
        return Clips(frames[:, :most], 10.0)
    video = play(path, image_size=image_size, channels=channels)
    return Clips(np.stack(list(islice(video.pictures, most)))[None], video.frames_per_second)


@dataclass(frozen=True)
class Video:
    """A source that plays picture by picture."""

    pictures: Iterator[NDArray[np.uint8]]
    """[H, W, C]; raises ClipError where the source cannot be read or holds nothing, SourceLost where it breaks off."""
    frames_per_second: float
    """As the source says; 10 where it does not."""


def play(path: Path, *, image_size: tuple[int, int], channels: int, say: bool = True) -> Video:
    """A video or a folder of pictures, scaled and converted as a model wants, which is logged if `say`.

    Raises:
        ClipError, BackendUnavailable: as `read_clips`.
    """
    if not path.exists():
        raise ClipError(f"{path}: no such video; give a video file or a folder of pictures")
    if channels not in (1, 3):
        raise ShapeError(f"{path}: pictures have 1 or 3 colours, the model takes {channels}; give .npz or .npy")
    open_ = play_folder if path.is_dir() else _video
    pictures, rate = open_(path, image_size=image_size, channels=channels, say=say)
    return Video(_not_empty(path, pictures), rate)


def _not_empty(path: Path, pictures: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    empty = True
    for picture in pictures:
        empty = False
        yield picture
    if empty:
        raise ClipError(f"{path}: holds no frame; check the file, or export it again")


def _read_array(path: Path) -> NDArray[Any]:
    with path.open("rb") as file:
        try:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                if "frames" not in loaded.files:
                    raise ClipError(f"{path}: holds {loaded.files}, expected an array `frames`")
                loaded = loaded["frames"]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ClipError(f"{path}: not a NumPy file of plain numbers, or damaged; write it again") from error
    if loaded.ndim == 4:
        loaded = loaded[None]
    if loaded.ndim != 5:
        raise ShapeError(f"{path}: got {list(loaded.shape)}, expected [B, T, H, W, C] or [T, H, W, C]")
    if loaded.shape[0] == 0 or loaded.shape[1] == 0:
        raise ClipError(f"{path}: holds no frame, its shape is {list(loaded.shape)}")
    array: NDArray[Any] = loaded
    return array


def _video(
    path: Path, *, image_size: tuple[int, int], channels: int, say: bool
) -> tuple[Iterator[NDArray[np.uint8]], float]:
    try:
        import av
    except ImportError as error:
        raise BackendUnavailable(NEEDS_VIDEO) from error
    height, width = image_size
    target = "gray" if channels == 1 else "rgb24"

    def unreadable(error: av.FFmpegError) -> ClipError:
        return ClipError(f"{path}: not a video that can be read ({error.strerror}); check the file")

    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise unreadable(error) from error
    # FFmpeg shows any text as a film of a terminal ("tty").
    if not container.streams.video or container.format.name == "tty":
        container.close()
        raise ClipError(f"{path}: holds no video")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"

    def pictures() -> Iterator[NDArray[np.uint8]]:
        number = -1
        with container:
            try:
                for number, frame in enumerate(container.decode(stream)):
                    if number == 0 and say:
                        say_change(path, (frame.height, frame.width), frame.format.name, image_size, target)
                    picture = frame.reformat(width, height, target, interpolation="AREA").to_ndarray()
                    yield picture.reshape(height, width, channels).astype(np.uint8, copy=False)
            except av.FFmpegError as error:
                if number < 0:
                    raise unreadable(error) from error
                raise SourceLost(
                    f"{path}: broke off after frame {number} ({error.strerror}); check the file"
                ) from error

    return pictures(), float(stream.average_rate or 10)
