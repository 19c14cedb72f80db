"""Report of `e3d doctor`: faults of the installation, backends, libraries and GPU of this machine."""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from e3d_deploy import __version__, inventory
from e3d_deploy.doctor.fault import Fault
from e3d_deploy.doctor.place_faults import telemetry_faults
from e3d_deploy.doctor.search import find_faults
from e3d_deploy.files import cache_folder
from e3d_deploy.libraries import LIBRARIES, pip_install
from e3d_deploy.runtime.backends.specs import BACKENDS, has_libraries

__all__ = ["Fault", "examine", "find_faults"]


def examine(faults: Sequence[Fault] = ()) -> dict[str, Any]:
    """Return the report as JSON values.

    Imports `cuda.core` if there is an NVIDIA driver, and after it TensorRT-RTX if TensorRT-RTX is installed. No other
    library is imported.

    Args:
        faults: faults that `find_faults` found; backends that they stop are not usable.
    """
    # Computed once, because `unsupported_reason` may load the library of a backend.
    reasons = {name: spec.unsupported_reason() for name, spec in BACKENDS.items()}
    stopped = {name for fault in faults for name in fault.stops}
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
        "backends": {
            name: has_libraries(spec) and reasons[name] is None and name not in stopped
            for name, spec in BACKENDS.items()
        },
        "contacts": contacts(),
        "cache": _cache(),
        "faults": [asdict(fault) for fault in faults],
        "warnings": [
            *filter(None, reasons.values()),
            *(f"{fault.what}; {fault.command}" for fault in faults),
        ],
    }


def contacts() -> str:
    """Describe whom the imported libraries contact: nobody, unless the user switched telemetry on."""
    on = telemetry_faults()
    return on[0].what if on else "none; the telemetry of ONNX Runtime and OpenVINO is off"


def _cache() -> str:
    """Return the folder of the cache, or the reason if nothing can be cached."""
    try:
        return str(cache_folder(""))
    except FileNotFoundError as error:
        return f"nothing is cached: {error.strerror}"
