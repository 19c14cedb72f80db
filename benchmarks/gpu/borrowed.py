"""The borrowed GPU machine, as machine.json describes it: no network, a list of packages, limits for what travels."""

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
    """Limits of one call on the machine."""

    travel_bytes: int
    """Size of everything that travels there: files of the checkout and the carried folders."""
    files_back: int
    """Number of result files that come back."""
    file_back_bytes: int
    """Size of one result file."""
    folders_deep: int
    """Folders between the result folder and a file."""
    call_seconds: float
    """Duration of a call (s)."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One GPU machine."""

    python: str
    """Version of Python, such as `3.12.3`."""
    cuda: str
    """Version of CUDA."""
    compute_capability: str
    """Compute capability, such as `9.0`."""
    libc: str
    """Version of glibc that its wheels may ask for at most."""
    limits: Limits
    carried: Mapping[str, str]
    """Packages carried in any case, with their versions; they go before the installed ones."""
    left_out: Mapping[str, str]
    """Packages never carried, with the reason."""
    installed: Mapping[str, str | None]
    """Packages on the machine, with their versions where known."""

    def __post_init__(self) -> None:
        named = {canonical(name): version for name, version in self.installed.items()}
        object.__setattr__(self, "installed", named)

    @property
    def python_tag(self) -> str:
        """Python version as pip takes it, such as `3.12`."""
        return ".".join(self.python.split(".")[:2])

    @property
    def architecture(self) -> int:
        """Compute capability as machine code is marked with it, such as 90."""
        return int(self.compute_capability.replace(".", ""))

    @property
    def platforms(self) -> list[str]:
        """Platform tags of wheels that run there, newest first; pip compares them exactly."""
        newest = int(self.libc.split(".")[1])
        names = [f"manylinux_2_{minor}_x86_64" for minor in range(newest, 4, -1)]
        return [*names, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]


def canonical(name: str) -> str:
    """Return the name of a package in the form in which registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(file: Path = FILE) -> Machine:
    """Read the description of a machine."""
    described: dict[str, Any] = json.loads(file.read_text())
    return Machine(**described | {"limits": Limits(**described["limits"])})


def joined_path(*folders: Path | str) -> str:
    """Return folders as the value of PYTHONPATH, what it holds already last."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, folders), *([before] if before else [])])
