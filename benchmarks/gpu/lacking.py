"""Detection of packages that a command imports and that a machine lacks."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.borrowed import Machine, canonical

HOOK = Path(__file__).parent / "confine"
"""Folder of the sitecustomize.py that confines imports."""
OWNERS = "import importlib.metadata as m, json; print(json.dumps(m.packages_distributions()))"


@dataclass(frozen=True, kw_only=True)
class Confined:
    """Environment in which Python finds only the packages of a machine."""

    variables: Mapping[str, str]
    """Environment variables that confine a process and its children."""
    log: Path
    """File that receives a line for each refused import."""

    def lacking(self) -> dict[str, str]:
        """Return the distributions that our own code asked for and the machine lacks, each with the imported module."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        rows = [row for row in map(json.loads, lines) if row["lacking"]]
        return {distribution: row["module"] for row in rows for distribution in row["distributions"]}


@dataclass(frozen=True, kw_only=True)
class Confiner:
    """Makes environments that are confined to the packages of a machine.

    Args:
        carried: further distributions that may be imported from this machine. They replace carried ones that are built
            for another Python version.
        python: Python whose packages are confined.
    """

    machine: Machine
    carried: frozenset[str] = field(default_factory=frozenset)
    python: str = sys.executable

    def confined(self, folder: Path, *, learn: bool = False) -> Confined:
        """Write the files of an environment to an existing folder; return the environment.

        Args:
            learn: log the imports of our own code that the machine lacks, but let them succeed; otherwise they fail.
        """
        owners = json.loads(subprocess.check_output([self.python, "-I", "-c", OWNERS]))
        described = {
            "allowed": sorted({*self.machine.installed, *map(canonical, self.carried)}),
            "left_out": sorted(map(canonical, self.machine.left_out)),
            "owners": {module: sorted(map(canonical, names)) for module, names in owners.items()},
            "log": str(folder / "refused.jsonl"),
            "learn": learn,
        }
        file = folder / "confinement.json"
        file.write_text(json.dumps(described))
        variables = {"PYTHONPATH": str(HOOK), "E3D_CONFINE": str(file)}
        return Confined(variables=variables, log=folder / "refused.jsonl")


def versions_here(distributions: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of distributions on this machine."""
    from importlib.metadata import version

    return {name: version(name) for name in distributions}
