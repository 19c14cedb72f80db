"""Trials in processes of their own, because a library may crash or hang when it is loaded."""

import ctypes
import json
import mmap
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import e3d_deploy
from e3d_deploy.libraries import SWITCH

DEADLINE_S = 30.0
"""Time after which a trial counts as hanging (s)."""
CODE = """
import json, sys
root, kind, argument = sys.argv[1:]
if root not in sys.path:
    sys.path.insert(0, root)
from e3d_deploy.doctor import probe
sys.stdout.write("\\n" + json.dumps(probe.TRIALS[kind](argument)))
"""
SAFELY = {"onnxruntime": "e3d_deploy.onnxruntime_library", "openvino": "e3d_deploy.openvino_library"}
"""Modules that import a library without its telemetry."""
NO_H264 = "no H.264 encoder"
"""Error of PyAV if it lacks libx264, with which e3d_deploy writes videos."""
CUDA_LIBRARIES = re.compile(rb"lib(?:cudart|cublas|cublasLt|curand|cufft|cudnn)\.so\.\d+")
"""Names of the libraries of CUDA and cuDNN, in the file of ONNX Runtime's CUDA provider."""


def attempt(kind: str, argument: str = "") -> Any:
    """Run a trial of `TRIALS` in a new process and return its result.

    Returns:
        The result, or `{"error": REASON}` if the process crashes or hangs.

    Raises:
        OSError: Python cannot be started, such as in a program that embeds it.
    """
    root = str(Path(e3d_deploy.__file__).absolute().parents[1])  # may be a zip archive
    command = [sys.executable, "-c", CODE, root, kind, argument]
    # A folder of the library's name in the working directory must not be imported in its place, and a trial sends no
    # telemetry, even if the user switched it on.
    variables = {**os.environ, "PYTHONSAFEPATH": "1", SWITCH: "1"}
    try:
        done = subprocess.run(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it does not load within {DEADLINE_S:.0f} s"}
    if done.returncode < 0:
        return {"error": f"it crashes with {signal.Signals(-done.returncode).name}"}
    try:
        return json.loads(done.stdout.rpartition("\n")[2])
    except ValueError:
        return {"error": f"it ends Python with exit code {done.returncode}"}


def import_errors(modules: Sequence[str]) -> dict[str, str]:
    """Import modules, in as many processes as this machine has cores; return the errors by module.

    Without a Python that can be started, nothing is known, and there are no errors.

    The modules of a process that fails as a whole are imported again, each in a process of its own.
    """
    count = min(os.cpu_count() or 1, len(modules))
    groups = [modules[first::count] for first in range(count)]
    with ThreadPoolExecutor() as pool:
        return {module: error for found in pool.map(_group_errors, groups) for module, error in found.items()}


def _group_errors(modules: Sequence[str]) -> dict[str, str]:
    try:
        found: dict[str, str] = attempt("import", ",".join(modules))
    except OSError:
        return {}
    if "error" not in found:
        return found
    if len(modules) == 1:
        return {modules[0]: found["error"]}
    return {module: error for one in modules for module, error in _group_errors([one]).items()}


def _import(modules: str) -> dict[str, str]:
    """Import modules whose names are separated by commas; return the errors by module."""
    errors = {}
    for module in modules.split(","):
        try:
            if not (module == "torch" and _loads_torch()):
                found = import_module(SAFELY.get(module, module))
                if module == "av" and "libx264" not in found.codecs_available:
                    errors[module] = NO_H264
        except Exception as error:  # a broken library may raise anything
            errors[module] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return errors


def _loads_torch() -> bool:
    """Load the shared libraries of PyTorch; its complete import takes seconds."""
    spec = find_spec("torch")
    try:
        for folder in (spec and spec.submodule_search_locations) or ():
            ctypes.CDLL(str(Path(folder, "lib", "libtorch_python.so")))
            return True
    except OSError:  # The import may still succeed, because it loads CUDA first.
        pass
    return False


def _driver(_: str) -> dict[str, Any]:
    """Return the version of CUDA that the NVIDIA driver supports, CUDA's error code, and the number of GPUs."""
    cuda = ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    return {"version": version.value, "code": code, "gpus": count.value}


def _cuda_provider(provider: str) -> dict[str, Any]:
    """Load ONNX Runtime's CUDA provider as the backend does; return the missing libraries, or the error."""
    from e3d_deploy.onnxruntime_library import onnxruntime

    onnxruntime.preload_dlls()  # prints what it does not find
    with open(provider, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        names = sorted({name.decode() for name in CUDA_LIBRARIES.findall(content)})
    return {"missing": [name for name in names if not _loads(name)]}


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


TRIALS = {"import": _import, "driver": _driver, "cuda-provider": _cuda_provider}
"""Trials by name; each gets a text and returns JSON values."""
