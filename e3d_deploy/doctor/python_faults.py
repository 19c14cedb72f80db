"""Faults of the installation of e3d_deploy itself."""

import os
import shlex
from pathlib import Path

import e3d_deploy
from e3d_deploy.doctor.fault import Fault
from e3d_deploy.doctor.site import Installed, Site


def python_faults(site: Site) -> list[Fault]:
    """Find a second copy of e3d_deploy."""
    found = []
    copies = [one for one in site.all("e3d_deploy") if not one.is_source]
    if len(copies) > 1:
        folders = " and ".join(str(_package(one).parent) for one in copies)
        found.append(
            Fault(
                "e3d-twice",
                f"e3d_deploy is installed in {folders}; Python uses the first",
                f"{' && '.join(['pip uninstall -y e3d_deploy'] * len(copies))} && {_install(copies[0])}",
            )
        )
    imported = Path(e3d_deploy.__file__).parent.resolve()
    if copies and imported not in {_package(one) for one in copies}:
        what = f"Python imports e3d_deploy from {imported.parent}, but pip installed it in {_package(copies[0]).parent}"
        found.append(Fault("e3d-shadowed", what, _unshadow(imported.parent)))
    return found


def _package(one: Installed) -> Path:
    return ((one.source or one.folder) / "e3d_deploy").resolve()


def _install(one: Installed) -> str:
    return f"pip install -e {shlex.quote(str(one.source))}" if one.source else f"pip install e3d_deploy=={one.version}"


def _unshadow(folder: Path) -> str:
    """Return the command after which Python no longer imports from a folder."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if any(entry and Path(entry).resolve() == folder for entry in entries):
        return "unset PYTHONPATH"
    return "cd ~" if folder == Path.cwd() else f"pip install -e {shlex.quote(str(folder))}"
