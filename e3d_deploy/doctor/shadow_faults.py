"""A copy of e3d_deploy that hides the installed one."""

import os
import shlex
from pathlib import Path

import e3d_deploy
from e3d_deploy.doctor.fault import Fault
from e3d_deploy.doctor.site import Installed, Site


def shadow_faults(site: Site) -> list[Fault]:
    """Return a fault if Python imports another copy of e3d_deploy than the first that is installed.

    Several installed copies are no fault: an environment may hide those of the system.
    """
    installed = [_package(one) for one in site.all("e3d_deploy") if not one.is_source]
    imported = Path(e3d_deploy.__file__).parent.resolve()
    if not installed or imported == installed[0]:
        return []
    what = f"Python imports e3d_deploy from {imported.parent}, but pip installed it in {installed[0].parent}"
    return [Fault("e3d-shadowed", what, _unshadow(imported.parent))]


def _package(one: Installed) -> Path:
    return ((one.source or one.folder) / "e3d_deploy").resolve()


def _unshadow(folder: Path) -> str:
    """Return the command after which Python no longer imports from a folder."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if any(entry and Path(entry).resolve() == folder for entry in entries):
        return "unset PYTHONPATH"
    return "cd ~" if folder == Path.cwd() else f"pip install -e {shlex.quote(str(folder))}"
