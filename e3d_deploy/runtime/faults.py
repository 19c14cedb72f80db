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
    "allocate memory",  # the C library: "cannot allocate memory"; PyTorch: "can't allocate memory"
    "could not allocate",
    "could not be allocated",
    "memory allocation fail",
    "alloc_failed",  # cuBLAS and cuDNN
    "allocation_failed",
    "is smaller than requested bytes",  # the arena of ONNX Runtime
    "bad_alloc",
    "bad alloc",
)
"""Phrases, in lower case, in the errors of libraries that have no exception class for running out of memory."""


def translated(error: Exception) -> Exception:
    """Return a `ResourceLimit` if an exception, or one of its causes, means out of memory; otherwise the exception.

    The causes are those of `raise ... from`.
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
def translated_errors() -> Iterator[None]:
    """Replace exceptions in the `with` block by the exceptions that `translated` returns for them."""
    try:
        yield
    except Exception as error:
        if (found := translated(error)) is error:
            raise
        raise found from error


def _means_no_memory(error: BaseException) -> bool:
    if isinstance(error, E3DError):  # Our texts quote file names, which may contain one of the phrases.
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    description = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(phrase in description for phrase in NO_MEMORY)


def _first_line(error: BaseException) -> str:
    """Return the first line of an exception's text; some libraries append a C++ stack trace."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
