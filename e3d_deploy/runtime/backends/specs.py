"""List of all backends, used by `load`, `auto`, `e3d doctor`, help texts and errors."""

import re
from collections.abc import Sequence

from e3d_deploy import inventory
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.policies import POLICIES
from e3d_deploy.runtime.backends.entries import ENTRIES
from e3d_deploy.runtime.backends.spec import BackendSpec

REFERENCE_BACKEND = "torch"
"""Reference backend: it runs the PyTorch model in float32, and other backends are compared with it."""
RECOMMENDED = "onnxruntime"
"""Backend that errors recommend if no backend is installed."""
NAME = re.compile(r"[a-z0-9]+([-_.][a-z0-9]+)*")
"""Pattern of valid backend names."""
BACKENDS: dict[str, BackendSpec] = {}
"""All backends by name, in the order in which `auto` prefers them."""


def register(spec: BackendSpec) -> None:
    """Append a backend to the list; `auto` prefers all earlier backends.

    Raises:
        ConfigError: `spec` is not a BackendSpec; or its name is `auto`, is registered already, or is not made of
            lower-case letters and digits with single hyphens, underscores or points between them.
    """
    if not isinstance(spec, BackendSpec):
        raise ConfigError(
            f"backend: got {spec!r}, expected a BackendSpec; create one with the name and the `load` function of the "
            "backend"
        )
    if not (isinstance(spec.name, str) and NAME.fullmatch(spec.name)):
        raise ConfigError(
            f"backend: got the name {spec.name!r}, expected lower-case letters and digits, with hyphens between them; "
            "register the new backend under another name"
        )
    if spec.name in BACKENDS or spec.name == "auto":
        raise ConfigError(f"backend: {spec.name!r} is already registered; register the new backend under another name")
    BACKENDS[spec.name] = spec


def find(name: str) -> BackendSpec:
    """Return the spec of a backend by name.

    Raises:
        ConfigError: no backend has this name.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise ConfigError(f"backend: got {name!r}, expected one of auto, {', '.join(BACKENDS)}")
    return BACKENDS[name]


def has_libraries(spec: BackendSpec) -> bool:
    """Return True if the libraries and the driver of a backend are installed; no library is imported."""
    driver = spec.device == "cpu" or inventory.has_nvidia_driver()
    built = not spec.distributions or inventory.version_of(spec.distributions) is not None
    for_cpu = any((inventory.version_of((one,)) or "").endswith("+cpu") for one in spec.cuda_builds)
    return driver and built and not for_cpu and all(map(inventory.has_library, spec.modules))


def installed() -> list[str]:
    """Return the names of the backends that can be opened on this machine, preferred first.

    Their libraries are installed. For a backend on a GPU, the driver is installed too, and the library supports the
    GPU.
    """
    return [spec.name for spec in BACKENDS.values() if has_libraries(spec) and spec.unsupported_reason() is None]


def candidates() -> list[str]:
    """Return the names of the installed backends that `auto` considers, preferred first."""
    return [name for name in installed() if BACKENDS[name].in_auto]


def export_backends() -> list[str]:
    """Return the names of the backends that a bundle can be exported for."""
    return [spec.name for spec in BACKENDS.values() if spec.variants is not None]


def profiled() -> str:
    """Return the names of the backends that have a profiler, as `a, b or c`."""
    *others, last = [spec.name for spec in BACKENDS.values() if spec.profiler is not None]
    return f"{', '.join(others)} or {last}"


def shared_policies(names: Sequence[str]) -> list[str]:
    """Return the policies that all of these backends can run, ordered from cheapest."""
    return [policy for policy in POLICIES if all(policy in find(name).policies for name in names)]


def check_runs(policy: str, name: str) -> None:
    """Check that a backend can run a precision policy.

    Raises:
        BackendUnavailable: the backend cannot run the policy.
        ConfigError: no backend has this name.
    """
    spec = find(name)
    if policy in spec.policies:
        return
    others = [one for one in export_backends() if policy in BACKENDS[one].policies]
    raise BackendUnavailable(
        f"{name} does not run {policy}, only {', '.join(spec.ordered_policies)}; "
        f"use {' or '.join(others) or 'another backend'}, or export the model again with a precision that it runs"
    )


for _entry in ENTRIES:
    register(_entry)
