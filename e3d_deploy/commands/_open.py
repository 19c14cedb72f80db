"""Opening of bundles and engine caches by the paths that a user gave."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from e3d_deploy.export.engines.cache import EngineCache
    from e3d_deploy.runtime import Bundle


def open_bundle(path: Path) -> "Bundle":
    from e3d_deploy.runtime import Bundle

    return Bundle.open(path)


def open_cache(folder: str | None, limit_gb: float | None = None) -> "EngineCache":
    from e3d_deploy.export.engines.cache import LIMIT_BYTES, EngineCache

    return EngineCache(folder, limit_bytes=LIMIT_BYTES if limit_gb is None else int(limit_gb * 1e9))
