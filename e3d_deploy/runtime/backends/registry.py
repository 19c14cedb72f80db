"""Opens backends by name; each is imported when it is asked for, as its library may be absent."""

import os
from typing import Any

from e3d_deploy.bundle.folder import REFERENCE, Bundle
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.inventory import has_library
from e3d_deploy.libraries import is_stub
from e3d_deploy.runtime.arguments import check_count
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.backends.spec import BackendSpec, Opener
from e3d_deploy.runtime.backends.specs import check_runs, find

MOST_THREADS = max(16, 4 * (os.cpu_count() or 1))
"""Larger numbers are almost certainly a typo: libraries start that many threads, which take turns and do not end."""


def open_backend(bundle: Bundle, name: str, *, threads: int | None = None) -> Backend:
    """Open the backend of a name, running the graphs of a bundle.

    Args:
        name: of `specs.BACKENDS`.
        threads: threads of the processor within a step; None leaves it to the library. Backends on a GPU use none.

    Raises:
        BackendUnavailable: its library is not installed, does not load, or does not run the bundle's precision; or
            it needs a GPU, and there is none.
        BundleError: the bundle has no engine for it.
        ConfigError: an unknown backend, or an invalid number of threads.
    """
    threads = check_threads(threads)
    spec = find(name)
    check_runs_bundle(bundle, name)
    for module in spec.modules:
        if is_stub(module) and not has_library(module):
            raise BackendUnavailable(
                f"{name}: {module} is a stub in sys.modules and not the library; load the bundle without it"
            )
    needed = bundle.holding(set(bundle.held) - {REFERENCE})  # which the backend keeps in memory
    try:
        return _opener(spec)(needed, threads=threads)
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"{name}: {error.name} is not installed; {spec.remedy}") from error
    # AttributeError: the library is installed in part, or a stub stands in for it.
    except (ImportError, AttributeError) as error:
        raise BackendUnavailable(f"{name}: does not load here ({error}); install it again: {spec.remedy}") from error


def check_threads(threads: Any) -> int | None:
    """Return a number of threads, or None, which leaves it to the library.

    Raises:
        ConfigError: it is not a whole number from 1 to `MOST_THREADS`.
    """
    if threads is None:
        return None
    count = check_count("threads", threads)
    if count > MOST_THREADS:
        raise ConfigError(
            f"threads: got more than {MOST_THREADS}, the most on this machine; give as many as the processor has "
            f"cores ({os.cpu_count()}), or leave it out"
        )
    return count


def check_backend(backend: Any) -> None:
    """Check that an object looks like a backend.

    Raises:
        ConfigError: it does not.
    """
    if isinstance(backend, type) or not callable(getattr(backend, "step", None)):
        raise ConfigError(
            f"backend: got {backend!r}, expected a name such as onnxruntime, or an opened backend with the methods of "
            "runtime/backends/protocol.py"
        )


def _opener(spec: BackendSpec) -> Opener:
    """Import the class of a backend, and with it the library.

    Raises:
        ImportError: either cannot be imported, for any reason.
    """
    try:
        return spec.load()
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise ImportError(f"{type(error).__name__}: {error}") from error


def check_runs_bundle(bundle: Bundle, name: str) -> None:
    """Raise unless a backend runs the precision of the graph that it takes, or of the bundle if it takes none.

    Raises:
        BackendUnavailable: it does not.
        BundleError: the bundle has no graph for it.
        ConfigError: no backend has this name.
    """
    check_runs(bundle.entry("step", name).precision if find(name).runs_graphs else bundle.precision, name)
