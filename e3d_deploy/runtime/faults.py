"""Translation of backend exceptions into clear errors."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from e3d_deploy.errors import E3DError, ResourceLimit

NO_MEMORY = (
    "out of memory",
    "out_of_memory",
    "outofmemory",
    "not enough memory",
    "failed to allocate",
    "allocate memory",  # "cannot allocate memory" of the C library, "can't allocate memory" of PyTorch
    "could not allocate",
    "could not be allocated",
    "memory allocation fail",
    "alloc_failed",  # of cuBLAS and cuDNN
    "allocation_failed",
    "is smaller than requested bytes",  # the arena of ONNX Runtime
    "bad_alloc",
    "bad alloc",
)
"""Phrases, in lower case, of libraries that have no exception class for running out of memory."""


def clear(error: Exception) -> Exception:
    """Return a `ResourceLimit` if an exception of a backend means out of memory, else the exception itself.

    An error of ours means it if the exception that it was raised from does.
    """
    if isinstance(error, ResourceLimit):
        return error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ResourceLimit):
            return cause
        if _means_no_memory(cause):
            return ResourceLimit(f"out of memory ({_first_line(cause)}); close streams, or allow fewer")
        cause = cause.__cause__
    return error


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise what `clear` makes of an exception of a library."""
    try:
        yield
    except Exception as error:
        if (cleared := clear(error)) is error:
            raise
        raise cleared from error


def _means_no_memory(error: BaseException) -> bool:
    if isinstance(error, E3DError):  # whose text quotes names of files
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(words in said for words in NO_MEMORY)


def _first_line(error: BaseException) -> str:
    """Return what an exception says, without the stack of C++ that some libraries append."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
