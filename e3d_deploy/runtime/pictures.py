"""Pictures as they come in, in whatever array, and forecasts as they go out."""

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
from e3d_deploy.runtime.faults import clear


def take(picture: Any, config: ModelConfig, *, gpu: bool = False) -> Any:
    """Return a picture [H, W, C] as backends take it: uint8 [1, H, W, C], or float32 [1, C, H, W] for floats.

    Args:
        picture: a NumPy array, or whatever gives its memory by DLPack, such as a tensor of PyTorch; uint8, or float
            in [0, 1]. It may be read-only, in any order, and of any size of float. uint8 is not copied.
        gpu: whether it may lie on a GPU, of uint8 then, and stay there.

    Raises:
        ShapeError: another size or type, values that are masked or no picture's, or memory of a GPU.
        ResourceLimit, MemoryError: out of memory.
    """
    array = picture if type(picture) is np.ndarray else _opened(picture, gpu=gpu)
    expected = [*config.image_size, config.channels]
    if list(array.shape) != expected:
        raise ShapeError(
            f"picture: got {list(array.shape)} {array.dtype}, expected [H, W, C] = {expected}; "
            "resize it, or export a model for this size"
        )
    if isinstance(array, np.ndarray) and array.dtype != np.uint8:
        return frames.to_frames(array[None], image_size=config.image_size, channels=config.channels)
    return array[None]


def _opened(picture: Any, *, gpu: bool) -> Any:
    """Return a picture of any library as a plain array, or as it is on a GPU.

    Raises:
        ShapeError, ResourceLimit: as `take`.
    """
    try:
        if isinstance(picture, np.ndarray) or not frames.is_on_gpu(picture):
            return frames.plain(_of_host(picture))
    except ShapeError:
        raise
    except Exception as error:  # other libraries raise what they like
        if isinstance(cleared := clear(error), ResourceLimit):
            raise cleared from error
        raise ShapeError(f"picture: is no array that NumPy can read ({error}); give a NumPy array") from error
    if gpu and str(picture.dtype).endswith("uint8"):
        return picture
    here = "the backend takes uint8 from there" if gpu else "the backend runs on the host"
    raise ShapeError(f"picture: of {picture.dtype} on a GPU, {here}; copy it to the host")


def _of_host(picture: Any) -> NDArray[Any]:
    """Return a picture that lies on the host as an array, still masked if it is."""
    if isinstance(picture, np.ndarray):
        return picture
    if isinstance(picture, list | tuple):
        return np.ma.asanyarray(picture)  # keeps the masks of its rows
    if callable(getattr(picture, "get_mask", None)):
        raise ShapeError(
            f"picture: {type(picture).__name__} hides values behind a mask; fill them and give a plain array"
        )
    return np.from_dlpack(picture) if hasattr(picture, "__dlpack__") else np.asanyarray(picture)


def forecast_array(
    horizon: int, config: ModelConfig, dtype: type[np.uint8] | type[np.float32], out: NDArray[Any] | None
) -> NDArray[Any]:
    """Return the array for a forecast, `out` or a new one: uint8 [horizon, H, W, C] or float32 [horizon, C, H, W].

    Raises:
        ConfigError: horizon is not a whole number of 1 or more.
        ShapeError: `out` is not such an array.
        ResourceLimit: there is no memory for a new one.
    """
    horizon = check_count("horizon", horizon)
    size, channels = config.image_size, config.channels
    shape = (horizon, *size, channels) if dtype is np.uint8 else (horizon, channels, *size)
    if out is not None:
        _check_out(out, shape, np.dtype(dtype))
        return out
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError, OverflowError) as error:  # the last two for more than there are addresses
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        size_text = f"{nbytes:,} bytes" if nbytes < 2**70 else f"at least 2**{nbytes.bit_length() - 1} bytes"
        raise ResourceLimit(
            f"horizon: out of memory, its forecast takes {size_text}, which cannot be allocated; ask for fewer frames"
        ) from error


def _check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Check that a forecast can be written to an array.

    Raises:
        ShapeError: it cannot.
    """
    expected = f"expected an array {list(shape)} {dtype} that can be written"
    if not isinstance(out, np.ndarray):
        raise ShapeError(f"out: got {type(out).__name__}, {expected}; give a NumPy array")
    if type(out) not in (np.ndarray, np.memmap):  # another subclass may store values in its own way, or hide them
        raise ShapeError(f"out: got {type(out).__name__}, {expected}; give np.asarray(out)")
    if out.shape != shape or out.dtype != dtype:
        got = f"{list(out.shape)} {out.dtype if out.dtype.isnative else out.dtype.str}"
        raise ShapeError(f"out: got {got}, {expected}; give np.empty({list(shape)}, np.{dtype})")
    if not out.flags.writeable:
        raise ShapeError(f"out: is read-only, {expected}; give a copy")
    if not out.flags.c_contiguous and _overlaps_itself(out):
        raise ShapeError(f"out: some of its elements share memory, {expected} in each element; give a copy")


def _overlaps_itself(array: NDArray[Any]) -> bool:
    """Return True if two elements may have the same address, as in a broadcast view."""
    extent = array.itemsize
    for stride, count in sorted((abs(stride), count) for stride, count in zip(array.strides, array.shape, strict=True)):
        if count > 1:
            if stride < extent:
                return True
            extent += stride * (count - 1)
    return False


def put(prediction: NDArray[np.float32], place: NDArray[Any]) -> None:
    """Write a frame [C, H, W] into one place of a forecast, as a picture [H, W, C] where that is of uint8."""
    place[:] = frames.to_pictures(prediction) if place.dtype == np.uint8 else prediction


def stack(seen: Iterable[NDArray[Any]], config: ModelConfig) -> NDArray[Any]:
    """Return pictures as `take` gives them in one array: uint8 [n, H, W, C], or float32 [n, C, H, W] with floats."""
    seen = list(seen)
    if all(one.dtype == np.uint8 for one in seen):
        return np.concatenate([np.empty((0, *config.image_size, config.channels), np.uint8), *seen])
    return np.concatenate([as_frames(one, config) for one in seen])
