"""Description of the borrowed GPU machine, read from machine.json.

The machine has no network, a fixed list of packages, and limits on the files that can be sent and returned.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "machine.json"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one call on the machine; each is a maximum."""

    travel_bytes: int
    """Total size of the files that are sent: the checkout and the carried folders (bytes)."""
    files_back: int
    """Number of result files that are returned."""
    file_back_bytes: int
    """Size of one result file (bytes)."""
    folders_deep: int
    """Number of folders between the result folder and a file."""
    call_seconds: float
    """Duration of a call (s)."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Software and limits of a GPU machine."""

    python: str
    """Version of Python, such as `3.12.3`."""
    cuda: str
    """Version of CUDA."""
    compute_capability: str
    """Compute capability, such as `9.0`."""
    libc: str
    """Newest version of glibc that its wheels may require."""
    limits: Limits
    carried: Mapping[str, str]
    """Packages that are always carried, with versions; Python finds them before the installed packages."""
    left_out: Mapping[str, str]
    """Packages that are never carried, with the reasons."""
    installed: Mapping[str, str | None]
    """Packages on the machine, with versions; None if unknown."""

    def __post_init__(self) -> None:
        named = {canonical(name): version for name, version in self.installed.items()}
        object.__setattr__(self, "installed", named)

    @property
    def python_tag(self) -> str:
        """Python version in pip's form, such as `3.12`."""
        return ".".join(self.python.split(".")[:2])

    @property
    def architecture(self) -> int:
        """Compute capability as a number, such as 90; machine code is marked with it."""
        return int(self.compute_capability.replace(".", ""))

    @property
    def platforms(self) -> list[str]:
        """Platform tags of wheels that run on the machine, newest first; pip compares tags exactly."""
        newest = int(self.libc.split(".")[1])
        names = [f"manylinux_2_{minor}_x86_64" for minor in range(newest, 4, -1)]
        return [*names, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]


def canonical(name: str) -> str:
    """Return the normalised name of a package, which registries compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(file: Path = FILE) -> Machine:
    """Read the description of a machine."""
    described: dict[str, Any] = json.loads(file.read_text())
    return Machine(**described | {"limits": Limits(**described["limits"])})


def joined_path(*folders: Path | str) -> str:
    """Return a value for PYTHONPATH: the folders, then the current PYTHONPATH."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, folders), *([before] if before else [])])
