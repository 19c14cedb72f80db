"""Checks of the files that are sent to the machine and of the results that are returned."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.borrowed import Limits
from e3d_deploy.errors import ResourceLimit

MIB = 1 << 20
LARGEST = 8
"""Number of files that an error names."""
NAME = re.compile(r"[A-Za-z0-9._-]+")
"""Names of files and folders that the machine returns."""
MODELS = ("models/*.safetensors", "e3d_deploy/demo/*.safetensors")
"""Patterns of the trained models of the checkout, which no call needs."""


@dataclass(frozen=True, kw_only=True)
class Travel:
    """Sizes of the files that are sent for one call."""

    tracked_bytes: int
    """Size of the files of the checkout, without ignored files and trained models."""
    carried_bytes: dict[str, int]
    """Size of each carried folder."""
    models_bytes: dict[str, int]
    """Size of each trained model of the checkout; the calls do not need them."""

    @property
    def total_bytes(self) -> int:
        """Total size without the trained models."""
        return self.tracked_bytes + sum(self.carried_bytes.values())

    def without(self, limits: Limits) -> list[str]:
        """Return the trained models to move out of the checkout before the call; none if they fit into the limit."""
        fit = self.total_bytes + sum(self.models_bytes.values()) <= limits.travel_bytes
        return [] if fit else list(self.models_bytes)


def is_model(name: str | Path) -> bool:
    """Return True if a path, relative to the checkout, is that of a trained model."""
    return any(Path(name).match(pattern) for pattern in MODELS)


def checkout_files(root: Path) -> list[Path]:
    """Return the tracked and the new files of a checkout, without ignored files, relative to its root."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted({Path(name) for name in names if name and (root / name).is_file()})


def check_travel(root: Path, carried: Sequence[Path], limits: Limits) -> Travel:
    """Return the sizes of the files that are sent for a call.

    Raises:
        ResourceLimit: the files exceed the limit without the trained models, which can be moved away; the error names
            the largest files.
    """
    tracked = {str(name): (root / name).stat().st_size for name in checkout_files(root)}
    models = {name: tracked.pop(name) for name in list(tracked) if is_model(name)}
    within = {str(file.relative_to(root)): file.stat().st_size for folder in carried for file in files(folder)}
    sizes = {str(folder.relative_to(root)): sum(file.stat().st_size for file in files(folder)) for folder in carried}
    travel = Travel(tracked_bytes=sum(tracked.values()), carried_bytes=sizes, models_bytes=models)
    if travel.total_bytes > limits.travel_bytes:
        largest = sorted({**tracked, **within}.items(), key=lambda one: -one[1])[:LARGEST]
        named = ", ".join(f"{name} {size / MIB:.1f}" for name, size in largest)
        raise ResourceLimit(
            f"files to send: got {travel.total_bytes / MIB:.1f} MiB, expected at most "
            f"{limits.travel_bytes / MIB:.0f} MiB; carry less, or let git ignore files. The largest (MiB): {named}"
        )
    return travel


def check_results(folder: Path, limits: Limits) -> dict[str, int]:
    """Return the sizes of the result files in a folder (bytes), by relative path.

    Raises:
        ResourceLimit: there are too many files, or a file is too large, is in too deep a folder, or has a name that the
            machine does not return.
    """
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files(folder)}
    if len(sizes) > limits.files_back:
        raise ResourceLimit(
            f"{folder}: got {len(sizes)} files, expected at most {limits.files_back}; write fewer: {', '.join(sizes)}"
        )
    for name, size in sizes.items():
        if size > limits.file_back_bytes:
            most = limits.file_back_bytes / MIB
            raise ResourceLimit(f"{name}: got {size / MIB:.1f} MiB, expected at most {most:.0f}; write it in parts")
        parts = Path(name).parts
        if len(parts) - 1 > limits.folders_deep or not all(NAME.fullmatch(part) for part in parts):
            raise ResourceLimit(
                f"{name}: would not be returned; use letters, digits, '.', '_' and '-', and at most "
                f"{limits.folders_deep} folders"
            )
    return sizes


def files(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder, ordered by path."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file())
