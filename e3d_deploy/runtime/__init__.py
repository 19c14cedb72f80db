"""Runs a bundle with NumPy and one inference library, for use inside other programs.

import e3d_deploy.runtime as e3d

with e3d.load("kth.e3d") as predictor:
    stream = predictor.stream()
    for picture in camera:              # uint8 [H, W, C]
        stream.push(picture)
    future = stream.predict(horizon=10) # uint8 [10, H, W, C]; the stream itself does not advance
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from e3d_deploy.errors import (
    BackendUnavailable,
    BenchmarkError,
    BundleError,
    BundleMissing,
    CacheError,
    CheckpointError,
    CheckpointMissing,
    ClipError,
    ConfigError,
    E3DError,
    EngineError,
    ExportError,
    QualityError,
    ResourceLimit,
    ServerLost,
    ShapeError,
    SnapshotError,
    SourceLost,
    StreamError,
    TrainingError,
)

if TYPE_CHECKING:
    from e3d_deploy.bundle.folder import Bundle
    from e3d_deploy.runtime.predictor import Predictor, Stream, load
    from e3d_deploy.runtime.snapshot import Snapshot
    from e3d_deploy.runtime.streams.streams import SlotStream, Streams

__all__ = [
    "BackendUnavailable",
    "BenchmarkError",
    "Bundle",
    "BundleError",
    "BundleMissing",
    "CacheError",
    "CheckpointError",
    "CheckpointMissing",
    "ClipError",
    "ConfigError",
    "E3DError",
    "EngineError",
    "ExportError",
    "Predictor",
    "QualityError",
    "ResourceLimit",
    "ServerLost",
    "ShapeError",
    "SlotStream",
    "Snapshot",
    "SnapshotError",
    "SourceLost",
    "Stream",
    "StreamError",
    "Streams",
    "TrainingError",
    "load",
]

LAZY_MODULES = {
    "Bundle": "e3d_deploy.bundle.folder",
    "Predictor": "e3d_deploy.runtime.predictor",
    "SlotStream": "e3d_deploy.runtime.streams.streams",
    "Snapshot": "e3d_deploy.runtime.snapshot",
    "Stream": "e3d_deploy.runtime.predictor",
    "Streams": "e3d_deploy.runtime.streams.streams",
    "load": "e3d_deploy.runtime.predictor",
}
"""Module of each name that is imported only at its first use.

`e3d --help` and `e3d doctor` read the list of backends in this package without importing NumPy, and a program that
uses only `Stream` does not import the scheduler.
"""


def __getattr__(name: str) -> Any:
    """Import a name of `LAZY_MODULES` at its first use, and store it in this module."""
    if name not in LAZY_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(LAZY_MODULES[name]), name)
    return found
