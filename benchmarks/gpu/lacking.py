"""Packages that a command imports and a machine lacks."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.borrowed import Machine, canonical

HOOK = Path(__file__).parent / "confine"
OWNERS = "import importlib.metadata as m, json; print(json.dumps(m.packages_distributions()))"


@dataclass(frozen=True, kw_only=True)
class Confined:
    """An environment in which Python finds the packages of a machine alone."""

    variables: Mapping[str, str]
    """Environment variables that confine a process and its children."""
    log: Path
    """File that gets what was asked for and is not there."""

    def lacking(self) -> dict[str, str]:
        """Return the distributions that our own code tried to import and did not find, each with the module."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        rows = [row for row in map(json.loads, lines) if row["lacking"]]
        return {distribution: row["module"] for row in rows for distribution in row["distributions"]}


@dataclass(frozen=True, kw_only=True)
class Confiner:
    """Makes environments that are confined to a machine.

    Args:
        carried: distributions carried there, taken from here where the carried ones are of another Python.
    """

    machine: Machine
    carried: frozenset[str] = field(default_factory=frozenset)
    python: str = sys.executable

    def confined(self, folder: Path, *, learn: bool = False) -> Confined:
        """Prepare an environment in a folder that exists.

        Args:
            learn: let our own code import what it asks for, to find out what is lacking; else that fails.
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
    """Return the versions of distributions that are installed here."""
    from importlib.metadata import version

    return {name: version(name) for name in distributions}
