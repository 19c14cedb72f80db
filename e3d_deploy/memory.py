"""Check of the free memory before work that needs much memory."""

import os
from contextlib import suppress
from pathlib import Path

from e3d_deploy.errors import ResourceLimit

SHARE = 0.8
"""Maximum share of the free memory that one result may take."""
CGROUP = Path("/sys/fs/cgroup")
"""Folder with the memory limit of a container."""


def free_memory() -> int | None:
    """Return the free memory of this machine or its container, whichever is less (bytes); None if unknown."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    if not found:
        with suppress(AttributeError, OSError, ValueError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):
        limit, used = ((CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        found.append(max(0, int(limit) - int(used) + _cached()))
    return min(found, default=None)


def _cached() -> int:
    """Return the size of cached files that the kernel drops from a container's memory on demand (bytes)."""
    with suppress(OSError, ValueError, KeyError):
        entries = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return int(entries["inactive_file"])
    return 0


def check_memory(what: str, needed_bytes: int, remedy: str) -> None:
    """Check that a result will fit into memory, before the work begins.

    Args:
        what: name of the result, for the message.

    Raises:
        ResourceLimit: `needed_bytes` is more than `SHARE` of the free memory.
    """
    free = free_memory()
    if free is not None and needed_bytes > SHARE * free:
        raise ResourceLimit(
            f"{what}: takes {needed_bytes / 1e9:,.1f} GB of memory, but only {free / 1e9:,.1f} GB are free here; "
            f"{remedy}"
        )
