"""Exceptions of libraries that mean out of memory."""

import errno

import numpy as np
import pytest
import torch

from e3d_deploy.errors import BundleError, ResourceLimit, StreamError
from e3d_deploy.runtime.faults import translated


class OutOfMemoryError(RuntimeError):
    """Error with the same name as those of PyTorch and Keras."""


class ChildError(ResourceLimit):
    """Subclass of ResourceLimit, which `translated` must return unchanged."""


def raised_from(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((10**12,), np.dtype(np.uint8)),  # type: ignore[attr-defined]
        OutOfMemoryError("no luck"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] data. DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("Exception from src/inference/src/cpp/core.cpp:117:\nbad allocation"),
        RuntimeError("[CPU] Could not allocate memory for the node"),
        RuntimeError("could not create a primitive: out_of_memory"),
        Exception(
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
            "Status Message: bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 1024"
        ),
        Exception("[ONNXRuntimeError] : 1 : FAIL : Available memory of 0 is smaller than requested bytes of 256"),
        RuntimeError("Requested amount of GPU memory (2147483648 bytes) could not be allocated."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        raised_from(StreamError("frame 3: it broke"), RuntimeError("std::bad_alloc")),
        raised_from(BundleError("a.onnx: cannot be loaded"), raised_from(RuntimeError("compiling"), MemoryError())),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_is_a_resource_limit(error: Exception) -> None:
    found = translated(error)
    assert type(found) is ResourceLimit
    assert str(found).startswith("out of memory (")
    assert str(found).endswith("; close streams, or allow fewer")
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        OSError(errno.ENOENT, "No such file or directory", "out of memory.onnx"),
        BundleError("/data/out of memory.e3d: damaged"),
        raised_from(StreamError("frame 3: it broke"), ValueError("not finite")),
        ChildError("too many streams"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert translated(error) is error


def test_a_limit_behind_another_error_counts() -> None:
    limit = ResourceLimit("the GPU has no memory left")
    assert translated(raised_from(StreamError("frame 3"), limit)) is limit


def test_the_allocator_of_pytorch_is_understood() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert isinstance(translated(error.value), ResourceLimit)
