"""Translation of backend exceptions into clear errors."""

from e3d_deploy.errors import ResourceLimit

NO_MEMORY = ("out of memory", "out_of_memory", "outofmemory", "failed to allocate", "bad_alloc", "bad allocation")
"""Phrases, in lower case, of libraries that have no exception class for running out of memory."""


def clear(error: Exception) -> Exception:
    """Return a `ResourceLimit` if an exception of a backend means out of memory, else the exception itself."""
    if isinstance(error, ResourceLimit):
        return error
    said = f"{type(error).__name__} {error}".lower()
    if isinstance(error, MemoryError) or any(words in said for words in NO_MEMORY):
        return ResourceLimit(f"out of memory ({str(error) or type(error).__name__}); close streams, or allow fewer")
    return error
