"""Report of `e3d doctor`: backends, libraries and GPU of this machine, and how to install what is missing."""

import platform
from typing import Any

from e3d_deploy import __version__, inventory


def examine() -> dict[str, Any]:
    """Return everything that `e3d doctor` reports, as JSON values.

    Loads only `cuda.core`; with a GPU also TensorRT-RTX.
    """
    refusal = inventory.rtx_refusal()  # once, for it loads TensorRT-RTX
    ready = inventory.openable(refusal)
    libraries = [
        {
            "library": library.module,
            "version": inventory.version_of(library.packages),
            "extra": library.extra,
            "gives": library.gives,
            "get": None if inventory.version_of(library.packages) else f"pip install 'e3d_deploy[{library.extra}]'",
        }
        for library in inventory.LIBRARIES
    ]
    return {
        "e3d_deploy": __version__,
        "python": platform.python_version(),
        "machine": inventory.machine(),
        "libraries": libraries,
        "backends": {name: name in ready for name in inventory.BACKENDS},
        "warnings": _warnings(refusal),
    }


def _warnings(rtx_refusal: str | None) -> list[str]:
    warnings = [rtx_refusal] if rtx_refusal else []
    if inventory.version_of(("onnxruntime",)) and inventory.version_of(("onnxruntime-gpu",)):
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you want"
        )
    return warnings
