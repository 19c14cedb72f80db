"""Faults of ONNX Runtime: two packages with the same files, and a CUDA provider that does not load."""

import re
from collections.abc import Mapping, Sequence

from e3d_deploy.doctor.fault import Fault
from e3d_deploy.doctor.library_faults import stopped_by
from e3d_deploy.doctor.site import Installed, Site

BUILD = "onnxruntime/capi/build_and_package_info.py"
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
PACKAGES = {
    "libcudart": "nvidia-cuda-runtime",
    "libcublas": "nvidia-cublas",
    "libcublasLt": "nvidia-cublas",
    "libcurand": "nvidia-curand",
    "libcufft": "nvidia-cufft",
    "libcudnn": "nvidia-cudnn",
}
"""Packages of PyPI that contain the libraries of CUDA and cuDNN; before CUDA 13, the names end in `-cu12`."""


def build_of(one: Installed, field: str) -> str:
    """Return a field of ONNX Runtime's record of its build, such as `cuda_version`; empty if it has no such field."""
    found = re.search(rf"^{field}\s*=\s*['\"]([^'\"]*)", one.text(BUILD), re.MULTILINE)
    return found[1] if found else ""


def is_gpu_build(one: Installed) -> bool:
    """Return True if the files of ONNX Runtime are those of onnxruntime-gpu."""
    return build_of(one, "package_name") == "onnxruntime-gpu" or bool(build_of(one, "cuda_version"))


def twice_faults(site: Site, errors: Mapping[str, str], *, driver: bool) -> list[Fault]:
    """Return a fault if onnxruntime and onnxruntime-gpu are both installed."""
    cpu, gpu = site.find("onnxruntime"), site.find("onnxruntime-gpu")
    if cpu is None or gpu is None:
        return []
    kept = gpu if driver else cpu
    theirs = "onnxruntime-gpu" if is_gpu_build(gpu) else "onnxruntime"
    stops: tuple[str, ...] = ()
    if "onnxruntime" in errors:
        stops = stopped_by("onnxruntime")
    elif driver and theirs == "onnxruntime":
        stops = ("onnxruntime-cuda",)
    return [
        Fault(
            "onnxruntime-twice",
            f"onnxruntime {cpu.version} and onnxruntime-gpu {gpu.version} are both installed and overwrite each "
            f"other's files; the files are those of {theirs}",
            f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install {kept.name}=={kept.version}",
            stops,
        )
    ]


def provider_faults(gpu: Installed, missing: Sequence[str]) -> list[Fault]:
    """Return a fault if libraries of the CUDA provider are missing.

    Args:
        missing: names such as `libcudnn.so.9`.
    """
    if not missing:
        return []
    major = build_of(gpu, "cuda_version").partition(".")[0] or "13"
    named = ", ".join(f"{name} ({_package(name, major)})" for name in missing)
    return [
        Fault(
            "cuda-library-missing",
            f"onnxruntime-gpu {gpu.version} lists CUDAExecutionProvider, but cannot load {named}",
            f"pip install 'onnxruntime-gpu[cuda,cudnn]=={gpu.version}'",
            ("onnxruntime-cuda",),
        )
    ]


def _package(library: str, cuda: str) -> str:
    name = PACKAGES[library.partition(".")[0]]
    return f"{name}-cu{cuda}" if int(cuda) < 13 or name == "nvidia-cudnn" else name
