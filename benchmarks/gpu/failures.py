"""Errors of a row in one line each, which says what to do where something can be done."""

import traceback

import torch

from e3d_deploy.errors import BackendUnavailable, E3DError

SKIPPED = (BackendUnavailable, ImportError)
"""Errors that say that something is not there; the row is skipped and not failed."""


def line_of(error: BaseException) -> str:
    """Return an error as one line."""
    words = str(error).strip()
    first = words.splitlines()[0] if words else ""
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory ({first.removeprefix('CUDA out of memory. ')[:160]}); run fewer streams (--batches)"
    if "no kernel image" in words:
        return f"this PyTorch has no kernels for this GPU ({arches()}); install a PyTorch built for it"
    if "driver version is insufficient" in words or "driver on your system is too old" in words:
        return f"the driver is too old for this PyTorch ({first}); update it, or install a PyTorch for an older CUDA"
    return first if isinstance(error, E3DError) else f"{type(error).__name__}: {first}"


def arches() -> str:
    """Return the compute capability of the GPU beside those that PyTorch was built for."""
    try:
        major, minor = torch.cuda.get_device_capability()
    except (RuntimeError, AssertionError):
        return f"built for {' '.join(torch.cuda.get_arch_list()) or 'no GPU'}"
    return f"it is {major}.{minor}, built for {' '.join(torch.cuda.get_arch_list())}"


def trace_of(error: BaseException) -> str:
    """Return the end of a traceback."""
    return "\n".join("".join(traceback.format_exception(error)).strip().splitlines()[-12:])
