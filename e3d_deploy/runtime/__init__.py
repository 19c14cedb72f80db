"""Run a bundle: NumPy and one inference library, made to be embedded.

import e3d_deploy.runtime as e3d

with e3d.load("kth.e3d") as predictor:
    stream = predictor.stream()
    for picture in camera:              # uint8 [H, W, C]
        stream.push(picture)
    future = stream.predict(horizon=10) # uint8 [10, H, W, C]; the stream itself does not move
"""

from typing import TYPE_CHECKING, Any

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.runtime.predictor import Predictor, Stream, load
from e3d_deploy.runtime.snapshot import Snapshot

if TYPE_CHECKING:
    from e3d_deploy.runtime.streams.streams import SlotStream, Streams

__all__ = ["Bundle", "Predictor", "SlotStream", "Snapshot", "Stream", "Streams", "load"]


def __getattr__(name: str) -> Any:
    """Import the classes of many streams when they are asked for: a plain `Stream` needs no scheduler."""
    if name not in ("SlotStream", "Streams"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from e3d_deploy.runtime.streams import streams

    return getattr(streams, name)
