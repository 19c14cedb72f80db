"""Size of what travels to the machine, and form of what comes back."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.borrowed import Limits
from e3d_deploy.errors import ResourceLimit

MIB = 1 << 20
LARGEST = 8
"""Number of pieces that an error names."""
NAME = re.compile(r"[A-Za-z0-9._-]+")
MODELS = ("models/*.safetensors", "e3d_deploy/demo/*.safetensors")
"""Trained models of the checkout, which no call needs."""


@dataclass(frozen=True, kw_only=True)
class Travel:
    """Size of one call's luggage."""

    tracked_bytes: int
    """Files of the checkout, without ignored ones and trained models."""
    carried_bytes: dict[str, int]
    """Carried folders."""
    models_bytes: dict[str, int]
    """Trained models of the checkout, which need not travel."""

    @property
    def total_bytes(self) -> int:
        """Sum without the trained models."""
        return self.tracked_bytes + sum(self.carried_bytes.values())

    def without(self, limits: Limits) -> list[str]:
        """Return the trained models that have to be moved out of the checkout before; none if all of them fit."""
        fit = self.total_bytes + sum(self.models_bytes.values()) <= limits.travel_bytes
        return [] if fit else list(self.models_bytes)


def is_model(name: str | Path) -> bool:
    """Return True for a trained model of the checkout, by its path there."""
    return any(Path(name).match(pattern) for pattern in MODELS)


def checkout_files(root: Path) -> list[Path]:
    """Return the files of a checkout that are tracked, or neither tracked nor ignored, relative to it."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted({Path(name) for name in names if name and (root / name).is_file()})


def check_travel(root: Path, carried: Sequence[Path], limits: Limits) -> Travel:
    """Add up what travels in a call; trained models are counted apart, as they can be moved away.

    Raises:
        ResourceLimit: it is more than the limit, with the largest pieces.
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
            f"what travels: got {travel.total_bytes / MIB:.1f} MiB, expected at most "
            f"{limits.travel_bytes / MIB:.0f} MiB; carry less, or ignore files. The largest (MiB): {named}"
        )
    return travel


def check_results(folder: Path, limits: Limits) -> dict[str, int]:
    """Return the sizes of the results in a folder.

    Raises:
        ResourceLimit: more files, larger or deeper ones, or other names than come back.
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
                f"{name}: does not come back; use letters, digits, '.', '_' and '-', and at most "
                f"{limits.folders_deep} folders"
            )
    return sizes


def files(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder, in order."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file())
