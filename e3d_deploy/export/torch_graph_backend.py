"""The PyTorch model behind the runtime's Backend, on a GPU of NVIDIA, each step one captured CUDA graph."""

import logging
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from e3d_deploy import checkpoint, contract
from e3d_deploy.errors import BackendUnavailable, EngineError, ResourceLimit
from e3d_deploy.export.ring import RingStep, arithmetic
from e3d_deploy.export.torch_backend import clip_by_steps, rollout_by_steps
from e3d_deploy.runtime.backend import REMEDY
from e3d_deploy.runtime.bundle import MODEL, Bundle
from e3d_deploy.runtime.cuda import Cuda
from e3d_deploy.runtime.device_backend import Addresses, DeviceBackend
from e3d_deploy.runtime.device_states import DeviceState

log = logging.getLogger(__name__)
Module = TypeVar("Module", bound=nn.Module)

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
"""Policies that it computes in; of int8 and fp8 graphs it has the weights in float32 alone."""
TYPES = {"float32": "<f4", "int32": "<i4"}


class TorchGpu:
    """PyTorch on the GPU of a `Cuda` and in its stream."""

    def __init__(self, cuda: Cuda) -> None:
        self.device = torch.device("cuda", cuda.number)
        self.stream = torch.cuda.ExternalStream(cuda.handle, self.device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()  # one for all graphs, as they run one at a time

    @staticmethod
    def check() -> None:
        """Whether there is a GPU.

        Raises:
            BackendUnavailable: this PyTorch has no CUDA, or finds no GPU.
        """
        if not torch.cuda.is_available():
            raise BackendUnavailable(
                f"torch-cuda-graph: PyTorch {torch.__version__} finds no GPU; {REMEDY['torch-cuda-graph']}"
            )

    def put(self, module: Module) -> Module:
        """A module on the GPU, when it has arrived there."""
        moved = module.to(self.device)
        torch.cuda.synchronize(self.device)
        return moved

    def over(self, address: int, tensor: contract.Tensor) -> Tensor:
        """A tensor over memory of somebody else's."""
        described = {"shape": tensor.shape, "typestr": TYPES[tensor.dtype], "strides": None, "version": 3}
        owner = SimpleNamespace(__cuda_array_interface__={**described, "data": (address, False)})
        return torch.as_tensor(owner, device=self.device)

    def run(self, work: Callable[[], object]) -> None:
        """Put work into the stream."""
        with torch.cuda.stream(self.stream):
            work()

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """What puts work into the stream again by one launch; it does not run now, and must have run once.

        Raises:
            RuntimeError: it cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        # The outer one, for a capture that fails leaves the thread with our stream.
        with (
            torch.cuda.stream(self.stream),
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"),
        ):
            work()

        def replay() -> None:
            with torch.cuda.stream(self.stream):
                graph.replay()

        return replay

    def release(self) -> None:
        """Give memory that nothing uses any more back to the GPU."""
        torch.cuda.empty_cache()


class TorchGraphBackend(DeviceBackend):
    """The step over its ring, captured for each number of streams and each of the two sets of states.

    The first step from either set is an ordinary one, in which PyTorch also chooses its convolutions by trying them; it
    is then captured, and those after it launch the graph.

    Raises:
        BackendUnavailable: it does not run the bundle's precision; or there is no GPU, or no PyTorch for it.
        ResourceLimit: the GPU has not enough memory.
    """

    name = "torch-cuda-graph"

    def __init__(self, bundle: Bundle) -> None:
        if bundle.precision not in PRECISIONS:
            raise BackendUnavailable(
                f"{self.name} does not run {bundle.precision}, only {', '.join(PRECISIONS)}; use tensorrt"
            )
        TorchGpu.check()
        cuda = Cuda()
        super().__init__(bundle, cuda, bundle.sizes)
        self.steps: dict[tuple[int, int], Callable[[], None]] = {}
        with cuda.opening():
            cuda.compile_kernel()
            self.gpu = TorchGpu(cuda)
            model = checkpoint.load(bundle.path / MODEL)
            last = bundle.precision != "fp32"  # tensor cores want their channels so
            self.ring = self.gpu.put(RingStep(model, precision=bundle.precision, channels_last=last))

    def run_step(self, batch: int, side: int, addresses: Addresses) -> None:
        try:
            if (batch, side) in self.steps:
                self.steps[batch, side]()
            else:
                work = self._work(batch, addresses)
                self.gpu.run(work)
                self.steps[batch, side] = self._captured(work)
        except torch.OutOfMemoryError as error:
            raise ResourceLimit(
                f"{self.name}: the GPU has no memory left ({_first_line(error)}); run fewer streams at once, or close "
                "other programs"
            ) from error
        except RuntimeError as error:
            raise EngineError(f"{self.name}: PyTorch could not run the step ({_first_line(error)})") from error

    def _work(self, batch: int, addresses: Addresses) -> Callable[[], None]:
        """The step between given addresses."""
        config = self.bundle.config
        states = contract.states(config, batch)
        frame = self.gpu.over(addresses[contract.FRAME], contract.frame(config, batch))
        prediction = self.gpu.over(addresses[contract.PREDICTION], contract.frame(config, batch))
        read = [self.gpu.over(addresses[state.name], state) for state in states]
        written = [self.gpu.over(addresses[contract.NEXT + state.name], state) for state in states]

        def work() -> None:
            with arithmetic(self.bundle.precision), torch.no_grad():
                prediction.copy_(self.ring(frame, read, written))

        return work

    def _captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Work as a graph, or as it is where it cannot be captured."""
        self.cuda.synchronise()
        try:
            return self.gpu.capture(work)
        except RuntimeError as error:
            log.warning(
                "%s: the step cannot be captured as a CUDA graph (%s), so each is enqueued kernel by kernel, "
                "which takes the processor longer",
                self.name,
                _first_line(error),
            )
            return partial(self.gpu.run, work)

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], DeviceState]:
        forecast, state = clip_by_steps(self, context, self.bundle.horizon)
        self.cuda.forget_time()  # of the last step alone
        return forecast, state

    def rollout(self, prediction: NDArray[np.float32], state: DeviceState) -> tuple[NDArray[np.float32], DeviceState]:
        forecast, state = rollout_by_steps(self, prediction, state, self.bundle.horizon)
        self.cuda.forget_time()
        return forecast, state

    def run_graph(self, graph: str, batch: int, addresses: Addresses) -> None:
        raise NotImplementedError  # there is none but the step

    def release(self) -> None:
        self.steps.clear()
        del self.ring
        self.gpu.release()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
