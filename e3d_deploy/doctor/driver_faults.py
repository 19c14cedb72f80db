"""Faults of the NVIDIA driver and of the GPU that it should find."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from e3d_deploy.doctor.fault import Fault
from e3d_deploy.doctor.onnxruntime_faults import build_of
from e3d_deploy.doctor.site import Site

OLDEST_DRIVER = {12: 535, 13: 580}
"""Oldest driver for a major version of CUDA."""
VERSION = Path("/proc/driver/nvidia/version")
DEVICES = Path("/dev")
MISMATCH = (803, 804)
"""Error codes of CUDA if the kernel module of the driver is older than its library."""
CONTAINER = tuple(map(Path, ("/.dockerenv", "/run/.containerenv")))


@dataclass(frozen=True)
class Need:
    """Installed library that is built for a GPU."""

    library: str
    """Name and version."""
    cuda: int
    """Major version of CUDA that the library needs."""
    backend: str
    needs_driver: bool = True
    """False if the library is useful without a driver, because it builds engines."""


@dataclass(frozen=True)
class Driver:
    """State of the NVIDIA driver."""

    cuda: tuple[int, int]
    """Version of CUDA that the driver supports."""
    code: int
    """Error code of CUDA's initialisation; 0 means success."""
    gpus: int


def needs(site: Site) -> list[Need]:
    """Return the installed libraries that are built for a GPU."""
    found = []
    if gpu := site.find("onnxruntime-gpu"):
        cuda = _major(build_of(gpu, "cuda_version"))
        found.append(Need(f"onnxruntime-gpu {gpu.version}", cuda, "onnxruntime-cuda"))
    torch = site.find("torch")
    built = torch and re.search(r"^cuda\b.*=\s*'([\d.]+)'", torch.text("torch/version.py"), re.MULTILINE)
    if torch and built:
        found.append(Need(f"torch {torch.version}", _major(built[1]), "torch-cuda-graph"))
    for name in ("tensorrt", "tensorrt-rtx"):
        for cuda in OLDEST_DRIVER:
            if one := site.find(f"{name}-cu{cuda}-bindings"):
                found.append(Need(f"{name} {one.version}", cuda, name, needs_driver=name == "tensorrt"))
    return found


def _major(version: str) -> int:
    return int(version.partition(".")[0] or max(OLDEST_DRIVER))


def missing_driver_faults(needing: Sequence[Need]) -> list[Fault]:
    """Return a fault if libraries need an NVIDIA driver, on a machine without one."""
    wanting = [need for need in needing if need.needs_driver]
    if not wanting:
        return []
    names = " and ".join(f"{need.library} (CUDA {need.cuda})" for need in wanting)
    verb = "is" if len(wanting) == 1 else "are"
    what = f"{names} {verb} built for a GPU, but there is no NVIDIA driver (libcuda.so.1), so only the CPU is used"
    return [Fault("driver-missing", what, _install(max(need.cuda for need in wanting)))]


def driver_faults(driver: Driver, needing: Sequence[Need], variables: Mapping[str, str]) -> list[Fault]:
    """Find a driver that is too old, and a GPU that cannot be used.

    Args:
        variables: environment variables.
    """
    found = []
    if old := [need for need in needing if need.cuda > driver.cuda[0]]:
        found.append(_old(driver, old))
    if driver.code or not driver.gpus:
        found.append(_no_gpu(driver, tuple(need.backend for need in needing), variables))
    return found


def _old(driver: Driver, old: Sequence[Need]) -> Fault:
    names = " and ".join(need.library for need in old)
    cuda, verb = max(need.cuda for need in old), "needs" if len(old) == 1 else "need"
    what = (
        f"the NVIDIA driver{_release()} supports CUDA {driver.cuda[0]}.{driver.cuda[1]}, but {names} {verb} CUDA "
        f"{cuda}, and therefore driver {OLDEST_DRIVER[cuda]} or newer"
    )
    return Fault("driver-old", what, _install(cuda), tuple(need.backend for need in old))


def _no_gpu(driver: Driver, stops: tuple[str, ...], variables: Mapping[str, str]) -> Fault:
    if driver.code in MISMATCH:
        what = f"the NVIDIA driver was updated, but its kernel module was not (CUDA error {driver.code})"
        return Fault("driver-mismatch", what, "sudo reboot", stops)
    closed = [file for file in sorted(DEVICES.glob("nvidia*")) if not file.is_dir() and not _opens(file)]
    if closed:
        group = closed[0].group() if closed[0].stat().st_mode & 0o060 == 0o060 else "video"
        what = f"this user may not open {closed[0]}, so the NVIDIA driver finds no GPU"
        return Fault("gpu-permission", what, f'sudo usermod -aG {group} "$USER" && newgrp {group}', stops)
    what = "the NVIDIA driver is installed, but it finds no GPU" + (
        f" (CUDA error {driver.code})" if driver.code else ""
    )
    if "CUDA_VISIBLE_DEVICES" in variables:
        what += f"; CUDA_VISIBLE_DEVICES is {variables['CUDA_VISIBLE_DEVICES']!r}"
        return Fault("gpu-missing", what, "unset CUDA_VISIBLE_DEVICES", stops)
    return Fault("gpu-missing", what, _in_container() or "sudo modprobe nvidia && nvidia-smi", stops)


def _opens(file: Path) -> bool:
    return os.access(file, os.R_OK | os.W_OK)


def _release() -> str:
    """Return the release of the driver with a space before it; empty if the system does not show it."""
    try:
        found = re.search(r"\b(\d{3}\.\d+(\.\d+)?)\b", VERSION.read_text())
    except OSError:
        return ""
    return f" {found[1]}" if found else ""


def _install(cuda: int) -> str:
    return _in_container() or f"sudo apt install nvidia-driver-{OLDEST_DRIVER.get(cuda, max(OLDEST_DRIVER.values()))}"


def _in_container() -> str:
    return "docker run --gpus all IMAGE" if any(map(Path.exists, CONTAINER)) else ""
