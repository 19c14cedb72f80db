"""Moving MNIST in the .npz format that google/e3d_lstm reads. Needs no PyTorch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.arrays import FRAMES, StoredArray, check_type, load_member, members, open_member
from e3d_deploy.data.form import Form
from e3d_deploy.data.layout import other_size
from e3d_deploy.data.storage import Clip, Joined, Scratch, StoredClip
from e3d_deploy.errors import ClipError, ShapeError
from e3d_deploy.progress import Notify, silent

KEYS = ("clips", "dims", "input_raw_data")
"""Arrays that every file in the format of google/e3d_lstm has."""


def is_original(path: Path) -> bool:
    """Return True if a .npz file is in the format of google/e3d_lstm, even if some of its arrays are missing.

    A file that has only `clips` is not in this format: it is read as a file with one array of frames.
    """
    found = members(path)
    return FRAMES not in found and any(key in found for key in KEYS[1:])


def original_clips(paths: Sequence[Path], form: Form, *, scratch: Scratch, progress: Notify = silent) -> list[Clip]:
    """Return the clips of one or two .npz files in the format of google/e3d_lstm; input and output frames are joined.

    Each file has these arrays:

    - `clips`, [2, N, 2]: first frame and number of frames of the input and of the output of each clip.
    - `dims`, [1, 3] or [2, 3]: C, H, W of the input frames, and of the output frames if these have their own array.
    - `input_raw_data`, [frames, C, H, W].
    - `output_raw_data`, [frames, C, H, W], only if `dims` is [2, 3].

    Args:
        paths: the files.
        form: size and colours of the model's frames.
        scratch: file for unpacked arrays.
        progress: receives messages while large arrays are read.

    Raises:
        ClipError: an array is missing or damaged, a clip extends beyond the frames, or there is no clip.
        ShapeError: an array has a rank, size, colours or data type that the format or the model does not allow.

    Source: google/e3d_lstm src/data_provider/mnist.py, load and get_batch.
    """
    clips: list[Clip] = []
    # The frame numbers of a clip refer to the file that holds the clip. The original adds an offset to the frame
    # numbers of the second file. But the offset is the first file's number of clips instead of frames, and it is added
    # to a copy that is discarded; see test_the_second_file_counts_its_own_frames.
    for path in paths:
        clips += _clips_of_file(path, form, scratch, progress)
    return clips


def _clips_of_file(path: Path, form: Form, scratch: Scratch, progress: Notify) -> list[Clip]:
    found = members(path)
    if missing := [key for key in KEYS if key not in found]:
        raise ClipError(
            f"{path}: holds {found}, but lacks {', '.join(missing)} of Moving MNIST as google/e3d_lstm reads it; "
            "write the file again"
        )
    places, dims = load_member(path, "clips"), load_member(path, "dims")
    if places.ndim != 3 or places.shape[0] != 2 or places.shape[2] != 2 or places.dtype.kind not in "iu":
        raise ShapeError(f"{path}[clips]: got {list(places.shape)} {places.dtype}, expected [2, N, 2] int32")
    if dims.shape not in ((1, 3), (2, 3)) or dims.dtype.kind not in "iu":
        raise ShapeError(f"{path}[dims]: got {list(dims.shape)} {dims.dtype}, expected [1, 3] or [2, 3] int32")
    if len(dims) == 2 and "output_raw_data" not in found:
        raise ClipError(f"{path}: has two rows of dims but no output_raw_data; add it, or drop the second row")
    raw = [open_member(path, "input_raw_data", scratch, progress)]
    raw.append(open_member(path, "output_raw_data", scratch, progress) if len(dims) == 2 else raw[0])
    for array, dim in zip(raw, (dims[0], dims[-1]), strict=True):
        _check_raw(array, dim, form)
    for array, part in zip(raw, places, strict=True):
        _check_places(path, part, frames=array.shape[0])
    if places.shape[1] == 0:
        raise ClipError(f"{path}: has no clip")
    return [
        Joined(tuple(_piece(array, *places[side, number].tolist()) for side, array in enumerate(raw)))
        for number in range(places.shape[1])
    ]


def _check_raw(array: StoredArray, dim: NDArray[np.int32], form: Form) -> None:
    if len(array.shape) != 4:
        raise ShapeError(f"{array.name}: got {list(array.shape)}, expected [frames, C, H, W]")
    if list(array.shape[1:]) != dim.tolist():
        raise ShapeError(
            f"{array.name}: frames {list(array.shape[1:])}, but dims says {dim.tolist()}; correct one of the two"
        )
    _, C, H, W = array.shape
    if form.shape != (H, W, C):
        raise ShapeError(f"{array.name}: {other_size((H, W, C), form)}")
    check_type(array.name, array.dtype)


def _check_places(path: Path, places: NDArray[np.int32], *, frames: int) -> None:
    starts, lengths = places.astype(np.int64).T
    outside = (starts < 0) | (lengths < 0) | (starts + lengths > frames)
    if outside.any():
        number = int(outside.argmax())
        raise ClipError(
            f"{path}: clip {number} has {lengths[number]} frames from {starts[number]} on, but the file has {frames}"
        )


def _piece(array: StoredArray, start: int, length: int) -> StoredClip:
    _, C, H, W = array.shape
    frame = array.size_bytes(C, H, W)
    return StoredClip(
        name=array.name,
        store=array.store,
        offset=array.offset + start * frame,
        length=length,
        shape=(C, H, W),
        dtype=array.dtype,
        stride=frame,
        channels_first=True,
    )
