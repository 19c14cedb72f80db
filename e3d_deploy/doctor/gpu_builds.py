"""Installed libraries that are built for a GPU, and the version of CUDA that they need."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from e3d_deploy.doctor.fault import Fault
from e3d_deploy.doctor.onnxruntime_faults import build_of
from e3d_deploy.doctor.site import Site

OLDEST_DRIVER = {12: 535, 13: 580}
"""Oldest driver for a major version of CUDA."""
CONTAINER = tuple(map(Path, ("/.dockerenv", "/run/.containerenv")))
BUS = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", "0x03"
"""Vendor of GPUs by NVIDIA on the PCI bus, and the beginning of the class of GPUs."""


@dataclass(frozen=True)
class GpuBuild:
    """Installed library that is built for a GPU."""

    name: str
    """Name of the distribution; for TensorRT, of the product."""
    version: str
    cuda: int
    """Major version of CUDA that the library needs."""
    backend: str
    needs_driver: bool = True
    """False if the library is useful without a driver, because it builds engines."""

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def gpu_builds(site: Site) -> list[GpuBuild]:
    """Return the installed libraries that are built for a GPU."""
    found = []
    if gpu := site.find("onnxruntime-gpu"):
        found.append(GpuBuild(gpu.name, gpu.version, _major(build_of(gpu, "cuda_version")), "onnxruntime-cuda"))
    torch = site.find("torch")
    built = torch and re.search(r"^cuda\b.*=\s*'([\d.]+)'", torch.text("torch/version.py"), re.MULTILINE)
    if torch and built:
        found.append(GpuBuild(torch.name, torch.version, _major(built[1]), "torch-cuda-graph"))
    for name in ("tensorrt", "tensorrt-rtx"):
        for cuda in OLDEST_DRIVER:
            if one := site.find(f"{name}-cu{cuda}-bindings"):
                found.append(GpuBuild(name, one.version, cuda, name, needs_driver=name == "tensorrt"))
    return found


def _major(version: str) -> int:
    return int(version.partition(".")[0] or max(OLDEST_DRIVER))


def missing_driver_faults(builds: Sequence[GpuBuild]) -> list[Fault]:
    """Return faults if libraries are built for a GPU, on a machine without an NVIDIA driver.

    On a machine with an NVIDIA GPU, the driver is missing; otherwise the libraries are unsuitable. Only PyTorch for
    CUDA is suitable for both, and it is what pip installs under Linux by default.
    """
    wanting = [one for one in builds if one.needs_driver]
    if not wanting:
        return []
    if not has_nvidia_gpu():
        return [_unsuitable(one) for one in wanting if one.name != "torch"]
    names = " and ".join(f"{one} (CUDA {one.cuda})" for one in wanting)
    verb = "is" if len(wanting) == 1 else "are"
    what = f"{names} {verb} built for a GPU, but there is no NVIDIA driver (libcuda.so.1), so only the CPU is used"
    return [Fault("driver-missing", what, driver_command(max(one.cuda for one in wanting)))]


def _unsuitable(one: GpuBuild) -> Fault:
    what = f"{one} is built for a GPU (CUDA {one.cuda}), but this machine has neither an NVIDIA GPU nor its driver"
    commands = {
        "onnxruntime-gpu": "pip uninstall -y onnxruntime-gpu && pip install onnxruntime",
        "tensorrt": "pip uninstall -y tensorrt"
        + "".join(f" tensorrt-cu{one.cuda}{part}" for part in ("", "-bindings", "-libs")),
    }
    return Fault("driver-missing", what, commands[one.name])


def has_nvidia_gpu() -> bool:
    """Return True if the PCI bus has a GPU by NVIDIA, or if the system does not show the bus."""
    return not BUS.exists() or any(map(_is_nvidia_gpu, BUS.iterdir()))


def _is_nvidia_gpu(device: Path) -> bool:
    with suppress(OSError):
        return (device / "vendor").read_text().strip() == NVIDIA and (device / "class").read_text().startswith(DISPLAY)
    return False


def driver_command(cuda: int) -> str:
    """Return the command after which the driver for a version of CUDA is available."""
    return in_container() or f"sudo apt install nvidia-driver-{OLDEST_DRIVER.get(cuda, max(OLDEST_DRIVER.values()))}"


def in_container() -> str:
    """Return the command that passes the GPU into a container; empty outside a container."""
    return "docker run --gpus all IMAGE" if any(map(Path.exists, CONTAINER)) else ""
