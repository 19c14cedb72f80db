"""Conversion between pictures (from cameras and files) and frames (for the network). Needs only NumPy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.errors import ShapeError

Pictures = NDArray[Any]
"""Pictures [..., H, W, C], uint8 or float in [0, 1]."""
Frames = NDArray[np.float32]
"""Frames [..., C, H, W], float32 in [0, 1]."""

FLOAT32 = np.dtype(np.float32)
ON_HOST = (1, 3)
"""DLPack device types of host memory: pageable and page-locked."""


def is_on_gpu(array: Any) -> bool:
    """Return True if an array's memory is not host memory; arrays of any library are accepted."""
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__dlpack_device__"):
        return array.__dlpack_device__()[0] not in ON_HOST
    return hasattr(array, "__cuda_array_interface__")


def as_array(array: Any, *, name: str = "picture") -> NDArray[Any]:
    """Return an array as a plain `np.ndarray`, not a subclass, over the same memory.

    Raises:
        ShapeError: The array has a mask that hides values.
    """
    found: NDArray[Any] = array
    if type(found) is np.ndarray:
        return found
    mask = getattr(array, "mask", None)  # masked arrays of NumPy and Astropy have this attribute
    if isinstance(mask, np.ndarray | np.bool_) and (hidden := np.count_nonzero(mask)):
        raise ShapeError(
            f"{name}: its mask hides {hidden} of {mask.size} values, expected none; pass picture.filled(value) with a "
            "value that the model was trained on"
        )
    return np.asarray(array)


def to_input(array: Any, *, name: str = "frame", dtype: np.dtype[Any] = FLOAT32) -> NDArray[Any]:
    """Return frames as libraries need them: contiguous, aligned, writable, and in native byte order.

    OpenVINO rejects read-only memory, and PyTorch warns of it. Frames that meet the conditions are not copied.

    Raises:
        ShapeError: The values are not floats, or some of them are masked.
    """
    found = as_array(array, name=name)
    if found.dtype == dtype and found.flags.carray:
        return found
    if found.dtype.kind != "f":
        raise ShapeError(f"{name}: got {found.dtype}, expected float in [0, 1]; convert it")
    return _copy(found, dtype)


def _copy(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a C-contiguous copy of floats."""
    with np.errstate(under="ignore"):  # the program may have set NumPy to raise on underflow
        return np.array(array, dtype, order="C")


def to_frames(pictures: Pictures, *, image_size: tuple[int, int], channels: int, name: str = "picture") -> Frames:
    """Convert pictures [..., H, W, C] to frames [..., C, H, W].

    Raises:
        ShapeError: The pictures do not have the expected size, channels or type, or some values are masked, not finite
            or not in [0, 1].
    """
    pictures = as_array(pictures, name=name)
    expected = [*image_size, channels]
    if pictures.ndim < 3 or list(pictures.shape[-3:]) != expected:
        raise ShapeError(
            f"{name}: got {list(pictures.shape)} {pictures.dtype}, expected [..., {', '.join(map(str, expected))}]; "
            "resize it, or export a model for this size"
        )
    if pictures.dtype == np.uint8:
        return np.ascontiguousarray(_channels_first(pictures), np.float32) / np.float32(255)
    check_values(pictures, name=name)
    found = _channels_first(pictures)
    return np.ascontiguousarray(found) if found.dtype == FLOAT32 else _copy(found, FLOAT32)


def _channels_first(pictures: Pictures) -> NDArray[Any]:
    """Return a view of pictures [..., H, W, C] as [..., C, H, W].

    Two swaps are cheaper than `np.moveaxis`, which builds lists of axes for each frame.
    """
    return pictures.swapaxes(-1, -2).swapaxes(-2, -3)


def check_values(pictures: Pictures, *, name: str) -> None:
    """Check that pictures are uint8, or floats in [0, 1].

    Raises:
        ShapeError: The pictures are neither uint8 nor floats, or some values are not finite or not in [0, 1].
    """
    if pictures.dtype == np.uint8:
        return
    if not np.issubdtype(pictures.dtype, np.floating):
        raise ShapeError(f"{name}: got {pictures.dtype}, expected uint8, or float in [0, 1]; convert it")
    if not np.isfinite(pictures).all():
        raise ShapeError(f"{name}: holds NaN or infinity, which would stay in the state; replace these values first")
    if pictures.size and (pictures.min() < 0 or pictures.max() > 1):
        least, most = pictures.min(), pictures.max()
        remedy = "divide by 255" if least >= 0 else "scale it to [0, 1]"
        raise ShapeError(
            f"{name}: {pictures.dtype} picture out of range, values from {_digits(least)} to {_digits(most)}, "
            f"expected [0, 1]; {remedy}, or pass uint8"
        )


def _digits(value: np.floating[Any]) -> str:
    """Format a number with 6 digits if they represent it exactly, and with all its digits otherwise."""
    short = f"{value:g}"
    return short if value == float(short) else str(value)


def to_pictures(frames: Frames) -> NDArray[np.uint8]:
    """Convert frames [..., C, H, W] to uint8 pictures [..., H, W, C], clipped to [0, 1] and rounded."""
    pictures = frames.swapaxes(-3, -2).swapaxes(-2, -1).clip(0, 1) * 255  # [..., H, W, C]
    return pictures.round().astype(np.uint8)
