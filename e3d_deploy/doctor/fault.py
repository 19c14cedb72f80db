"""Faults of an installation, by code; docs/doctor.md lists them."""

from dataclasses import dataclass

CODES = {
    "e3d-shadowed": "Python imports another copy of e3d_deploy than the installed one.",
    "library-broken": "A library is installed but cannot be imported.",
    "numpy-mismatch": "A library was compiled for another version of NumPy.",
    "system-library-missing": "A library needs a shared library that the system lacks.",
    "h264-missing": "PyAV has no H.264 encoder, so videos can be neither written nor pushed.",
    "onnxruntime-twice": "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files.",
    "cuda-library-missing": "ONNX Runtime lists its CUDA provider, but a library of CUDA or cuDNN is missing.",
    "driver-missing": "A library is built for a GPU, but the NVIDIA driver is missing.",
    "driver-old": "The NVIDIA driver does not support the version of CUDA that a library needs.",
    "driver-mismatch": "The NVIDIA driver was updated, and its kernel module is still the old one.",
    "gpu-missing": "The NVIDIA driver is installed, but it finds no GPU.",
    "gpu-permission": "This user may not open the device files of the GPU.",
    "tensorrt-twice": "Several TensorRT packages are installed that replace each other.",
    "tensorrt-libs-missing": "The Python bindings of TensorRT or TensorRT-RTX are installed without their libraries.",
    "tensorrt-version": "The libraries of TensorRT or TensorRT-RTX have another version than the Python bindings.",
    "cache-homeless": "The user has no home folder, so engines and chosen backends are not cached.",
    "cache-unwritable": "The cache folder cannot be written, so engines and chosen backends are not cached.",
    "cache-full": "The disk of the cache folder is too full for an engine.",
    "telemetry-on": "The telemetry of ONNX Runtime was switched on.",
}
"""General description of each fault by its code."""


@dataclass(frozen=True)
class Fault:
    """Fault of this installation, and the command that mends it."""

    code: str
    """Key of `CODES`, for scripts."""
    what: str
    """Description in one sentence, without a full stop."""
    command: str
    """Shell command that mends the fault."""
    stops: tuple[str, ...] = ()
    """Names of the installed backends that do not work because of the fault."""

    def __post_init__(self) -> None:
        assert self.code in CODES
