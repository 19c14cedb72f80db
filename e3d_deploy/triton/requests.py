"""Requests to a table of streams, and their answers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Request:
    """Next picture of a sequence."""

    sequence: int | str
    """Id of the sequence."""
    picture: NDArray[np.uint8]
    """uint8 [H, W, C]."""
    start: bool = False
    """First picture: open a stream, and close the stream that an earlier sequence of this id left."""
    end: bool = False
    """Last picture: close the stream after the answer."""
    prediction: bool = True
    """Return the prediction of the next frame; a request without a forecast always returns it."""
    horizon: int | None = None
    """Number of pictures to forecast; None for no forecast."""


@dataclass(frozen=True)
class Answer:
    """Results of a request; None for those that were not requested."""

    prediction: NDArray[np.float32] | None
    """float32 [C, H, W]."""
    forecast: NDArray[np.uint8] | None
    """uint8 [horizon, H, W, C]."""


@dataclass(frozen=True)
class Counts:
    """State of a table."""

    streams: int
    """Number of streams that hold a state."""
    frames: int
    """Number of pictures seen."""
    expired: int
    """Number of streams that were closed because their sequences were idle for too long."""
