"""Pictures, as cameras give them, to frames, as networks take them, and back. NumPy alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.errors import ShapeError

Pictures = NDArray[Any]
"""[..., H, W, C], uint8 or float in [0, 1]."""
Frames = NDArray[np.float32]
"""[..., C, H, W], float32 in [0, 1]."""

FLOAT32 = np.dtype(np.float32)
ON_HOST = (1, 3)
"""DLPack's numbers for memory of the host, plain and page-locked."""


def is_on_gpu(array: Any) -> bool:
    """Return True for an array of any library whose memory is not the host's."""
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__dlpack_device__"):
        return array.__dlpack_device__()[0] not in ON_HOST
    return hasattr(array, "__cuda_array_interface__")


def plain(array: Any, *, name: str = "picture") -> NDArray[Any]:
    """Return an array of any subclass as a plain one over the same memory.

    Raises:
        ShapeError: it is masked, and hides values.
    """
    found: NDArray[Any] = array
    if type(found) is np.ndarray:
        return found
    mask = getattr(array, "mask", None)  # as NumPy's own masked arrays and those of Astropy have it
    if isinstance(mask, np.ndarray | np.bool_) and (hidden := np.count_nonzero(mask)):
        raise ShapeError(
            f"{name}: its mask hides {hidden} of {mask.size} values, expected none; give picture.filled(value) with a "
            "value that the model knows"
        )
    return np.asarray(array)


def to_input(array: Any, *, name: str = "frame", dtype: np.dtype[Any] = FLOAT32) -> NDArray[Any]:
    """Return frames as libraries take them: in one piece, aligned, writable, and in the byte order of the processor.

    OpenVINO refuses read-only memory, and PyTorch warns of it. Frames are copied only if they are not so already.

    Raises:
        ShapeError: values of another type than float, or masked ones.
    """
    found = plain(array, name=name)
    if found.dtype == dtype and found.flags.carray:
        return found
    if found.dtype.kind != "f":
        raise ShapeError(f"{name}: got {found.dtype}, expected float in [0, 1]; convert it")
    return _copy(found, dtype)


def _copy(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a copy of floats in the order of C."""
    with np.errstate(under="ignore"):  # the program may have NumPy raise for what is rounded to 0
        return np.array(array, dtype, order="C")


def to_frames(pictures: Pictures, *, image_size: tuple[int, int], channels: int, name: str = "picture") -> Frames:
    """Pictures [..., H, W, C] as frames [..., C, H, W].

    Raises:
        ShapeError: another size, another type, values that are masked, not numbers or not in [0, 1].
    """
    pictures = plain(pictures, name=name)
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
        ShapeError: they are not.
    """
    if pictures.dtype == np.uint8:
        return
    if not np.issubdtype(pictures.dtype, np.floating):
        raise ShapeError(f"{name}: got {pictures.dtype}, expected uint8, or float in [0, 1]; convert it")
    if not np.isfinite(pictures).all():
        raise ShapeError(f"{name}: holds NaN or infinity; clean it before it enters the state, which would keep it")
    if pictures.size and (pictures.min() < 0 or pictures.max() > 1):
        least, most = pictures.min(), pictures.max()
        remedy = "divide by 255" if least >= 0 else "scale it to [0, 1]"
        raise ShapeError(
            f"{name}: {pictures.dtype} picture out of range, values from {_digits(least)} to {_digits(most)}, "
            f"expected [0, 1]; {remedy}, or pass uint8"
        )


def _digits(value: np.floating[Any]) -> str:
    """Return a number in few digits, in all of them where the others would read as another number."""
    short = f"{value:g}"
    return short if value == float(short) else str(value)


def to_pictures(frames: Frames) -> NDArray[np.uint8]:
    """Frames [..., C, H, W] as pictures uint8 [..., H, W, C], clipped to [0, 1] and rounded."""
    pictures = frames.swapaxes(-3, -2).swapaxes(-2, -1).clip(0, 1) * 255  # [..., H, W, C]
    return pictures.round().astype(np.uint8)
