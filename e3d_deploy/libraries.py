"""Libraries that parts of e3d_deploy need, with the extra that installs each library and its purpose."""

import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

SWITCH = "ORT_DISABLE_TELEMETRY"
"""Environment variable that controls the telemetry of ONNX Runtime; `onnxruntime_library` disables it by default."""


@dataclass(frozen=True)
class Library:
    """Package that a part of e3d_deploy needs."""

    module: str
    packages: tuple[str, ...]
    """Distributions that contain the module; one of them is enough."""
    extra: str
    gives: str
    """Features that need the package."""


LIBRARIES = (
    Library("torch", ("torch",), "train", "training, export, and PyTorch as the reference of e3d verify"),
    Library("lightning", ("lightning",), "train", "e3d train"),
    Library("safetensors", ("safetensors",), "train", "model files"),
    Library("onnx", ("onnx",), "train", "e3d export, and e3d pack --flavour onnxruntime"),
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
    Library("av", ("av",), "video", "reading and writing videos"),
    Library("tensorflow", ("tensorflow-cpu", "tensorflow"), "import-tf", "e3d import of google/e3d_lstm checkpoints"),
    Library("PIL", ("pillow",), "video", "folders of pictures, GIFs"),
    Library("fastapi", ("fastapi",), "serve", "e3d serve"),
    Library("uvicorn", ("uvicorn",), "serve", "e3d serve"),
    Library("websockets", ("websockets",), "serve", "live sessions of e3d serve"),
    Library("python_multipart", ("python-multipart",), "serve", "uploads to e3d serve"),
    Library("prometheus_client", ("prometheus-client",), "serve", "metrics of e3d serve"),
    Library("tritonclient", ("tritonclient",), "triton", "the client of several Triton servers"),
    Library("matplotlib", ("matplotlib",), "plot", "plots of drift and latency, and the report of e3d demo"),
    Library("tensorboard", ("tensorboard",), "tensorboard", "e3d train --tensorboard"),
)
GPU = "an NVIDIA GPU and its driver"
"""Requirement of the backends on a GPU."""


def pip_install(*extras: str) -> str:
    """Return the command that installs extras of e3d_deploy.

    The extra `gpu` installs onnxruntime-gpu. pip does not know that it overwrites the files of onnxruntime.
    """
    command = f"pip install 'e3d_deploy[{','.join(extras)}]'"
    return f"pip uninstall -y onnxruntime && {command}" if "gpu" in extras else command


def extra_of(module: str) -> str | None:
    """Return the extra that installs a module; None if no extra does."""
    top = module.partition(".")[0].removesuffix("_bindings")
    return next((library.extra for library in LIBRARIES if library.module == top), None)


def is_importable(module: str) -> bool:
    """Return True if a module can be found, without importing it."""
    try:
        spec = find_spec(module)
    except Exception:  # its package is missing, does not load, or is a stub; a stub may raise anything
        return False
    # A namespace package has search folders instead of a loader.
    return isinstance(spec, ModuleSpec) and bool(spec.loader or spec.submodule_search_locations)


def is_stub(module: str) -> bool:
    """Return True if `sys.modules` contains a stub of a module or its package, put there to prevent its import."""
    names = (module, module.partition(".")[0])
    return any(sys.modules.get(name) is not None and not is_importable(name) for name in names)
