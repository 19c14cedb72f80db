"""Pictures as they come in, in whatever array, and forecasts as they go out."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import frames
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import ConfigError, ShapeError
from e3d_deploy.runtime.backends.host import as_frames


def take(picture: Any, config: ModelConfig, *, gpu: bool = False) -> Any:
    """A picture [H, W, C] as backends take it: uint8 [1, H, W, C], or float32 [1, C, H, W] where it was of floats.

    Args:
        picture: a NumPy array, or whatever gives its memory by DLPack, such as a tensor of PyTorch; uint8, or float
            in [0, 1]. uint8 is not copied.
        gpu: whether it may lie on a GPU, of uint8 then, and stay there.

    Raises:
        ShapeError: another size or type, values that are no picture's, or memory of a GPU.
    """
    if isinstance(picture, np.ndarray):
        array = picture
    elif not frames.is_on_gpu(picture):
        array = _of_host(picture)
    elif gpu and str(picture.dtype).endswith("uint8"):
        array = picture
    else:
        here = "the backend takes uint8 from there" if gpu else "the backend runs on the host"
        raise ShapeError(f"picture: of {picture.dtype} on a GPU, {here}; copy it to the host")
    expected = [*config.image_size, config.channels]
    if list(array.shape) != expected:
        raise ShapeError(
            f"picture: got {list(array.shape)} {array.dtype}, expected [H, W, C] = {expected}; "
            "resize it, or export a model for this size"
        )
    if isinstance(array, np.ndarray) and array.dtype != np.uint8:
        return frames.to_frames(array[None], image_size=config.image_size, channels=config.channels)
    return array[None]


def _of_host(picture: Any) -> NDArray[Any]:
    try:
        return np.from_dlpack(picture) if hasattr(picture, "__dlpack__") else np.asarray(picture)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ShapeError(f"picture: is no array that NumPy can read ({error})") from error


def forecast_array(
    horizon: int, config: ModelConfig, dtype: type[np.uint8] | type[np.float32], out: NDArray[Any] | None
) -> NDArray[Any]:
    """Return the array for a forecast, `out` or a new one: uint8 [horizon, H, W, C] or float32 [horizon, C, H, W].

    Raises:
        ConfigError: horizon below 1.
        ShapeError: `out` is not such an array.
    """
    if horizon < 1:
        raise ConfigError(f"horizon: got {horizon}, expected 1 or more")
    size, channels = config.image_size, config.channels
    shape = (horizon, *size, channels) if dtype is np.uint8 else (horizon, channels, *size)
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype or not out.flags.writeable:
        got = f"{list(out.shape)} {out.dtype}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ShapeError(f"out: got {got}, expected an array {list(shape)} {np.dtype(dtype)} that can be written")
    return out


def put(prediction: NDArray[np.float32], place: NDArray[Any]) -> None:
    """Write a frame [C, H, W] into one place of a forecast, as a picture [H, W, C] where that is of uint8."""
    place[:] = frames.to_pictures(prediction) if place.dtype == np.uint8 else prediction


def stack(seen: Iterable[NDArray[Any]], config: ModelConfig) -> NDArray[Any]:
    """Return pictures as `take` gives them in one array: uint8 [n, H, W, C], or float32 [n, C, H, W] with floats."""
    seen = list(seen)
    if all(one.dtype == np.uint8 for one in seen):
        return np.concatenate([np.empty((0, *config.image_size, config.channels), np.uint8), *seen])
    return np.concatenate([as_frames(one, config) for one in seen])
