"""Facts about the machine of a run: packages, GPU, and other programs that use the GPU."""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.gpu.failures import arches, line_of

PACKAGES = (
    *("torch", "triton", "numpy", "safetensors", "onnx", "onnxruntime", "onnxruntime-gpu", "cuda-core"),
    *("cuda-bindings", "cuda-pathfinder", "lightning", "tensorrt", "tensorrt-rtx-cu13-bindings", "nvidia-cudnn-cu13"),
)
SMI = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")
IN_USE_MIB = 300
"""GPU memory in use before the run above which another program must be using the GPU (MiB).

An idle driver uses less.
"""


def host() -> dict[str, Any]:
    """Return the date, the number of processors, and the versions of Python and packages."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "versions": {package: one for package in PACKAGES if (one := version_of(package))},
    }


def gpu() -> dict[str, Any]:
    """Return the properties of the GPU; creates a CUDA context."""
    properties = torch.cuda.get_device_properties(0)
    capability = f"{properties.major}.{properties.minor}"
    found = {
        "gpu": properties.name,
        "compute_capability": capability,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "arches": torch.cuda.get_arch_list(),
        "nvidia_smi": clocks(),
    }
    if not runs_on(properties.major, properties.minor, found["arches"]):
        found["warning"] = f"PyTorch has no kernels for this GPU ({arches()}); rows may fail or be slow"
    return found


def runs_on(major: int, minor: int, arches: Sequence[str]) -> bool:
    """Return True if PyTorch has machine code for a GPU, or PTX that the driver can compile for it.

    Machine code (`sm_`) runs on GPUs of the same major version and an equal or later minor version. PTX (`compute_`)
    runs on all equal or later versions.

    Args:
        arches: result of `torch.cuda.get_arch_list`.
    """
    for arch in arches:
        if one := re.fullmatch(r"(sm|compute)_(\d+)", arch):
            built = divmod(int(one.group(2)), 10)
            if built <= (major, minor) and (one.group(1) == "compute" or built[0] == major):
                return True
    return False


def no_gpu() -> str | None:
    """Return the reason why PyTorch finds no GPU; None if it finds one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of an old driver; the reason below says the same
        if torch.cuda.is_available():
            return None
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return line_of(error)
    return "the driver reports none"


def in_use() -> dict[str, Any]:
    """Return the use of the GPU by other programs; call it before this process uses the GPU."""
    memory = smi("--query-gpu=memory.used,utilization.gpu")
    programs = smi("--query-compute-apps=pid,used_memory,process_name")
    if isinstance(memory, str) or isinstance(programs, str) or not memory:
        return {"unknown": str(memory or programs)}
    used, busy = (one.strip().split()[0] for one in memory[0].split(","))
    found: dict[str, Any] = {"memory_mib": used, "utilization_percent": busy, "programs": programs}
    if programs or (used.isdigit() and int(used) > IN_USE_MIB):
        found["warning"] = (
            f"other programs use the GPU ({used} MiB of memory, {len(programs)} programs, {busy} % busy); timings are "
            "unreliable and memory may not suffice; close the programs and run again"
        )
    return found


def clocks() -> dict[str, str] | str:
    """Return the current state of the GPU: name, driver, clocks, power limit and temperature."""
    found = smi(f"--query-gpu={','.join(SMI)}")
    return (
        found if isinstance(found, str) else dict(zip(SMI, (one.strip() for one in found[0].split(",")), strict=False))
    )


def smi(query: str) -> list[str] | str:
    """Run a query of nvidia-smi; return its lines, or the error as text."""
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return line_of(error)
    return done.stdout.splitlines()


def version_of(package: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
