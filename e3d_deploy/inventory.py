"""Inventory of this machine: installed packages, processor and GPU."""

import ctypes
import os
import platform
from contextlib import suppress
from typing import Any

from e3d_deploy import libraries
from e3d_deploy.tensorrt_library import library, unsupported_reason


def has_library(module: str) -> bool:
    """Return True if a module or `MODULE_bindings` can be imported; NVIDIA ships the bindings separately."""
    return libraries.is_importable(module) or libraries.is_importable(f"{module}_bindings")


def machine() -> dict[str, Any]:
    """Describe the processor and GPU of this machine. Imports `cuda.core` if an NVIDIA driver is installed."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "nvidia_driver": has_nvidia_driver(),
        "gpu": _gpu(),
    }


def version_of(packages: tuple[str, ...]) -> str | None:
    """Return the version of the first installed distribution; None if no version can be found."""
    from importlib.metadata import version  # takes a third of the import time of the runtime

    for package in packages:
        with suppress(Exception):  # not installed, or damaged metadata
            if found := version(package):
                return found
    return None


def _cpu() -> str:
    return _of_cpu("model name") or platform.processor() or "unknown"


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of the processor by their names in /proc/cpuinfo; empty without that file."""
    return frozenset(_of_cpu("flags").split())


def _of_cpu(field: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo; empty if it is missing."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith(field))
    except (OSError, StopIteration):
        return ""


def has_nvidia_driver() -> bool:
    """Return True if the driver of an NVIDIA GPU is installed."""
    try:
        ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return False
    return True


def _gpu() -> str | None:
    """Describe the GPU that backends run on; return None if there is no GPU or it cannot be queried."""
    try:
        device = _device()
        if device is None:
            return None
        from cuda.core import system

        driver = ".".join(map(str, system.get_user_mode_driver_version()))
        return f"{device.name}, compute capability {_capability(device)}, driver for CUDA {driver}"
    except Exception:
        # The type of the exception depends on the cause: no GPU, or an old cuda.core. `e3d doctor` must continue
        # in both cases.
        return None


def _device() -> Any:
    """Return the `cuda.core` device that backends run on; None without a driver."""
    if not has_nvidia_driver():
        return None
    from cuda.core import Device

    return Device(0)


def _capability(device: Any) -> str:
    return ".".join(map(str, device.compute_capability))


def rtx_unsupported_reason() -> str | None:
    """Return why TensorRT-RTX does not support this GPU; None if it does, or if the library or GPU cannot be used."""
    try:
        device = _device()
        if device is None or not has_library("tensorrt_rtx"):
            return None
        return unsupported_reason(library("tensorrt-rtx"), _capability(device))
    except Exception:
        # As in `_gpu`, or because the library does not load. `e3d doctor` must still list the remaining libraries.
        return None
