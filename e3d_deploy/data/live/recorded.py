"""Read video files and folders of pictures as sources."""

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import cast

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.form import Form
from e3d_deploy.data.live.source import DecodedPicture
from e3d_deploy.data.play import play
from e3d_deploy.data.rate import Selection
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import ClipError


class Recorded:
    """Pictures of a video file or of a folder of pictures.

    Raises:
        ClipError: the path does not exist.
        ClipError, ConfigError, BackendUnavailable: see `data.play.play`.
    """

    is_live, reconnects = False, 0

    def __init__(self, path: Path, form: Form, selection: Selection, *, remarks: Remarks) -> None:
        if not path.exists():
            raise ClipError(
                f"{path}: no such file or folder; give a video, a folder of pictures, a camera such as /dev/video0, or "
                "an address"
            )
        self.video = play(path, form, remarks=remarks, selection=selection)
        self.rate, self.resample = self.video.rate, selection.resample
        self._closed = Event()

    def pictures(self) -> Iterator[DecodedPicture]:
        """Yield the pictures.

        Raises:
            ClipError, SourceLost: see `data.play.Video.pictures`.
        """
        with closing(cast(Generator[NDArray[np.uint8]], self.video.pictures)) as pictures:
            for number, picture in enumerate(pictures):
                # Resampled pictures get evenly spaced times, not the times of the frames that were selected for them.
                time_s = self.video.time_s() if self.resample is None else number / self.resample
                yield DecodedPicture(picture=picture, time_s=time_s, arrived_s=time.perf_counter(), section=0)
                if self._closed.is_set():
                    return

    def close(self) -> None:
        """End `pictures` after the next picture."""
        self._closed.set()
