"""What runs a step, and how one is chosen."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.policies import check_runs
from e3d_deploy.runtime.bundle import Bundle

State = Mapping[str, Any]
"""The tensors of `contract.states` by name. Only the backend that made it can read it: it may live on a device."""

REMEDY = {
    "onnxruntime": "pip install 'e3d_deploy[cpu]'",
    "torch": "pip install 'e3d_deploy[train]'",
    "emulated": "pip install 'e3d_deploy[train,cpu]'",
}
"""How to get each backend that runs in this version."""


class Backend(Protocol):
    """Runs the step graph. It holds no state, so that streams can share it."""

    name: str

    def initial_state(self) -> State:
        """The state before the first frame."""
        ...

    def step(self, frame: NDArray[np.float32], state: State) -> tuple[NDArray[np.float32], State]:
        """A frame [B, C, H, W] in, the prediction of the next one and the next state out.

        The state that comes in stays as it is and may be used again.
        """
        ...

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], State]:
        """The context [B, L, C, H, W] in, the forecast [B, horizon, C, H, W] and the last state out, in one call.

        Raises:
            BundleError: there is no clip graph.
        """
        ...

    def rollout(self, prediction: NDArray[np.float32], state: State) -> tuple[NDArray[np.float32], State]:
        """What `step` gave last in, the forecast [B, horizon, C, H, W] that begins with it out, in one call.

        The state that comes in stays as it is; the one that goes out is that after the forecast's last step,
        which has seen its last frame but one.

        Raises:
            BundleError: there is no rollout graph.
        """
        ...

    def to_arrays(self, state: State) -> dict[str, NDArray[Any]]:
        """A copy of a state in NumPy, as `contract.states` describes it."""
        ...

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """The state that `to_arrays` copied."""
        ...

    def close(self) -> None:
        """Free what it holds; it cannot be used after."""
        ...


def initial_arrays(config: ModelConfig, batch: int) -> dict[str, NDArray[Any]]:
    """The state before the first frame: zeros, one of them an entry of the history."""
    arrays = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in contract.states(config, batch)}
    arrays["written"][:] = 1
    return arrays


def open_backend(bundle: Bundle, name: str, *, threads: int | None = None) -> Backend:
    """The backend of a name, running the graphs of a bundle.

    Args:
        name: `onnxruntime`, `torch`, which is the yardstick in float32 whatever the graphs compute in, or `emulated`,
            which runs a graph whose types nothing here has, and slowly.
        threads: threads within a step; None leaves it to the library.

    Raises:
        BackendUnavailable: its library is not installed, does not load, or does not run the bundle's precision.
        ConfigError: no backend has this name.
    """
    check_runs(bundle.precision, name)
    try:
        match name:
            case "onnxruntime":
                from e3d_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend

                return OnnxRuntimeBackend(bundle, threads=threads)
            case "torch":
                # It lives with export, as runtime/ must work where there is no PyTorch.
                from e3d_deploy.export.torch_backend import TorchBackend

                return TorchBackend.of_bundle(bundle, threads=threads)
            case "emulated":
                from e3d_deploy.export.emulate import EmulatedBackend

                return EmulatedBackend(bundle, threads=threads)
            case "tensorrt" | "tensorrt-rtx":
                raise BackendUnavailable(
                    f"{name}: this version builds and checks engines, but does not run them yet; "
                    "use the backend onnxruntime or torch"
                )
            case _:
                raise ConfigError(f"backend: got {name!r}, expected one of auto, {', '.join(REMEDY)}")
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"{name}: {error.name} is not installed; {REMEDY[name]}") from error
    except ImportError as error:
        raise BackendUnavailable(f"{name}: does not load here ({error}); install it again: {REMEDY[name]}") from error
