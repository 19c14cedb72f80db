"""Description of a backend; all other code reads the properties of a backend from its spec."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from e3d_deploy.policies import POLICIES

if TYPE_CHECKING:
    from e3d_deploy.bundle.folder import Bundle
    from e3d_deploy.runtime.backends.protocol import Backend, Profiler


class Opener(Protocol):
    """Class of a backend, or a function that opens a backend."""

    def __call__(self, bundle: "Bundle", *, threads: int | None = None) -> "Backend": ...


@dataclass(frozen=True, kw_only=True)
class BackendSpec:
    """One way to run a bundle."""

    name: str
    """Name on the command line, such as `openvino`."""
    load: Callable[[], Opener]
    """Import the class; called only when the backend is opened."""
    modules: tuple[str, ...]
    """Modules that must be importable."""
    install: str
    """Command that installs the libraries of the backend, shown in errors and in the docs."""
    device: Literal["cpu", "gpu"]
    """Device class; `gpu` needs the NVIDIA driver."""
    policies: frozenset[str]
    """Precision policies that the backend can run."""
    in_auto: bool = True
    """Considered by `backend="auto"`."""
    last_resort: str = ""
    """Reason why `auto` tries the backend only if no other backend agrees; empty if `auto` always tries the backend."""
    hardware: str = ""
    """Hardware or tools that the backend needs in addition to its libraries, such as a compiler."""
    distributions: tuple[str, ...] = ()
    """Python distributions, one of which must be installed; empty if importable modules are enough.

    They are listed if another distribution installs modules of the same names without support for the device.
    """
    cuda_builds: tuple[str, ...] = ()
    """Python distributions that must not be CPU-only builds, whose versions end in `+cpu`."""
    unsupported_reason: Callable[[], str | None] = lambda: None
    """Return why the library does not support the GPU of this machine.

    The function returns None if the library supports the GPU, or if the library or the GPU is missing.
    """
    runs_graphs: bool = True
    """True for a backend of the bundle's ONNX graphs, or of engines built from them; False for the PyTorch model."""
    variants: Mapping[str, str] | None = None
    """Variant of the backend-specific graphs, a key of `variants.VARIANTS`, by precision policy.

    For a policy that is not listed, the backend runs the shared graphs. None if `e3d export --backend` does not accept
    the backend.
    """
    hinted: frozenset[str] = frozenset()
    """Policies whose backend-specific graphs are in float32, with a hint to the library to compute in a low type."""
    count_products: "Callable[[Backend], Mapping[str, int]] | None" = None
    """Return how many convolutions and matrix products of an opened backend's step run in each precision.

    None if the library does not report this.
    """
    profiler: "Callable[[], Profiler] | None" = None
    """Import the function that times the nodes of a step; None if there is none."""
    unprofiled: str = "its nodes are not timed in this version"
    """Reason why `profiler` is None, shown in the error of `e3d profile`."""
    explained_by: Literal["session", "emulation"] | None = None
    """ONNX Runtime session in which a failed verification searches for the first node with a wrong output.

    `session` is the backend's own session; `emulation` is a session of the emulated graph. None skips the search.
    """
    summary: str
    """Description for the docs."""
    tested_on: str
    """Hardware that the backend was tested on, for the docs."""

    @property
    def remedy(self) -> str:
        """Command that installs the libraries of the backend, and the hardware that the backend needs."""
        return f"{self.install}, on a machine with {self.hardware}" if self.hardware else self.install

    @property
    def ordered_policies(self) -> list[str]:
        """Policies that the backend can run, ordered from cheapest."""
        return [policy for policy in POLICIES if policy in self.policies]
