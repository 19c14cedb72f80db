"""Backend that runs the PyTorch model on the CPU, compiled by `torch.compile`."""

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from e3d_deploy import checkpoint, contract
from e3d_deploy.bundle.folder import MODEL, Bundle
from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.runtime.backends.host import HostBackend, HostState, Tensors
from e3d_deploy.runtime.backends.rollout import clip_by_steps, rollout_by_steps
from e3d_deploy.runtime.backends.torch_ring import RingStep, compiled
from e3d_deploy.runtime.backends.torch_settings import OwnSettings

log = logging.getLogger(__name__)


class TorchCompiledBackend(HostBackend):
    """Backend that runs the PyTorch step with rings, compiled once for each batch size.

    The batch size of the bundle is compiled when the backend is opened, other batch sizes at their first step.
    Compilation takes minutes for the full-size network, and much less once PyTorch has cached the result.

    Raises:
        BackendUnavailable: PyTorch cannot compile the step, for example because there is no C++ compiler.
    """

    name = "torch-compiled"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, compiler: str = "inductor") -> None:
        super().__init__(bundle.holding(()))
        self.threads = threads
        self.names = [tensor.name for tensor in contract.states(bundle.config)]
        precision = "bf16" if bundle.precision == "bf16" else "fp32"  # CPUs have no TF32.
        with OwnSettings():
            model = checkpoint.load_content(bundle.held.shared(MODEL), bundle.path / MODEL)
            ring = RingStep(model, precision=precision)
        self.ring = compiled(ring, backend=compiler)
        log.info("%s: compiling, which may take minutes", self.name)
        frame = np.zeros(contract.frame(bundle.config, bundle.batch).shape, np.float32)
        try:
            self.step(frame, self.initial_state())
        except RuntimeError as error:  # All errors of the compiler derive from RuntimeError.
            cause = getattr(error, "inner_exception", error)
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            raise BackendUnavailable(
                f"{self.name}: PyTorch cannot compile the step ({reason}); install a C++ compiler such as g++, or use "
                "torch"
            ) from error

    def tensor(self, array: NDArray[Any]) -> torch.Tensor:
        with OwnSettings():
            return torch.from_numpy(array)

    def run(self, graph: str, batch: int, inputs: Tensors, outputs: Tensors) -> None:
        states = [inputs[name] for name in self.names]
        following = [outputs[contract.NEXT + name] for name in self.names]
        with OwnSettings(self.threads), torch.no_grad():
            outputs[contract.PREDICTION].copy_(self.ring(inputs[contract.FRAME], states, following))

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], HostState]:
        return clip_by_steps(self, context, self.bundle.horizon)

    def rollout(self, prediction: NDArray[np.float32], state: HostState) -> tuple[NDArray[np.float32], HostState]:
        self.check_open()
        return rollout_by_steps(self, prediction, state, self.bundle.horizon)

    def free(self) -> None:
        del self.ring
