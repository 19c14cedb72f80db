"""Fake installations of libraries in a folder of a test, for the checks of `e3d doctor`."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from e3d_deploy.doctor.fault import Fault
from e3d_deploy.doctor.site import Site

GPU_BUILD = "package_name = 'onnxruntime-gpu'\n__version__ = '1.31.1'\ncuda_version = '13.0'\n"
CPU_BUILD = "package_name = 'onnxruntime'\n__version__ = '1.32.0'\n"
BUILD = "onnxruntime/capi/build_and_package_info.py"


def install(folder: Path, name: str, version: str, files: Mapping[str, str] | None = None) -> Site:
    """Add a distribution to a folder of `sys.path`; return the site of that folder."""
    information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for path, content in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return Site((str(folder),))


def only(faults: list[Fault], code: str) -> Fault:
    """Return the only fault, and check its code."""
    assert [fault.code for fault in faults] == [code]
    return faults[0]


def compile_driver(folder: Path, *, cuda: int, code: int = 0, gpus: int = 1, crash: bool = False) -> None:
    """Compile a fake of the library of the NVIDIA driver.

    Args:
        cuda: version of CUDA that it supports, such as 12020 for 12.2.
        code: result of its initialisation.
        crash: end the process with SIGSEGV when it is initialised.
    """
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc to make a fake libcuda.so.1")
    initialise = "*(volatile int *)0 = 0; return 0;" if crash else f"return {code};"
    source = f"""
int cuDriverGetVersion(int *version) {{ *version = {cuda}; return 0; }}
int cuInit(unsigned int flags) {{ {initialise} }}
int cuDeviceGetCount(int *count) {{ *count = {gpus}; return 0; }}
"""
    (folder / "cuda.c").write_text(source)
    command = ["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "cuda.c"]
    subprocess.run(command, check=True, capture_output=True)
