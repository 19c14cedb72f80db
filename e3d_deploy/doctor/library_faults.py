"""Faults of libraries that are installed but do not load, or that lack the video encoder."""

import re
from collections.abc import Mapping

from e3d_deploy.doctor.fault import Fault
from e3d_deploy.doctor.probe import NO_H264
from e3d_deploy.doctor.site import Installed, Site
from e3d_deploy.libraries import LIBRARIES, Library
from e3d_deploy.runtime.backends.specs import BACKENDS

UNTRIED = ("lightning", "matplotlib", "onnxscript", "tensorboard", "tensorflow")
"""Modules that are not imported: matplotlib makes a folder in the user's home, and the others take about a second or
more."""
ON_GPU = ("cuda.core", "tensorrt")
"""Modules that are imported only if there is an NVIDIA driver. Without one they are of no use, and may not load."""
NUMPY = Library("numpy", ("numpy",), "", "all backends")
SYSTEM_PACKAGES = {
    "libgomp.so.1": "libgomp1",
    "libstdc++.so.6": "libstdc++6",
    "libz.so.1": "zlib1g",
}
"""Packages of Debian and Ubuntu that contain libraries which the libraries need."""
MISSING_LIBRARY = re.compile(r"(lib[^\s:]+\.so[.\d]*): cannot open shared object file")
OTHER_NUMPY = re.compile("numpy.*(multiarray|ABI version|size changed|compiled using)", re.IGNORECASE)
"""Pattern in the errors of modules that were compiled for another major version of NumPy."""


def present(site: Site, *, driver: bool) -> dict[str, Installed]:
    """Return the installed distributions that should be importable, by module."""
    found = {}
    for library in (NUMPY, *LIBRARIES):
        installed = site.find(*library.packages)
        if installed is not None and library.module not in UNTRIED and (driver or library.module not in ON_GPU):
            found[_module(library.module, installed)] = installed
    return found


def _module(module: str, installed: Installed) -> str:
    """Return the module that a distribution contains; NVIDIA ships bindings without the front end too."""
    return f"{module}_bindings" if installed.name.endswith("-bindings") else module


def library_faults(installed: Mapping[str, Installed], errors: Mapping[str, str]) -> list[Fault]:
    """Return a fault for each library that cannot be imported, or only for NumPy if it is one of them.

    Args:
        installed: distributions by module.
        errors: errors of imports by module.
    """
    causes = ("numpy",) if "numpy" in errors else tuple(errors)  # without NumPy, most others do not load
    return [_fault(module, installed[module], errors[module]) for module in causes]


def _fault(module: str, one: Installed, error: str) -> Fault:
    if error == NO_H264:
        what = f"PyAV {one.version} has no H.264 encoder (libx264), so e3d can neither write MP4 files nor push videos"
        return Fault("h264-missing", what, f"{reinstall(one)} --only-binary av")
    what = f"{one.name} {one.version} is installed but cannot be imported ({error})"
    stops = stopped_by(module)
    if module != "numpy" and OTHER_NUMPY.search(error):
        return Fault("numpy-mismatch", what, f"pip install --upgrade --force-reinstall {one.name} numpy", stops)
    lacking = MISSING_LIBRARY.search(error)
    if lacking and (package := SYSTEM_PACKAGES.get(lacking[1])):
        return Fault("system-library-missing", what, f"sudo apt install {package}", stops)
    return Fault("library-broken", what, reinstall(one), stops)


def reinstall(one: Installed) -> str:
    """Return the command that installs the same version of a distribution again."""
    build = one.version.partition("+")[2] if one.name == "torch" else ""
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip install --force-reinstall --no-deps {one.name}=={one.version}{index}"


def stopped_by(module: str) -> tuple[str, ...]:
    """Return the backends that need a module."""
    name = module.removesuffix("_bindings")
    return tuple(spec.name for spec in BACKENDS.values() if name == "numpy" or name in spec.modules)
