"""Faults of the cache folder, and telemetry that was switched on."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from e3d_deploy.doctor.fault import Fault
from e3d_deploy.files import cache_folder
from e3d_deploy.libraries import SWITCH

ENGINE_BYTES = 500_000_000
"""Free space below which the disk counts as full: room for several engines (docs/engines.md lists their sizes)."""
ELSEWHERE = 'export XDG_CACHE_HOME="$PWD/.cache"'


def cache_faults() -> list[Fault]:
    """Find a cache folder that is missing, cannot be written or has no space."""
    try:
        folder = cache_folder("")
    except FileNotFoundError as error:
        return [Fault("cache-homeless", f"nothing is cached ({error.strerror})", ELSEWHERE)]
    try:
        existing = next(one for one in (folder, *folder.parents) if one.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return [Fault("cache-unwritable", f"{folder}: the cache cannot be written ({error.strerror})", ELSEWHERE)]
    if free >= ENGINE_BYTES:
        return []
    what = f"{folder}: the disk has {free / 1e6:.0f} MB free, and engines may need {ENGINE_BYTES / 1e6:.0f} MB"
    return [Fault("cache-full", what, _freeing(folder))]


def _freeing(folder: Path) -> str:
    return "e3d cache rm --all" if any(folder.glob("engines/*")) else ELSEWHERE


def telemetry_faults(variables: Mapping[str, str] = os.environ) -> list[Fault]:
    """Return a fault if the user switched the telemetry of ONNX Runtime on."""
    if variables.get(SWITCH, "1").strip().lower() not in ("", "0", "false", "no", "off"):
        return []
    what = f"ONNX Runtime may report to Microsoft, because {SWITCH}={variables[SWITCH]} is set"
    return [Fault("telemetry-on", what, f"unset {SWITCH}")]
