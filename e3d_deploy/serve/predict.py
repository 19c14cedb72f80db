"""Predict the frames that follow an uploaded clip."""

import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.clips import read_clips
from e3d_deploy.data.play import play
from e3d_deploy.data.rate import DEFAULT_RATE
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.data.write import write_clips
from e3d_deploy.errors import E3DError
from e3d_deploy.serve.checks import ARRAYS, PICTURES, Upload, names_for
from e3d_deploy.serve.error_responses import Problem, problem_of
from e3d_deploy.serve.service import Service

MAX_FRAMES = 10_000
"""Maximum number of frames in an uploaded video, of which the last frames are the context."""
DECODING_S = 60.0
"""Maximum time for decoding a video (s)."""
MEDIA_TYPES = {"npz": "application/x-npz", "mp4": "video/mp4"}


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Horizon and file format that a client requested."""

    horizon: int
    """Number of frames to predict."""
    format: str
    """File format, a key of `MEDIA_TYPES`."""


def predict(service: Service, uploads: list[Upload], folder: Path, options: PredictOptions) -> bytes:
    """Return the content of a file with the frames that follow an uploaded clip.

    Args:
        uploads: one array or video, or the pictures of one clip in order.
        folder: folder that contains the uploads.

    Raises:
        Problem: the clip cannot be read or is too short, or the maximum number of streams or their memory is reached.
    """
    try:
        context, rate = _context(service, uploads, folder)
        with service.streams.open() as stream:
            for picture in context:
                stream.push(picture)
            frames = stream.forecast(options.horizon)
        service.metrics.forecasts.inc()
        with tempfile.TemporaryDirectory(prefix="e3d-predict-") as place:
            output = Path(place) / f"forecast.{options.format}"
            write_clips(output, frames[None], frames_per_second=rate)
            return output.read_bytes()
    except E3DError as error:
        raise problem_of(error, names_for(uploads, folder)) from error


def _context(service: Service, uploads: list[Upload], folder: Path) -> tuple[NDArray[np.generic], float]:
    """Return the last pictures of a clip, [context length, H, W, C], and its frames per second."""
    wanted, form, remarks = service.predictor.context_length, service.form, Remarks(silent=True)
    suffixes = {one.path.suffix for one in uploads}
    if len(uploads) > 1 and not suffixes <= set(PICTURES):
        raise Problem(
            422, "field", "several files must all be pictures of one clip; send pictures, or a single array or video"
        )
    rate = DEFAULT_RATE
    if suffixes <= {*PICTURES, *ARRAYS}:
        clips = read_clips(uploads[0].path if suffixes <= set(ARRAYS) else folder, form, remarks=remarks)
        if len(clips.clips) != 1:
            problem = f"{uploads[0].name}: contains {len(clips.clips)} clips, expected 1; send each clip separately"
            raise Problem(422, "shape", problem)
        length = len(clips.clips[0])
        last = clips.clips[0][max(0, length - wanted) : length]
    else:
        video = play(uploads[0].path, form, remarks=remarks)
        last, length = _last_pictures(service, video.pictures, wanted, uploads[0].name)
        rate = video.frames_per_second
    if length < wanted:
        raise Problem(422, "length", f"{uploads[0].name}: has {length} frames, expected {wanted} or more")
    return last, rate


def _last_pictures(
    service: Service, pictures: Iterator[NDArray[np.uint8]], wanted: int, name: str
) -> tuple[NDArray[np.uint8], int]:
    """Return the last pictures of a video, [at most wanted, H, W, C], and the total number of its pictures.

    Raises:
        Problem: the video has too many frames or takes too long to decode, or the server has stopped.
    """
    kept: deque[NDArray[np.uint8]] = deque(maxlen=wanted)
    length, until_s = 0, time.monotonic() + DECODING_S
    for length, picture in enumerate(pictures, 1):
        if length > MAX_FRAMES:
            raise Problem(422, "length", f"{name}: has more than {MAX_FRAMES:,} frames; send only its end")
        if service.closed:  # the process waits for this thread at its exit, so the thread ends early
            raise Problem(503, "stopping", "the server is shutting down", retry=True)
        if time.monotonic() > until_s:
            problem = f"{name}: takes more than {DECODING_S:g} s to decode; send only its end, or a smaller video"
            raise Problem(422, "length", problem)
        kept.append(picture)
    return np.stack(kept), length
