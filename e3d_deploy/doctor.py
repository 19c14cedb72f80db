"""Report of `e3d doctor`: backends, libraries and GPU of this machine, and how to install what is missing."""

import platform
from typing import Any

from e3d_deploy import __version__, inventory
from e3d_deploy.libraries import LIBRARIES, pip_install
from e3d_deploy.runtime.backends.specs import BACKENDS, has_libraries


def examine() -> dict[str, Any]:
    """Return everything that `e3d doctor` reports, as JSON values.

    Loads only `cuda.core`; with a GPU also TensorRT-RTX.
    """
    refusals = {name: spec.refusal() for name, spec in BACKENDS.items()}  # once, for they may load libraries
    libraries = [
        {
            "library": library.module,
            "version": inventory.version_of(library.packages),
            "extra": library.extra,
            "gives": library.gives,
            "get": None if inventory.version_of(library.packages) else pip_install(library.extra),
        }
        for library in LIBRARIES
    ]
    return {
        "e3d_deploy": __version__,
        "python": platform.python_version(),
        "machine": inventory.machine(),
        "libraries": libraries,
        "backends": {name: has_libraries(spec) and refusals[name] is None for name, spec in BACKENDS.items()},
        "warnings": _warnings([refusal for refusal in refusals.values() if refusal]),
    }


def _warnings(refusals: list[str]) -> list[str]:
    warnings = list(refusals)
    if inventory.version_of(("onnxruntime",)) and inventory.version_of(("onnxruntime-gpu",)):
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you want"
        )
    return warnings
