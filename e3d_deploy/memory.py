"""Memory of this machine, asked before work that needs much of it."""

import os
from contextlib import suppress
from pathlib import Path

from e3d_deploy.errors import ResourceLimit

SHARE = 0.8
"""Largest share of the free memory that one result may take."""
CGROUP = Path("/sys/fs/cgroup")
"""Folder with the limit of a container."""


def free_memory() -> int | None:
    """Return the memory that is free on this machine, or within its container (bytes); None if that is not known."""
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
    """Return the size of files that the kernel keeps in a container's memory until somebody needs it (bytes)."""
    with suppress(OSError, ValueError, KeyError):
        entries = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return int(entries["inactive_file"])
    return 0


def check_memory(what: str, needed_bytes: int, remedy: str) -> None:
    """Refuse work whose result does not fit into memory, before it begins.

    Raises:
        ResourceLimit: it takes more than most of what is free.
    """
    free = free_memory()
    if free is not None and needed_bytes > SHARE * free:
        raise ResourceLimit(
            f"{what}: takes {needed_bytes / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free here; {remedy}"
        )
