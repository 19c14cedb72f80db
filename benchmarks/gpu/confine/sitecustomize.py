"""Import hook that confines Python to the packages of another machine.

The hook is active if this folder is on PYTHONPATH and the environment variable E3D_CONFINE names a JSON file with the
description of `Confinement`. The process and its children then find only that machine's packages among the installed
packages. Modules on PYTHONPATH and in the working folder are found as usual. Python runs this file at its start, before
other packages can be imported, so it uses only the standard library.
"""

import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

VARIABLE = "E3D_CONFINE"
ENVIRONMENT = tuple({os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")})
HERE = os.path.realpath(__file__)
LIBRARY = os.path.realpath(sysconfig.get_path("stdlib"))


class Confinement:
    """Decides which installed modules may be imported, and logs the others.

    Args:
        described: JSON object with the keys `allowed`, the distributions that may be imported; `left_out`, the
            distributions that are never allowed; `owners`, the distributions of each installed module; `log`, a file
            that receives a line of JSON for each module that is not allowed; and `learn`, true to let through the
            imports of our own code, which are logged too.
    """

    def __init__(self, described: dict[str, Any]) -> None:
        self.allowed, self.left_out = set(described["allowed"]), set(described["left_out"])
        self.owners: dict[str, list[str]] = described["owners"]
        self.log, self.learn = described["log"], described["learn"]
        self.logged: set[tuple[str, str]] = set()
        self.granted: set[str] = set()
        """Distributions that our own code was let import although they are not allowed."""

    def permits(self, module: str) -> bool:
        """Return True if an installed module may be imported; log it if it is not allowed."""
        owners = set(self.owners.get(module, ()))
        if not owners or owners & self.allowed:
            return True
        importer = self.importer()
        lacking = importer == "" and not owners & self.left_out
        self.write(module, sorted(owners), importer, lacking)
        if self.learn and lacking:
            self.granted |= owners
        return self.learn and lacking

    def importer(self) -> str:
        """Return the allowed package whose code imports a module; empty for our own code and carried packages."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            path = os.path.realpath(file)
            inside = next((root for root in ENVIRONMENT if path.startswith(root + os.sep)), None)
            if inside is not None:
                package = path[len(inside) + 1 :].split(os.sep)[0].removesuffix(".py")
                return package if set(self.owners.get(package, ())) & self.allowed else ""
            if path != HERE and not path.startswith(LIBRARY + os.sep) and not file.startswith("<"):
                return ""
            frame = frame.f_back
        return ""

    def write(self, module: str, owners: list[str], importer: str, lacking: bool) -> None:
        """Log an import that is not allowed, once for each importer."""
        if (module, importer) in self.logged:
            return
        self.logged.add((module, importer))
        line = json.dumps({"module": module, "distributions": owners, "importer": importer, "lacking": lacking})
        with open(self.log, "a") as file:
            file.write(line + "\n")


def finder(confinement: Confinement) -> type[PathFinder]:
    """Return the finder that replaces Python's `PathFinder`."""

    class Confined(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
            spec = super().find_spec(fullname, path, target)
            if spec is None or "." in fullname or not installed(spec) or confinement.permits(fullname):
                return spec
            return None

        @classmethod
        def find_distributions(cls, *arguments: Any, **named: Any) -> Iterator[Any]:
            for distribution in super().find_distributions(*arguments, **named):
                name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
                here = os.path.realpath(str(distribution.locate_file("")))
                if here not in ENVIRONMENT or name in confinement.allowed | confinement.granted:
                    yield distribution

    return Confined


def installed(spec: ModuleSpec) -> bool:
    """Return True if a module comes from the installed packages."""
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return any(os.path.realpath(place).startswith(root + os.sep) for place in places for root in ENVIRONMENT)


def confine(confinement: Confinement) -> None:
    """Install the finder, and hide packages in editable installations."""
    named = {os.path.realpath(one) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one}
    roots = (*ENVIRONMENT, LIBRARY, os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix))
    sys.path[:] = [
        one for one in sys.path if not one or os.path.realpath(one) in named or os.path.realpath(one).startswith(roots)
    ]
    finders = [one for one in sys.meta_path if not getattr(one, "__module__", "").startswith("__editable__")]
    sys.meta_path[:] = [finder(confinement) if one is PathFinder else one for one in finders]


if VARIABLE in os.environ:
    with open(os.environ[VARIABLE]) as described_in:
        confine(Confinement(json.load(described_in)))
