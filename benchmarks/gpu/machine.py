"""Machine of a run: packages, GPU, and other programs that use it."""

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
"""Memory in use before we start above which another program must be using the GPU; an idle driver holds less."""


def host() -> dict[str, Any]:
    """Return date, packages and processor."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "versions": {package: one for package in PACKAGES if (one := version_of(package))},
    }


def gpu() -> dict[str, Any]:
    """Return properties of the GPU; this makes a context on it."""
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
        found["warning"] = f"PyTorch has no kernels made for this GPU ({arches()}); rows may fail or be slow"
    return found


def runs_on(major: int, minor: int, arches: Sequence[str]) -> bool:
    """Return True where PyTorch has machine code for a GPU, or code that its driver can compile.

    Machine code (`sm_`) runs on its own generation from its step on, and PTX (`compute_`) on all that came later.
    """
    for arch in arches:
        if one := re.fullmatch(r"(sm|compute)_(\d+)", arch):
            built = divmod(int(one.group(2)), 10)
            if built <= (major, minor) and (one.group(1) == "compute" or built[0] == major):
                return True
    return False


def no_gpu() -> str | None:
    """Return why PyTorch finds no GPU; None where it finds one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of an old driver, which we say below
        if torch.cuda.is_available():
            return None
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return line_of(error)
    return "its driver reports none"


def in_use() -> dict[str, Any]:
    """Return what other programs use of the GPU; to be asked before we use it."""
    memory = smi("--query-gpu=memory.used,utilization.gpu")
    programs = smi("--query-compute-apps=pid,used_memory,process_name")
    if isinstance(memory, str) or isinstance(programs, str) or not memory:
        return {"unknown": str(memory or programs)}
    used, busy = (one.strip().split()[0] for one in memory[0].split(","))
    found: dict[str, Any] = {"memory_mib": used, "utilization_percent": busy, "programs": programs}
    if programs or (used.isdigit() and int(used) > IN_USE_MIB):
        found["warning"] = (
            f"the GPU is in use by others ({used} MiB of memory, {len(programs)} programs, {busy} % busy); "
            "timings are doubtful and memory may not suffice; close them and run again"
        )
    return found


def clocks() -> dict[str, str] | str:
    """Return name, driver, clocks, power limit and temperature of the GPU now."""
    found = smi(f"--query-gpu={','.join(SMI)}")
    return (
        found if isinstance(found, str) else dict(zip(SMI, (one.strip() for one in found[0].split(",")), strict=False))
    )


def smi(query: str) -> list[str] | str:
    """Return the lines of nvidia-smi, or why there are none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return line_of(error)
    return done.stdout.splitlines()


def version_of(package: str) -> str | None:
    """Return the installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
