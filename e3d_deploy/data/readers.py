"""Open files and folders as clips: videos, pictures and arrays. Needs no PyTorch."""

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
"""Number of frames of a video that are decoded between two progress messages."""


class Reader:
    """Opens files as clips of one size and colours, and records the files that it skips.

    Videos are decoded once, in the size of `form`, into a temporary file in TMPDIR. Compressed arrays are unpacked into
    the same file. The disk needs room for it: frames · H · W · C bytes for each video. The file is deleted together
    with the last clip.

    Args:
        form: size, colours and fit of the model's frames.
        skip_bad: skip files that cannot be read, instead of raising an error.
        progress: receives messages while files are opened.
        selection: which frames of each clip are used.
        most: maximum number of frames decoded from each video.
        remarks: collects remarks on conversions; None: a new object, which logs the remarks.
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
        """Return the clips of a video, a .npz, a .npy or a folder of pictures, with their names.

        With `skip_bad`, a file that cannot be read is skipped, and the result is empty.

        Raises:
            ClipError: the file cannot be read, and `skip_bad` is False.
            SourceLost: a video breaks off, and `skip_bad` is False.
            ShapeError: an array has a rank, size, colours or data type that the model does not take, and `skip_bad` is
                False.
            ConfigError: resampling was requested for a clip without a frame rate.
            BackendUnavailable: reading a video or pictures needs the extra `video`.
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
        """Apply the selection to clips without a rate."""
        return [(name, select_clip(clip, self.selection, None, name=name)) for name, clip in named]

    def skip(self, name: str, error: Exception) -> None:
        """Record that a file is skipped, and log the reason, once per name."""
        if name not in self.skipped:
            self.skipped[name] = None
            log.warning("skipped: %s", error)

    def is_good(self, file: Path) -> bool:
        """Return True if a picture can be read; without `skip_bad`, return True without reading it.

        A picture that cannot be read is recorded as skipped.
        """
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
        """Record a decision that a user may not expect, and log it, once per text."""
        self.remarks.say(text, "%s", text)

    def check_layout(self, name: str) -> None:
        """Remark that the given layout has no effect if no array was read; to be called after all files are opened."""
        if self.form.layout is not None and not self.layouts:
            self.remark(f"{name}: no array with these axes was read, so --layout {self.form.layout} has no effect")

    def array_clips(self, array: StoredArray) -> list[StoredClip]:
        """Return the clips of an array, and record its layout."""
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
            elif runs[-1]:  # no window may span the missing picture
                runs.append([])
        return [(str(folder), PictureClip(run, self.form, self.remarks, folder)) for run in runs if run]

    def _say(self, folder: Path, files: Sequence[Path]) -> None:
        """Log how pictures are converted.

        This decodes the first, middle and last picture. Without `most`, it also reads the headers of all pictures.
        """
        if self.form.channels not in (1, 3):
            raise ShapeError(
                f"{folder}: pictures have 1 or 3 colours, the model takes {self.form.channels}; give .npz or .npy"
            )
        for number in sorted({0, len(files) // 2, len(files) - 1}):
            if self.is_good(files[number]):
                read_picture(files[number], self.form, remarks=self.remarks, source=folder)
        if self.most is None:  # with `most`, only some pictures are used, and reading them logs their conversions
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
