"""Faults of the NVIDIA driver and of the GPU that it should find."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from e3d_deploy.doctor.fault import Fault
from e3d_deploy.doctor.gpu_builds import OLDEST_DRIVER, GpuBuild, driver_command, in_container

VERSION = Path("/proc/driver/nvidia/version")
DEVICES = Path("/dev")
MISMATCH = (803, 804)
"""Error codes of CUDA if the kernel module of the driver is older than its library."""


@dataclass(frozen=True)
class Driver:
    """State of the NVIDIA driver."""

    cuda: tuple[int, int]
    """Version of CUDA that the driver supports."""
    code: int
    """Error code of CUDA's initialisation; 0 means success."""
    gpus: int


def driver_faults(driver: Driver, builds: Sequence[GpuBuild], variables: Mapping[str, str]) -> list[Fault]:
    """Find a driver that is too old for libraries, and a GPU that they cannot use.

    Args:
        variables: environment variables.
    """
    found = []
    if old := [one for one in builds if one.cuda > driver.cuda[0]]:
        found.append(_old(driver, old))
    if builds and (driver.code or not driver.gpus):
        found.append(_no_gpu(driver, tuple(one.backend for one in builds), variables))
    return found


def _old(driver: Driver, old: Sequence[GpuBuild]) -> Fault:
    names = " and ".join(map(str, old))
    cuda, verb = max(one.cuda for one in old), "needs" if len(old) == 1 else "need"
    what = (
        f"the NVIDIA driver{_release()} supports CUDA {driver.cuda[0]}.{driver.cuda[1]}, but {names} {verb} CUDA "
        f"{cuda}, and therefore driver {OLDEST_DRIVER[cuda]} or newer"
    )
    return Fault("driver-old", what, driver_command(cuda), tuple(one.backend for one in old))


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
    return Fault("gpu-missing", what, in_container() or "sudo modprobe nvidia && nvidia-smi", stops)


def _opens(file: Path) -> bool:
    return os.access(file, os.R_OK | os.W_OK)


def _release() -> str:
    """Return the release of the driver with a space before it; empty if the system does not show it."""
    try:
        found = re.search(r"\b(\d{3}\.\d+(\.\d+)?)\b", VERSION.read_text())
    except OSError:
        return ""
    return f" {found[1]}" if found else ""
