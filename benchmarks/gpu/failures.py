"""Errors of rows as single lines, with a remedy if there is one."""

import traceback

import torch

from e3d_deploy.errors import BackendUnavailable, E3DError

SKIPPED = (BackendUnavailable, ImportError)
"""Errors for something that is not installed or not available; the row is skipped, not failed."""


def line_of(error: BaseException) -> str:
    """Return an error as one line."""
    words = str(error).strip()
    first = words.splitlines()[0] if words else ""
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory ({first.removeprefix('CUDA out of memory. ')[:160]}); run fewer streams (--batches)"
    if "no kernel image" in words:
        return f"PyTorch has no kernels for this GPU ({arches()}); install a PyTorch that is built for it"
    if "driver version is insufficient" in words or "driver on your system is too old" in words:
        return f"the driver is too old for this PyTorch ({first}); update it, or install a PyTorch for an older CUDA"
    return first if isinstance(error, E3DError) else f"{type(error).__name__}: {first}"


def arches() -> str:
    """Describe the compute capability of the GPU and those that PyTorch was built for."""
    try:
        major, minor = torch.cuda.get_device_capability()
    except (RuntimeError, AssertionError):
        return f"PyTorch is built for {' '.join(torch.cuda.get_arch_list()) or 'no GPU'}"
    return f"the GPU is {major}.{minor}, PyTorch is built for {' '.join(torch.cuda.get_arch_list())}"


def trace_of(error: BaseException) -> str:
    """Return the last lines of an error's traceback."""
    return "\n".join("".join(traceback.format_exception(error)).strip().splitlines()[-12:])
