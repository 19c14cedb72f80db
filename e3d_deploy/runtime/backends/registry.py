"""Opening of backends by name. A backend is imported only when it is opened, because its library may be missing."""

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

MAX_THREADS = max(16, 4 * (os.cpu_count() or 1))
"""Maximum number of threads within a step.

Larger numbers are almost certainly a typo. Libraries would start that many threads, which compete for the cores until
the process exits.
"""


def open_backend(bundle: Bundle, name: str, *, threads: int | None = None) -> Backend:
    """Open a backend by name, for one bundle.

    Args:
        name: a key of `specs.BACKENDS`.
        threads: CPU threads within a step; None lets the library choose. Backends on a GPU ignore `threads`.

    Raises:
        BackendUnavailable: the library of the backend is not installed, does not load, or does not run the precision
            of the bundle; or the backend needs a GPU, and the machine has none.
        BundleError: the bundle has no graph or no engine for the backend.
        ConfigError: no backend has this name, or the number of threads is invalid.
    """
    threads = check_threads(threads)
    spec = find(name)
    check_runs_bundle(bundle, name)
    for module in spec.modules:
        if is_stub(module) and not has_library(module):
            raise BackendUnavailable(
                f"{name}: {module} in sys.modules is a stub, not the library; load the bundle without the stub"
            )
    needed = bundle.holding(set(bundle.held) - {REFERENCE})  # The backend keeps these files in memory.
    try:
        return _opener(spec)(needed, threads=threads)
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"{name}: {error.name} is not installed; {spec.remedy}") from error
    # A partly installed library, or a stub in the place of a library, may raise AttributeError.
    except (ImportError, AttributeError) as error:
        raise BackendUnavailable(f"{name}: the library does not load ({error}); reinstall it: {spec.remedy}") from error


def check_threads(threads: Any) -> int | None:
    """Return `threads` as an int, or None for the library's choice.

    Raises:
        ConfigError: `threads` is neither None nor a whole number from 1 to `MAX_THREADS`.
    """
    if threads is None:
        return None
    count = check_count("threads", threads)
    if count > MAX_THREADS:
        raise ConfigError(
            f"threads: got more than {MAX_THREADS}, the maximum on this machine; use the number of CPU cores "
            f"({os.cpu_count()}), or omit it"
        )
    return count


def check_backend(backend: Any) -> None:
    """Check that an object has the `step` method of an opened backend.

    Raises:
        ConfigError: the object is a class, or has no `step` method.
    """
    if isinstance(backend, type) or not callable(getattr(backend, "step", None)):
        raise ConfigError(
            f"backend: got {backend!r}, expected a name such as onnxruntime, or an opened backend with the methods of "
            "runtime/backends/protocol.py"
        )


def _opener(spec: BackendSpec) -> Opener:
    """Import the class of a backend and, with it, the library.

    Raises:
        ImportError: the class or the library cannot be imported, for any reason except a lack of memory.
        MemoryError: the import ran out of memory.
    """
    try:
        return spec.load()
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise ImportError(f"{type(error).__name__}: {error}") from error


def check_runs_bundle(bundle: Bundle, name: str) -> None:
    """Check that a backend can run the precision of its step graph, or of the bundle if the backend runs no graphs.

    Raises:
        BackendUnavailable: the backend cannot run that precision.
        BundleError: the bundle has no step graph for the backend.
        ConfigError: no backend has this name.
    """
    check_runs(bundle.entry("step", name).precision if find(name).runs_graphs else bundle.precision, name)
