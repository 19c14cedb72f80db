"""Videos and folders of pictures that play picture by picture. Needs no PyTorch."""

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
    """A source that plays picture by picture."""

    pictures: Iterator[NDArray[np.uint8]]
    """[H, W, C]; raises ClipError where the source cannot be read or holds nothing, SourceLost where it breaks off."""
    rate: float | None
    """Frames per second; None where the source tells none."""
    rest: Iterator[object]
    """Frames behind those that were taken, as they are stored, for a check of whether the source is whole."""
    time_s: Callable[[], float | None]
    """Returns the time of the picture that came last, by the source's own clock (s); None where it tells none."""

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
        ClipError: nothing there that plays.
        ConfigError: resampling of a source without a rate.
        BackendUnavailable: without the extra `video`.
    """
    if not path.exists():
        raise ClipError(f"{path}: no such video; give a video file or a folder of pictures")
    if not path.is_dir() and path.suffix.lower() in ARRAYS:
        raise ClipError(f"{path}: an array does not play; give a video file or a folder of pictures")
    if form.channels not in (1, 3):
        raise ShapeError(f"{path}: pictures have 1 or 3 colours, the model takes {form.channels}; give .npz or .npy")
    remarks = remarks or Remarks()
    pictures: Iterator[NDArray[np.uint8]]
    rest: Iterator[object]
    time_s: Callable[[], float | None]
    is_animated = path.is_file() and png.is_animated(path)
    if is_animated:
        _check_animation(path)
    # FFmpeg, unlike Pillow, knows all ways in which a frame of an animated PNG is laid over those before.
    is_video = is_animated or not (path.is_dir() or path.suffix.lower() in PICTURES)
    if is_video:
        played = play_video(path, form, remarks=remarks, resample=selection.resample)
        pictures, rate, rest, time_s = played.pictures, played.rate, played.rest, played.time_s
    else:
        open_ = play_folder if path.is_dir() else play_pages
        pictures, rate = open_(path, form, remarks=remarks)
        rest, time_s = pictures, lambda: None
    pictures = _not_empty(path, pictures)
    # A video's frames are taken by their own times, which need not be even.
    if not selection.takes_all and not (is_video and selection.resample is not None):
        pictures = select(pictures, selection.stride(rate, name=str(path)))
    return Video(pictures, selection.rate(rate), rest, time_s)


def _check_animation(path: Path) -> None:
    content = path.read_bytes()
    if png.has_damage(content):
        raise ClipError(f"{path}: damaged, the checksum of a frame is wrong; copy or export it again")
    if (reason := png.why_misplayed(content)) is not None:
        raise ClipError(f"{path}: {reason}")


class UntilLost:
    """Pictures of a source up to where it breaks off, so that what was made of them can be kept."""

    def __init__(self, pictures: Iterator[NDArray[np.uint8]]) -> None:
        self.pictures = pictures
        self.error: SourceLost | None = None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        try:
            yield from self.pictures
        except SourceLost as error:
            self.error = error

    def finish(self) -> None:
        """Raise the error of the source if it broke off.

        Raises:
            SourceLost: it did.
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
