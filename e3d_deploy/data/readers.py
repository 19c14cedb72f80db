"""Files and folders as clips: videos, pictures and arrays. Needs no PyTorch."""

import logging
import math
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from e3d_deploy.data.arrays import StoredArray, clips_of, find_frames, layout_of, open_member, open_npy
from e3d_deploy.data.folders import no_clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.mnist_files import is_original, original_clips
from e3d_deploy.data.pictures import PictureClip, ordered_pictures, read_picture, say_looks
from e3d_deploy.data.play import play
from e3d_deploy.data.rate import ALL, Selection, select_clip
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.data.storage import Clip, Scratch, StoredClip
from e3d_deploy.data.videos import check_rest
from e3d_deploy.errors import ClipError, ShapeError, SourceLost
from e3d_deploy.progress import Notify

log = logging.getLogger(__name__)

SHOWN = 500
"""Frames of a video between two signs of progress."""


class Reader:
    """Opens files as clips of one size, and keeps account of what was left out.

    Videos are decoded once, at that size, into a temporary file in TMPDIR, and compressed arrays unpacked there, so
    the disk needs room for them: frames · H · W · C bytes for videos. Nothing of it outlives the clips.

    Args:
        selection: frames that are taken from each clip.
        most: decode no more frames of a video than this.
        remarks: takes what is done to the source; None: remarks of its own.
    """

    def __init__(
        self,
        *,
        form: Form,
        skip_bad: bool,
        progress: Notify,
        selection: Selection = ALL,
        most: int | None = None,
        remarks: Remarks | None = None,
    ) -> None:
        self.form, self.skip_bad, self.progress = form, skip_bad, progress
        self.selection, self.most = selection, most
        self.scratch = Scratch()
        self.skipped: dict[str, None] = {}
        self.rates: list[float] = []
        self.remarks = Remarks() if remarks is None else remarks
        self.layouts: list[str] = []

    def open(self, path: Path) -> list[tuple[str, Clip]]:
        """The clips of a video, a .npz, a .npy or a folder of pictures, with names; none where it is bad and skipped.

        Raises:
            ClipError: it cannot be read, and `skip_bad` is off.
            SourceLost: a video breaks off, likewise.
            ShapeError: arrays of another size, number of colours or type, likewise.
            ConfigError: resampling of a clip without a rate.
            BackendUnavailable: videos or pictures without the extra `video`.
            OSError: the disk is full.
        """
        before = self.scratch.size
        try:
            if path.is_dir():
                return self.selected(self._pictures(path))
            if path.suffix.lower() == ".npz":
                return self.selected((f"{path}, clip {number}", clip) for number, clip in enumerate(self._npz(path)))
            if path.suffix.lower() == ".npy":
                clips = self.array_clips(open_npy(path))
                return self.selected((f"{path}, clip {number}", clip) for number, clip in enumerate(clips))
            return [(str(path), self._video(path))]
        except (ClipError, ShapeError, SourceLost) as error:
            if not self.skip_bad:
                raise
            self.scratch.cut(before)
            self.skip(str(path), error)
            return []

    def selected(self, named: Iterable[tuple[str, Clip]]) -> list[tuple[str, Clip]]:
        """Return what is taken from clips without a rate."""
        return [(name, select_clip(clip, self.selection, None, name=name)) for name, clip in named]

    def skip(self, name: str, error: Exception) -> None:
        """Note something that is left out, and log it, once."""
        if name not in self.skipped:
            self.skipped[name] = None
            log.warning("left out: %s", error)

    def is_good(self, file: Path) -> bool:
        """Return True if a picture is to be used; bad ones are detected, and skipped, only with `skip_bad`."""
        if not self.skip_bad:
            return True
        self.progress(f"checking {file.parent}")
        try:
            read_picture(file, self.form)
        except ClipError as error:
            self.skip(str(file), error)
            return False
        return True

    def remark(self, text: str) -> None:
        """Note a decision that may not be what a user expects, and log it, once."""
        self.remarks.say(text, "%s", text)

    def check_layout(self, name: str) -> None:
        """Note, once the files of a source were read, that the layout given for its arrays is of no use."""
        if self.form.layout is not None and not self.layouts:
            self.remark(f"{name}: no array with such axes was read, so --layout {self.form.layout} is of no use")

    def array_clips(self, array: StoredArray) -> list[StoredClip]:
        """Return the clips of an array, and note its layout."""
        layout, remark = layout_of(array, self.form)
        if remark is not None:
            self.remark(f"{array.name}: {remark}")
        if layout not in self.layouts:
            self.layouts.append(layout)
        return clips_of(array, layout)

    def _npz(self, path: Path) -> list[Clip]:
        if is_original(path):
            return original_clips([path], self.form, scratch=self.scratch, progress=self.progress)
        name, remark = find_frames(path)
        if remark is not None:
            self.remark(remark)
        return [*self.array_clips(open_member(path, name, self.scratch, self.progress))]

    def _pictures(self, folder: Path) -> list[tuple[str, Clip]]:
        files = ordered_pictures(folder, self.remarks)
        if not files:
            raise no_clips(folder)
        self._say(folder, files)
        runs: list[list[Path]] = [[]]
        for file in files:
            if self.is_good(file):
                runs[-1].append(file)
            elif runs[-1]:  # no window shall reach over what is missing
                runs.append([])
        return [(str(folder), PictureClip(run, self.form, self.remarks, folder)) for run in runs if run]

    def _say(self, folder: Path, files: Sequence[Path]) -> None:
        """Log what is done to pictures, by the pixels of a folder's first, middle and last and the headers of all."""
        if self.form.channels not in (1, 3):
            raise ShapeError(
                f"{folder}: pictures have 1 or 3 colours, the model takes {self.form.channels}; give .npz or .npy"
            )
        for number in sorted({0, len(files) // 2, len(files) - 1}):
            if self.is_good(files[number]):
                read_picture(files[number], self.form, remarks=self.remarks, source=folder)
        if self.most is None:  # else few of them may be read, in this process
            say_looks(files, self.form, self.remarks, folder)

    def _video(self, path: Path) -> StoredClip:
        video = play(path, self.form, remarks=self.remarks, selection=self.selection)
        offset, length = self.scratch.size, 0
        for picture in islice(video.pictures, self.most):
            self.scratch.append(np.ascontiguousarray(picture))
            length += 1
            if length % SHOWN == 0:
                self.progress(f"decoding {path}, {length} frames")
        if self.most is not None:
            check_rest(path, video.rest)
        if video.rate is not None:
            self.rates.append(video.rate)
        return StoredClip(
            name=str(path),
            store=self.scratch,
            offset=offset,
            length=length,
            shape=self.form.shape,
            dtype=np.dtype(np.uint8),
            stride=math.prod(self.form.shape),
        )
