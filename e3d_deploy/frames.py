"""Pictures, as cameras give them, to frames, as networks take them, and back. NumPy alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.errors import ShapeError

Pictures = NDArray[Any]
"""[..., H, W, C], uint8 or float in [0, 1]."""
Frames = NDArray[np.float32]
"""[..., C, H, W], float32 in [0, 1]."""

ON_HOST = (1, 3)
"""DLPack's numbers for memory of the host, plain and page-locked."""


def is_on_gpu(array: Any) -> bool:
    """Return True for an array of any library whose memory is not the host's."""
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__dlpack_device__"):
        return array.__dlpack_device__()[0] not in ON_HOST
    return hasattr(array, "__cuda_array_interface__")


def to_frames(pictures: Pictures, *, image_size: tuple[int, int], channels: int, name: str = "picture") -> Frames:
    """Pictures [..., H, W, C] as frames [..., C, H, W].

    Raises:
        ShapeError: another size, another type, values that are not numbers or not in [0, 1].
    """
    expected = [*image_size, channels]
    if pictures.ndim < 3 or list(pictures.shape[-3:]) != expected:
        raise ShapeError(
            f"{name}: got {list(pictures.shape)} {pictures.dtype}, expected [..., {', '.join(map(str, expected))}]; "
            "resize it, or export a model for this size"
        )
    if pictures.dtype == np.uint8:
        return np.ascontiguousarray(_channels_first(pictures), np.float32) / np.float32(255)
    check_values(pictures, name=name)
    return np.ascontiguousarray(_channels_first(pictures), np.float32)


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
        raise ShapeError(
            f"{name}: values from {pictures.min():g} to {pictures.max():g}, expected [0, 1]; "
            "divide by 255, or give uint8"
        )


def to_pictures(frames: Frames) -> NDArray[np.uint8]:
    """Frames [..., C, H, W] as pictures uint8 [..., H, W, C], clipped to [0, 1] and rounded."""
    pictures = frames.swapaxes(-3, -2).swapaxes(-2, -1).clip(0, 1) * 255  # [..., H, W, C]
    return pictures.round().astype(np.uint8)
