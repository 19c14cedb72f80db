"""Conversion of a caller's pictures to arrays for backends, and of predictions to the arrays of a forecast."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import frames
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import ResourceLimit, ShapeError
from e3d_deploy.runtime.arguments import check_count
from e3d_deploy.runtime.backends.host import as_frames
from e3d_deploy.runtime.faults import translated


def to_array(picture: Any, config: ModelConfig, *, gpu: bool = False) -> Any:
    """Return a picture [H, W, C] as an array that backends accept.

    Args:
        picture: uint8, or float of any precision in [0, 1]; a NumPy array, or an array of another library that supports
            DLPack, such as a PyTorch tensor. It may be read-only and have any memory layout.
        gpu: accept a uint8 picture in the memory of a GPU, and leave it there.

    Returns:
        For a uint8 picture, uint8 [1, H, W, C] in the memory of the picture. For a float picture, float32 [1, C, H, W].

    Raises:
        ShapeError: the picture has an unexpected size or type; or contains values that are masked, not finite or
            outside [0, 1]; or is on a GPU, and `gpu` is False or the picture is not uint8.
        ResourceLimit, MemoryError: there is not enough memory.
    """
    array = as_plain(picture, shape=(*config.image_size, config.channels), gpu=gpu)
    if isinstance(array, np.ndarray) and array.dtype != np.uint8:
        return frames.to_frames(array[None], image_size=config.image_size, channels=config.channels)
    return array[None]


def as_plain(picture: Any, *, shape: tuple[int, ...], gpu: bool = False) -> Any:
    """Return a picture of any library as a plain NumPy array, or unchanged if it is on a GPU and `gpu` allows it.

    Args:
        shape: expected shape, (H, W, C).

    Raises:
        ShapeError: the picture has another shape, has masked values, is not an array, or is on a GPU.
        ResourceLimit, MemoryError: there is not enough memory.
    """
    array = picture if type(picture) is np.ndarray else _as_array(picture, gpu=gpu)
    if array.shape != shape:
        raise ShapeError(
            f"picture: got {list(array.shape)} {array.dtype}, expected [H, W, C] = {list(shape)}; "
            "resize it, or export a model for this size"
        )
    return array


def _as_array(picture: Any, *, gpu: bool) -> Any:
    """Return a picture of any library as a plain NumPy array, or unchanged if it is on a GPU and `gpu` allows it.

    Errors are those of `as_plain`.
    """
    try:
        if isinstance(picture, np.ndarray) or not frames.is_on_gpu(picture):
            return frames.as_array(_host_array(picture))
    except ShapeError:
        raise
    except Exception as error:  # Other libraries may raise errors of any type.
        if isinstance(found := translated(error), ResourceLimit):
            raise found from error
        raise ShapeError(f"picture: is not an array that NumPy can read ({error}); give a NumPy array") from error
    if gpu and str(picture.dtype).endswith("uint8"):
        return picture
    here = "the backend takes only uint8 pictures from a GPU" if gpu else "the backend takes only pictures on the host"
    raise ShapeError(f"picture: got {picture.dtype} on a GPU, {here}; copy it to the host")


def _host_array(picture: Any) -> NDArray[Any]:
    """Return a picture in host memory as a NumPy array; masked values stay masked."""
    if isinstance(picture, np.ndarray):
        return picture
    if isinstance(picture, list | tuple):
        return np.ma.asanyarray(picture)  # unlike np.asanyarray, this preserves the masks of the rows
    if callable(getattr(picture, "get_mask", None)):
        raise ShapeError(
            f"picture: {type(picture).__name__} hides values behind a mask; fill them and give a plain array"
        )
    return np.from_dlpack(picture) if hasattr(picture, "__dlpack__") else np.asanyarray(picture)


def forecast_array(
    horizon: int, config: ModelConfig, dtype: type[np.uint8] | type[np.float32], out: NDArray[Any] | None
) -> NDArray[Any]:
    """Return an array for a forecast: `out`, or a new array if `out` is None.

    Returns:
        uint8 [horizon, H, W, C] or float32 [horizon, C, H, W].

    Raises:
        ConfigError: `horizon` is not a whole number of 1 or more.
        ShapeError: `out` has a different shape or type, or cannot be written.
        ResourceLimit: there is not enough memory for a new array.
    """
    horizon = check_count("horizon", horizon)
    size, channels = config.image_size, config.channels
    shape = (horizon, *size, channels) if dtype is np.uint8 else (horizon, channels, *size)
    if out is not None:
        _check_out(out, shape, np.dtype(dtype))
        return out
    try:
        return np.empty(shape, dtype)
    # NumPy raises ValueError or OverflowError for sizes beyond the address space.
    except (MemoryError, ValueError, OverflowError) as error:
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        size_text = f"{nbytes:,} bytes" if nbytes < 2**70 else f"at least 2**{nbytes.bit_length() - 1} bytes"
        raise ResourceLimit(
            f"horizon: out of memory, the forecast takes {size_text}, which cannot be allocated; ask for fewer frames"
        ) from error


def _check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Check that a forecast can be written to `out`.

    Raises:
        ShapeError: `out` is not a NumPy array of this shape and type, or cannot be written element by element.
    """
    expected = f"expected an array {list(shape)} {dtype} that can be written"
    if not isinstance(out, np.ndarray):
        raise ShapeError(f"out: got {type(out).__name__}, {expected}; give a NumPy array")
    if type(out) not in (np.ndarray, np.memmap):  # Other subclasses may store values differently, or mask them.
        raise ShapeError(f"out: got {type(out).__name__}, {expected}; give np.asarray(out)")
    if out.shape != shape or out.dtype != dtype:
        got = f"{list(out.shape)} {out.dtype if out.dtype.isnative else out.dtype.str}"
        raise ShapeError(f"out: got {got}, {expected}; give np.empty({list(shape)}, np.{dtype})")
    if not out.flags.writeable:
        raise ShapeError(f"out: is read-only, {expected}; give a copy")
    if not out.flags.c_contiguous and _overlaps_itself(out):
        raise ShapeError(f"out: some elements share the same memory, {expected} element by element; give a copy")


def _overlaps_itself(array: NDArray[Any]) -> bool:
    """Return True if two elements may have the same address, as in a broadcast view."""
    extent = array.itemsize
    for stride, count in sorted((abs(stride), count) for stride, count in zip(array.strides, array.shape, strict=True)):
        if count > 1:
            if stride < extent:
                return True
            extent += stride * (count - 1)
    return False


def write_frame(prediction: NDArray[np.float32], place: NDArray[Any]) -> None:
    """Write a frame [C, H, W] into one entry of a forecast, converted to a picture [H, W, C] if the entry is uint8."""
    place[:] = frames.to_pictures(prediction) if place.dtype == np.uint8 else prediction


def stack(seen: Iterable[NDArray[Any]], config: ModelConfig) -> NDArray[Any]:
    """Concatenate arrays that `to_array` returned.

    Returns:
        uint8 [n, H, W, C] if all n pictures are uint8, otherwise float32 [n, C, H, W].
    """
    seen = list(seen)
    if all(one.dtype == np.uint8 for one in seen):
        return np.concatenate([np.empty((0, *config.image_size, config.channels), np.uint8), *seen])
    return np.concatenate([as_frames(one, config) for one in seen])
