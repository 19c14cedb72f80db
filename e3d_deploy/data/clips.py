"""Clips from files: .npz, .npy, a folder of pictures, or a video. Needs no PyTorch."""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.form import Form
from e3d_deploy.data.pictures import PICTURES, play_folder, play_pages
from e3d_deploy.data.rate import ALL, DEFAULT_RATE, Selection, places, select
from e3d_deploy.data.remarks import Remarks, watch_span
from e3d_deploy.data.videos import first_pictures, play_video
from e3d_deploy.errors import ClipError, ShapeError

PEDESTRIANS = files("e3d_deploy.data") / "clips" / "pedestrians.mp4"
"""The package's own video, for a network of any size; `shipped.extracted` makes it a file."""


@dataclass(frozen=True)
class Clips:
    """Clips of one source, all of one length."""

    frames: NDArray[Any]
    """[B, T, H, W, C], uint8 or float in [0, 1]."""
    rate: float | None
    """Frames per second; None where the source tells none."""

    @property
    def frames_per_second(self) -> float:
        """Rate to show them at: their own, else 10."""
        return self.rate or DEFAULT_RATE


def read_clips(
    path: Path,
    form: Form,
    *,
    most: int | None = None,
    selection: Selection = ALL,
) -> Clips:
    """All clips in `path`, at the size and with the colours that a model wants.

    Videos and pictures are scaled and converted, which is logged; arrays are taken as they are.

    Args:
        path: `.npz` with an array `frames`, `.npy`, a folder of pictures, or a video. Arrays are
            [B, T, H, W, C] or [T, H, W, C].
        form: form of the frames that the model takes.
        most: read no more frames than this.
        selection: frames that are taken; their rate is that of the clips.

    Raises:
        ClipError: nothing there that can be read, or nothing in it.
        ConfigError: resampling of a source without a rate.
        ShapeError: arrays of another size or number of colours.
        SourceLost: a video is damaged or its end is missing, behind the frames that are read too.
        BackendUnavailable: a video or pictures without the extra `video`.
    """
    if not path.exists():
        raise ClipError(f"{path}: no such file or folder; give .npz, .npy, a folder of pictures or a video")
    if path.suffix in (".npz", ".npy"):
        frames = _read_array(path)
        if frames.shape[2:] != form.shape:
            raise ShapeError(
                f"{path}: frames {list(frames.shape[2:])}, expected {list(form.shape)}; "
                "resize them, or take a model for this size"
            )
        if not selection.takes_all:
            frames = frames[:, places(frames.shape[1], selection.stride(None, name=str(path)))]
        return Clips(frames[:, :most], None)
    video = play(path, form, selection=selection)
    return Clips(np.stack(first_pictures(path, video.pictures, most))[None], video.rate)


@dataclass(frozen=True)
class Video:
    """A source that plays picture by picture."""

    pictures: Iterator[NDArray[np.uint8]]
    """[H, W, C]; raises ClipError where the source cannot be read or holds nothing, SourceLost where it breaks off."""
    rate: float | None
    """Frames per second; None where the source tells none."""

    @property
    def frames_per_second(self) -> float:
        """Rate to show it at: its own, else 10."""
        return self.rate or DEFAULT_RATE


def play(path: Path, form: Form, *, remarks: Remarks | None = None, selection: Selection = ALL) -> Video:
    """Play a video, a folder of pictures or the pages of a picture, scaled and converted as a model wants.

    Args:
        remarks: takes what is done to the pictures; None: remarks of its own, which are logged.
        selection: frames that are taken; their rate is that of the video.

    Raises:
        ClipError, ConfigError, BackendUnavailable: as `read_clips`.
    """
    if not path.exists():
        raise ClipError(f"{path}: no such video; give a video file or a folder of pictures")
    if form.channels not in (1, 3):
        raise ShapeError(f"{path}: pictures have 1 or 3 colours, the model takes {form.channels}; give .npz or .npy")
    remarks = remarks or Remarks()
    pictures: Iterator[NDArray[np.uint8]]
    rate: float | None = None
    is_video = not path.is_dir() and path.suffix.lower() not in PICTURES
    if is_video:
        pictures, rate = play_video(path, form, remarks=remarks, resample=selection.resample)
    else:
        open_ = play_folder if path.is_dir() else play_pages
        pictures, rate = open_(path, form, remarks=remarks)
    pictures = watch_span(path.name, _not_empty(path, pictures), remarks)
    # A video's frames are taken by their own times, which need not be even.
    if not selection.takes_all and not (is_video and selection.resample is not None):
        pictures = select(pictures, selection.stride(rate, name=str(path)))
    return Video(pictures, selection.rate(rate))


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
