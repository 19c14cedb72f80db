"""Faults of the cache folder."""

import tempfile

from e3d_deploy.doctor.fault import Fault
from e3d_deploy.files import cache_folder

ELSEWHERE = 'export XDG_CACHE_HOME="$PWD/.cache"'


def cache_faults() -> list[Fault]:
    """Find a cache folder that is missing or cannot be written."""
    try:
        folder = cache_folder("")
    except FileNotFoundError as error:
        return [Fault("cache-homeless", f"nothing is cached ({error.strerror})", ELSEWHERE)]
    try:
        existing = next(one for one in (folder, *folder.parents) if one.exists())
        with tempfile.TemporaryFile(dir=existing):
            return []
    except OSError as error:
        return [Fault("cache-unwritable", f"{folder}: the cache cannot be written ({error.strerror})", ELSEWHERE)]
