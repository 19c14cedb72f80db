"""What a backend's exceptions mean."""

from e3d_deploy.errors import ResourceLimit

NO_MEMORY = ("out of memory", "out_of_memory", "outofmemory", "failed to allocate", "bad_alloc", "bad allocation")
"""How libraries say it that have no class of their own for it, in lower case."""


def clear(error: Exception) -> Exception:
    """What to raise for an exception of a backend: a `ResourceLimit` where memory ran out, else itself."""
    if isinstance(error, ResourceLimit):
        return error
    said = f"{type(error).__name__} {error}".lower()
    if isinstance(error, MemoryError) or any(words in said for words in NO_MEMORY):
        return ResourceLimit(f"out of memory ({str(error) or type(error).__name__}); close streams, or allow fewer")
    return error
