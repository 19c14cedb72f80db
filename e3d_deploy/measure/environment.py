"""Conditions of a measurement (machine, clock rates, threads, versions, date) and peak memory of this process."""

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from e3d_deploy import __version__
from e3d_deploy.inventory import machine, version_of

PACKAGES = (
    "numpy",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "cuda-core",
    "cuda-bindings",
    "av",
)
"""Packages whose versions are recorded if they are installed."""
CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def environment(threads: int | None) -> dict[str, Any]:
    """Return the conditions of a measurement as JSON values; None for values that this machine does not report.

    Args:
        threads: number of threads with which the backends were opened; None for their default.
    """
    return {
        **machine(),
        "threads": threads,
        "clock_mhz": _clock(),
        "max_clock_mhz": _max_clock(),
        "governor": _first_line(CPUFREQ / "scaling_governor"),
        "load_1_minute": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {"e3d_deploy": __version__, "python": platform.python_version(), **_versions()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "peak_resident_bytes": peak_resident(),
    }


def peak_resident() -> int | None:
    """Return the peak resident memory of this process (bytes); None if the system does not report it."""
    try:
        # Not getrusage, which reports the peak of the parent for a process that was just started.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _versions() -> dict[str, str]:
    return {package: found for package in PACKAGES if (found := version_of((package,)))}


def _clock() -> float | None:
    """Return the current clock rate of the first core (MHz); None if the system does not report it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(float(line.split(":", 1)[1]) for line in file if line.startswith("cpu MHz"))
    except (OSError, StopIteration):
        return None


def _max_clock() -> float | None:
    text = _first_line(CPUFREQ / "cpuinfo_max_freq")
    return float(text) / 1000 if text else None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
