"""Clips of files and folders, for commands that read complete clips. Needs no PyTorch."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.folders import find_clips, no_clips, warn_of_short
from e3d_deploy.data.form import Form
from e3d_deploy.data.kth import is_kth, kth_stretches
from e3d_deploy.data.levels import say_range
from e3d_deploy.data.play import Video, play
from e3d_deploy.data.rate import ALL, DEFAULT_RATE, Selection
from e3d_deploy.data.readers import Reader
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.data.storage import Clip, Part
from e3d_deploy.errors import ClipError
from e3d_deploy.progress import Notify, silent

__all__ = ["PEDESTRIANS", "Clips", "Video", "play", "read_clips"]

log = logging.getLogger(__name__)

PEDESTRIANS = files("e3d_deploy.data") / "clips" / "pedestrians.mp4"
"""The package's own video, for networks of any size; `shipped.extracted` writes it to a file."""


@dataclass(frozen=True)
class Clips:
    """Clips of one source, which may be of different lengths."""

    clips: Sequence[Clip]
    """Clips, uint8 or float in [0, 1], [T, H, W, C]; slicing a clip of an array or of pictures reads the frames."""
    names: Sequence[str]
    """Names, in the order of `clips`."""
    rates: Sequence[float] = ()
    """Frame rates of the videos that state one (frames per second)."""

    @property
    def frames(self) -> NDArray[Any]:
        """All clips as one array, cut to the length of the shortest clip, [B, T, H, W, C]."""
        shortest = min(map(len, self.clips))
        return np.stack([clip[:shortest] for clip in self.clips])

    @property
    def rate(self) -> float | None:
        """Frame rate of the first video that states one; None if no video does (frames per second)."""
        return self.rates[0] if self.rates else None

    @property
    def frames_per_second(self) -> float:
        """Frame rate for display: `rate`, or 10 if `rate` is None (frames per second)."""
        return self.rate or DEFAULT_RATE


def read_clips(
    path: Path,
    form: Form,
    *,
    most: int | None = None,
    least: int = 1,
    count: int | None = None,
    selection: Selection = ALL,
    remarks: Remarks | None = None,
    progress: Notify = silent,
) -> Clips:
    """Return the clips in `path`, in the size and colours that a model takes.

    Videos and pictures are scaled and converted, which is logged. Arrays must already have the size and colours.

    Args:
        path: a `.npz` or `.npy` file, a video, a folder of pictures, or a folder of such files and folders.
        form: size, colours and fit of the model's frames.
        most: maximum number of frames read from each clip.
        least: minimum length of a clip (frames); shorter clips are skipped, which is logged.
        count: maximum number of clips.
        selection: which frames of a video are read; the rates of the result are those of the selected frames.
        remarks: collects remarks on conversions; None: the remarks are logged.
        progress: receives messages while files are read.

    Raises:
        ClipError: `path` does not exist, holds no clip, cannot be read, or has no clip of `least` frames.
        SourceLost: a video is damaged, or its end is missing, even after the frames that were read.
        ConfigError: resampling was requested for a source without a frame rate.
        ShapeError: an array has a rank, size, colours or data type that the model does not take, or its layout is
            ambiguous.
        BackendUnavailable: reading a video or pictures needs the extra `video`.
    """
    if not path.exists():
        raise ClipError(f"{path}: no such file or folder; give .npz, .npy, a video, or a folder of pictures or clips")
    reader = Reader(form=form, skip_bad=False, progress=progress, selection=selection, most=most, remarks=remarks)
    clips: list[Clip] = []
    names: list[str] = []
    short: dict[str, int] = {}
    for name, clip in _each(path, reader):
        if len(clip) < least:
            short[name] = len(clip)
            continue
        clips.append(clip if most is None or len(clip) <= most else Part(clip, 0, most))
        names.append(name)
        if len(clips) == count:
            break
    if not clips:
        raise ClipError(_too_short(path, short, least))
    if short:
        warn_of_short(path, list(short), of=len(short) + len(clips), length=least)
    reader.check_layout(str(path))
    say_range(str(path), clips, reader.remarks)
    return Clips(clips, names, tuple(reader.rates))


def _too_short(path: Path, short: dict[str, int], least: int) -> str:
    longest = max(short.values())
    remedy = "give a longer clip, or a shorter context or horizon"
    if len(short) == 1:
        return f"{path}: has {longest} frames, expected {least} or more; {remedy}"
    return f"{path}: no clip has {least} frames, the longest of {len(short)} has {longest}; {remedy}"


def _each(path: Path, reader: Reader) -> Iterator[tuple[str, Clip]]:
    """Yield the clips of a file or folder with their names; each file is opened only when it is reached."""
    if path.is_dir() and is_kth(path):
        yield from reader.selected(kth_stretches(path, reader.form))
        return
    files = find_clips(path, reader.remark) if path.is_dir() else [path]
    if not files:
        raise no_clips(path)
    for number, file in enumerate(files):
        reader.progress(f"{number + 1} of {len(files)}: {file}")
        yield from reader.open(file)
