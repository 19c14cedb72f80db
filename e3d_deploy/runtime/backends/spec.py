"""Entry of a backend in the list of all backends."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from e3d_deploy.policies import POLICIES

if TYPE_CHECKING:
    from e3d_deploy.bundle.folder import Bundle
    from e3d_deploy.runtime.backends.protocol import Backend, Profiler


class Opener(Protocol):
    """Class of a backend, or a function that opens one."""

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
    """Command that installs it, shown in errors and in the docs."""
    device: Literal["cpu", "gpu"]
    """Device class; a backend on a GPU needs the NVIDIA driver."""
    policies: frozenset[str]
    """Precision policies it can run."""
    in_auto: bool = True
    """Considered by `backend="auto"`."""
    last_resort: str = ""
    """Reason why `auto` tries it only if no other backend is left; empty if it is tried with the others."""
    hardware: str = ""
    """Hardware or tools that it needs beside its libraries, such as a compiler."""
    distributions: tuple[str, ...] = ()
    """Distributions of which one must be installed, where others have the same modules but lack the device."""
    cuda_builds: tuple[str, ...] = ()
    """Distributions that must not be builds for the CPU alone, whose versions end in `+cpu`."""
    refusal: Callable[[], str | None] = lambda: None
    """Return why its library does not support the GPU of this machine; None if it does, or if either is missing."""
    runs_graphs: bool = True
    """Runs the ONNX graphs of the bundle or engines built from them; False for the PyTorch model."""
    variants: Mapping[str, str] | None = None
    """Variant of its own graphs by precision policy, of `variants.VARIANTS`; it takes the graphs for all where it has
    none. None if bundles are not exported for it by name."""
    hinted: frozenset[str] = frozenset()
    """Policies that it computes by a hint to its library, on graphs of its own in float32."""
    computed: "Callable[[Backend], Mapping[str, int]] | None" = None
    """Count the products of an opened backend's step by the precision that they run in; None if the library does not
    tell."""
    profiler: "Callable[[], Profiler] | None" = None
    """Import the function that times the nodes of a step; None if the library does not tell."""
    unprofiled: str = "its nodes are not timed in this version"
    """Reason why there is no profiler."""
    explained_by: Literal["session", "emulation"] | None = None
    """Session of ONNX Runtime in which a failed verification looks for the first node that is off."""
    summary: str
    """Description for the docs."""
    ran: str
    """Hardware that it ran on, for the docs."""

    @property
    def remedy(self) -> str:
        """Command that installs it, and the hardware that it needs."""
        return f"{self.install}, on a machine with {self.hardware}" if self.hardware else self.install

    @property
    def ordered_policies(self) -> list[str]:
        """Policies it can run, the cheapest first."""
        return [policy for policy in POLICIES if policy in self.policies]
