"""Report of `e3d doctor`: backends, libraries and GPU of this machine, and commands that install missing libraries."""

import os
import platform
from typing import Any

from e3d_deploy import __version__, inventory
from e3d_deploy.files import cache_folder
from e3d_deploy.libraries import LIBRARIES, SWITCH, pip_install
from e3d_deploy.runtime.backends.specs import BACKENDS, has_libraries


def examine() -> dict[str, Any]:
    """Return the report as JSON values.

    Imports `cuda.core` if there is an NVIDIA driver, and after it TensorRT-RTX if TensorRT-RTX is installed. No other
    library is imported.
    """
    # Computed once, because `unsupported_reason` may load the library of a backend.
    reasons = {name: spec.unsupported_reason() for name, spec in BACKENDS.items()}
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
        "backends": {name: has_libraries(spec) and reasons[name] is None for name, spec in BACKENDS.items()},
        "contacts": contacts(),
        "cache": _cache(),
        "warnings": _warnings([reason for reason in reasons.values() if reason]),
    }


def contacts() -> str:
    """Describe whom the imported libraries contact: nobody, unless the user switched telemetry on."""
    switch = os.environ.get(SWITCH)
    if switch is not None and switch.strip().lower() in ("", "0", "false", "no", "off"):
        return f"ONNX Runtime may report to Microsoft, because {SWITCH}={switch} is set"
    return "none; the telemetry of ONNX Runtime and OpenVINO is off"


def _cache() -> str:
    """Return the folder of the cache, or the reason if nothing can be cached."""
    try:
        return str(cache_folder(""))
    except FileNotFoundError as error:
        return f"nothing is cached: {error.strerror}"


def _warnings(reasons: list[str]) -> list[str]:
    warnings = list(reasons)
    if inventory.version_of(("onnxruntime",)) and inventory.version_of(("onnxruntime-gpu",)):
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you want"
        )
    return warnings
