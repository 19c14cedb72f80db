"""Inventory of this machine: backends, libraries and GPU, what needs each library, and how to install it."""

import ctypes
import os
import platform
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from e3d_deploy.tensorrt_library import library, refusal


@dataclass(frozen=True)
class Library:
    """A package that part of e3d_deploy needs."""

    module: str
    packages: tuple[str, ...]
    """Distributions that contain the module; any one will do."""
    extra: str
    gives: str
    """Features that need it."""


LIBRARIES = (
    Library("torch", ("torch",), "train", "train, export, and PyTorch as the yardstick of verify"),
    Library("lightning", ("lightning",), "train", "e3d train"),
    Library("safetensors", ("safetensors",), "train", "model files"),
    Library("onnx", ("onnx",), "train", "e3d export"),
    Library("onnxscript", ("onnxscript",), "train", "e3d export"),
    Library("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "cpu", "the backend onnxruntime"),
    Library("openvino", ("openvino",), "openvino", "the backend openvino"),
    Library("tensorrt_rtx", ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings"), "rtx", "e3d build --target tensorrt-rtx"),
    Library(
        "tensorrt",
        ("tensorrt", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
        "gpu",
        "e3d build --target tensorrt",
    ),
    Library("cuda.core", ("cuda-core",), "gpu", "the backends on a GPU"),
    Library("av", ("av",), "video", "videos in and out"),
    Library("tensorflow", ("tensorflow-cpu", "tensorflow"), "import-tf", "e3d import of google/e3d_lstm checkpoints"),
    Library("PIL", ("pillow",), "video", "folders of pictures, GIFs"),
    Library("matplotlib", ("matplotlib",), "plot", "pictures of drift and latency, and the report of e3d demo"),
)


BACKENDS = {
    "tensorrt": ("tensorrt", "cuda.core"),
    "tensorrt-rtx": ("tensorrt_rtx", "cuda.core"),
    "onnxruntime-cuda": ("onnxruntime", "cuda.core"),
    "torch-cuda-graph": ("torch", "safetensors", "cuda.core"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "torch": ("torch", "safetensors"),
    "torch-compiled": ("torch", "safetensors"),
}
"""Backends of this version, preferred first, with the modules that each needs."""
ON_GPU = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "torch-cuda-graph")
"""Backends that need an NVIDIA GPU and its driver."""
REMEDY = {
    "tensorrt": "pip install 'e3d_deploy[gpu]', on a machine with an NVIDIA GPU and its driver",
    "tensorrt-rtx": "pip install 'e3d_deploy[rtx]', on a machine with an NVIDIA GPU and its driver",
    "onnxruntime-cuda": "pip install 'e3d_deploy[gpu]', on a machine with an NVIDIA GPU and its driver",
    "onnxruntime": "pip install 'e3d_deploy[cpu]'",
    "openvino": "pip install 'e3d_deploy[openvino]'",
    "torch": "pip install 'e3d_deploy[train]'",
    "torch-compiled": "pip install 'e3d_deploy[train]', on a machine with a C++ compiler",
    "torch-cuda-graph": "pip install 'e3d_deploy[train]' cuda-core with a PyTorch for CUDA, on a machine with an "
    "NVIDIA GPU and its driver",
    "emulated": "pip install 'e3d_deploy[train,cpu]'",
}
"""Command that installs each backend of this version."""


def installed() -> list[str]:
    """Return the names of the backends that can be opened here, preferred first.

    Their libraries and their driver are installed; TensorRT-RTX is left out if it does not support the GPU.
    """
    return openable(rtx_refusal())


def openable(rtx_refusal: str | None) -> list[str]:
    """Return what `installed` does, given why TensorRT-RTX does not support the GPU."""
    refused = () if _has_nvidia_driver() else ON_GPU
    if rtx_refusal:
        refused = (*refused, "tensorrt-rtx")
    if not version_of(("onnxruntime-gpu",)):  # the module has the same name without CUDA
        refused = (*refused, "onnxruntime-cuda")
    if (version_of(("torch",)) or "").endswith("+cpu"):
        refused = (*refused, "torch-cuda-graph")
    return [name for name, modules in BACKENDS.items() if name not in refused and all(map(_found, modules))]


def _found(module: str) -> bool:
    """Return True if a module, or the bindings behind an NVIDIA front end, is installed."""
    try:
        return any(find_spec(name) for name in (module, f"{module}_bindings"))
    except ModuleNotFoundError:  # the package that it is in is not
        return False


def extra_of(module: str) -> str | None:
    """Return the extra that installs a module; None if no extra does."""
    top = module.partition(".")[0].removesuffix("_bindings")
    return next((library.extra for library in LIBRARIES if library.module == top), None)


def machine() -> dict[str, Any]:
    """Return the processor and GPU of this machine. Loads `cuda.core` if there is a driver."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "nvidia_driver": _has_nvidia_driver(),
        "gpu": _gpu(),
    }


def version_of(packages: tuple[str, ...]) -> str | None:
    """Return the version of the first of these distributions that is installed; None if none is."""
    from importlib.metadata import PackageNotFoundError, version  # a third of the import of the runtime

    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _has_nvidia_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return False
    return True


def _gpu() -> str | None:
    """Describe the GPU that backends run on; return None if there is none, or if it cannot be queried."""
    try:
        device = _device()
        if device is None:
            return None
        from cuda.core import system

        driver = ".".join(map(str, system.get_user_mode_driver_version()))
        return f"{device.name}, compute capability {_capability(device)}, driver for CUDA {driver}"
    except Exception:  # a driver without a GPU raises one thing, an old cuda.core another; `e3d doctor` has to go on
        return None


def _device() -> Any:
    """Return the GPU that backends run on, as a device of `cuda.core`; None without a driver."""
    if not _has_nvidia_driver():
        return None
    from cuda.core import Device

    return Device(0)


def _capability(device: Any) -> str:
    return ".".join(map(str, device.compute_capability))


def rtx_refusal() -> str | None:
    """Return why TensorRT-RTX does not support the GPU here; None if it does, or if either is missing."""
    try:
        device = _device()
        if device is None or not _found("tensorrt_rtx"):
            return None
        return refusal(library("tensorrt-rtx"), _capability(device))
    except Exception:  # as in _gpu; nor may a library that does not load keep others from being found
        return None
