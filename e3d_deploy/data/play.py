"""Videos and folders of pictures, read picture by picture. Needs no PyTorch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data import png
from e3d_deploy.data.folders import ARRAYS
from e3d_deploy.data.form import Form
from e3d_deploy.data.pictures import PICTURES, play_folder, play_pages
from e3d_deploy.data.rate import ALL, DEFAULT_RATE, Selection, select
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.data.videos import play_video
from e3d_deploy.errors import ClipError, ShapeError, SourceLost


@dataclass(frozen=True)
class Video:
    """A source that is read picture by picture."""

    pictures: Iterator[NDArray[np.uint8]]
    """Pictures [H, W, C].

    Iteration raises ClipError if the source cannot be read or is empty, and SourceLost if the source breaks off.
    """
    rate: float | None
    """Frame rate of the pictures (frames per second); None if the source states none."""
    rest: Iterator[object]
    """Remaining frames, without conversion, to check that the rest of the source can be read."""
    time_s: Callable[[], float | None]
    """Returns the time of the last picture on the source's own clock (s); None if the source has no clock."""

    @property
    def frames_per_second(self) -> float:
        """Frame rate for display: `rate`, or 10 if `rate` is None (frames per second)."""
        return self.rate or DEFAULT_RATE


def play(path: Path, form: Form, *, remarks: Remarks | None = None, selection: Selection = ALL) -> Video:
    """Play a video, a folder of pictures or the pages of a picture, in the size and colours of the model.

    Args:
        path: video, folder or picture.
        form: size, colours and fit of the model's frames.
        remarks: collects remarks on conversions; None: the remarks are logged.
        selection: which frames are played; the rate of the result is that of the selected frames.

    Raises:
        ClipError: `path` does not exist or cannot be played.
        ShapeError: the model does not take 1 or 3 colours.
        ConfigError: resampling was requested for a source without a frame rate.
        BackendUnavailable: the extra `video` is not installed.
    """
    if not path.exists():
        raise ClipError(f"{path}: no such video; give a video file or a folder of pictures")
    if not path.is_dir() and path.suffix.lower() in ARRAYS:
        raise ClipError(f"{path}: arrays cannot be played; give a video file or a folder of pictures")
    if form.channels not in (1, 3):
        raise ShapeError(f"{path}: pictures have 1 or 3 colours, the model takes {form.channels}; give .npz or .npy")
    remarks = remarks or Remarks()
    pictures: Iterator[NDArray[np.uint8]]
    rest: Iterator[object]
    time_s: Callable[[], float | None]
    is_animated = path.is_file() and png.is_animated(path)
    if is_animated:
        _check_animation(path)
    # FFmpeg, unlike Pillow, supports all ways to blend a frame of an animated PNG with the frames before it.
    is_video = is_animated or not (path.is_dir() or path.suffix.lower() in PICTURES)
    if is_video:
        played = play_video(path, form, remarks=remarks, resample=selection.resample)
        pictures, rate, rest, time_s = played.pictures, played.rate, played.rest, played.time_s
    else:
        open_ = play_folder if path.is_dir() else play_pages
        pictures, rate = open_(path, form, remarks=remarks)
        rest, time_s = pictures, lambda: None
    pictures = _not_empty(path, pictures)
    # The frames of a video are selected by their own times, which may be uneven.
    if not selection.takes_all and not (is_video and selection.resample is not None):
        pictures = select(pictures, selection.stride(rate, name=str(path)))
    return Video(pictures, selection.rate(rate), rest, time_s)


def _check_animation(path: Path) -> None:
    content = path.read_bytes()
    if png.has_damage(content):
        raise ClipError(f"{path}: damaged, the checksum of a frame is wrong; copy or export it again")
    if (reason := png.why_misplayed(content)) is not None:
        raise ClipError(f"{path}: {reason}")


class PicturesUntilLost:
    """Pictures of a source until it breaks off; the error is kept, so that results up to that point can be saved."""

    def __init__(self, pictures: Iterator[NDArray[np.uint8]]) -> None:
        self.pictures = pictures
        self.error: SourceLost | None = None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        try:
            yield from self.pictures
        except SourceLost as error:
            self.error = error

    def finish(self) -> None:
        """Raise the error with which the source broke off, if it did.

        Raises:
            SourceLost: the source broke off.
        """
        if self.error is not None:
            raise self.error


def _not_empty(path: Path, pictures: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    empty = True
    for picture in pictures:
        empty = False
        yield picture
    if empty:
        raise ClipError(f"{path}: holds no frame; check the file, or export it again")
