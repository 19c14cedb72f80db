"""Backend that runs the PyTorch model on an NVIDIA GPU, its steps captured as CUDA graphs."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from e3d_deploy import checkpoint, contract
from e3d_deploy.bundle.folder import MODEL, Bundle
from e3d_deploy.errors import BackendUnavailable, EngineError, ResourceLimit
from e3d_deploy.libraries import GPU
from e3d_deploy.runtime.backends.cuda import Cuda, first_line
from e3d_deploy.runtime.backends.device import Addresses, DeviceBackend, Size
from e3d_deploy.runtime.backends.device_states import DeviceState, Layout
from e3d_deploy.runtime.backends.rollout import clip_by_steps, rollout_by_steps
from e3d_deploy.runtime.backends.torch_ring import RingStep, compiled
from e3d_deploy.runtime.backends.torch_ring_states import RingStates
from e3d_deploy.runtime.backends.torch_settings import OwnSettings
from e3d_deploy.tf32 import arithmetic

log = logging.getLogger(__name__)
Module = TypeVar("Module", bound=nn.Module)
Step = Callable[..., Tensor]
"""A `RingStep`, compiled or not."""
Key = tuple[int, int, bool]
"""Number of streams, the set that is read, and whether every ring is full."""

RINGS: dict[str, contract.DType] = {"bf16": "bfloat16", "fp16": "float16"}
"""Types of the rings by policy, those of the products that read them; float32 for all other policies."""
TYPES = {"float32": "<f4", "int32": "<i4", "float16": "<f2", "bfloat16": "<i2"}
"""Type strings of the CUDA array interface, which has none for bfloat16."""


class TorchGpu:
    """PyTorch on the GPU of a `Cuda` and in its stream."""

    def __init__(self, cuda: Cuda) -> None:
        self.device = torch.device("cuda", cuda.number)
        self.stream = torch.cuda.ExternalStream(cuda.handle, self.device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()  # one for all graphs, as they run one at a time

    @staticmethod
    def check() -> None:
        """Raise unless PyTorch finds a GPU.

        Raises:
            BackendUnavailable: this PyTorch has no CUDA, or finds no GPU.
        """
        if not torch.cuda.is_available():
            raise BackendUnavailable(
                f"torch-cuda-graph: PyTorch {torch.__version__} finds no GPU; install a PyTorch for CUDA, on a machine "
                f"with {GPU}"
            )

    def put(self, module: Module) -> Module:
        """Move a module to the GPU, wait until it is there, and return it."""
        moved = module.to(self.device)
        torch.cuda.synchronize(self.device)
        return moved

    def compile(self, ring: RingStep) -> Callable[..., Tensor]:
        """Return the step compiled for the GPU, which happens at its first run."""
        return compiled(ring)

    def over(self, address: int, tensor: contract.Tensor) -> Tensor:
        """Return a tensor over the memory at an address, without owning it."""
        described = {"shape": tensor.shape, "typestr": TYPES[tensor.dtype], "strides": None, "version": 3}
        owner = SimpleNamespace(__cuda_array_interface__={**described, "data": (address, False)})
        return torch.as_tensor(owner, device=self.device).view(getattr(torch, tensor.dtype))

    def run(self, work: Callable[[], object]) -> None:
        """Put work into the stream."""
        with torch.cuda.stream(self.stream):
            work()

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """Capture work that has run once; return a function that puts it into the stream by one launch.

        Raises:
            RuntimeError: it cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        # cuBLAS takes a workspace at its first product in a stream and keeps it. A graph must have its own, from its
        # pool: one from before would be freed when another backend closes, and with it memory that the graph writes.
        torch._C._cuda_clearCublasWorkspaces()
        try:
            # The outer one, for a capture that fails leaves the thread with our stream.
            with (
                torch.cuda.stream(self.stream),
                torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"),
            ):
                work()
        except RuntimeError:
            # PyTorch leaves its allocator in the state of a capture, and later allocations would go to the pool.
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(self.device.index, self.pool)
            raise
        finally:
            torch._C._cuda_clearCublasWorkspaces()

        def replay() -> None:
            with torch.cuda.stream(self.stream):
                graph.replay()

        return replay

    def release(self) -> None:
        """Give unused memory back to the GPU, including cuBLAS's workspaces, which PyTorch frees for all streams."""
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


class TorchGraphBackend(DeviceBackend):
    """Backend whose step changes rings in place, captured for each number of streams.

    There are four graphs of the step for a number of streams: from either set of states to the other, and with or
    without a mask for empty slots. All are captured before the first step. The graphs without a mask, which every step
    uses once the rings are full, are compiled by PyTorch first; that took 32 s on an H200, and is less from PyTorch's
    cache.

    Raises:
        BackendUnavailable: there is no GPU, or no PyTorch for it.
        ResourceLimit: the GPU has not enough memory.
    """

    name = "torch-cuda-graph"
    compiles = True

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        TorchGpu.check()
        cuda = Cuda()
        super().__init__(bundle.holding(()), cuda, bundle.sizes)
        self.steps: dict[Key, Callable[[], None]] = {}
        self.saves: dict[tuple[int, int], Callable[[], None]] = {}
        """Save the slots that a step overwrites, by number of streams and set."""
        with cuda.opening():
            cuda.compile_kernel()
            self.gpu = TorchGpu(cuda)
            last = bundle.precision != "fp32"  # the layout that tensor cores read
            with OwnSettings():
                model = checkpoint.load_content(bundle.held.shared(MODEL), bundle.path / MODEL)
                ring = RingStep(model, precision=bundle.precision, channels_last=last, in_place=True)
                self.ring = self.gpu.put(ring)
            self.compiled: Step = self.gpu.compile(ring)

    def new_states(self, batch: int) -> RingStates:
        return RingStates(self.cuda, self.bundle.config, batch, RINGS.get(self.bundle.precision, "float32"))

    def prepare(self, batch: int, size: Size) -> None:
        """Run each of the four steps once, on states that nobody holds yet, and capture it."""
        states = size.states
        assert isinstance(states, RingStates)
        for block in (*states.sets, states.rings):
            self.cuda.fill(block.memory, 0)
        steps: dict[Key, Callable[[], None]] = {}
        saves: dict[tuple[int, int], Callable[[], None]] = {}
        try:
            with self._failures(), OwnSettings():
                for side in (0, 1):
                    saves[batch, side] = self._captured(self._run_once(self._saving(size, states, side)))
                for full in (False, True):
                    for side in (0, 1):
                        steps[batch, side, full] = self._prepared(size, states, side, full=full)
        except ResourceLimit:
            steps.clear()
            saves.clear()
            self.gpu.release()  # so that fewer streams find memory
            raise
        self.steps |= steps
        self.saves |= saves

    def run_step(self, batch: int, side: int, addresses: Addresses) -> None:
        states = self._sizes[batch].states
        assert isinstance(states, RingStates)
        with self._failures():
            self.saves[batch, side]()
            states.begin(side)  # before the rings change, so that an interrupted step leaves a state whole
            self.steps[batch, side, states.full]()

    def _prepared(self, size: Size, states: RingStates, side: int, *, full: bool) -> Callable[[], None]:
        """Return a step from one set to the other, run once; captured, and compiled with full rings, if possible."""
        if full:
            log.info("%s: compiling the step for %d streams, which may take minutes", self.name, states.layout.batch)
            try:
                return self._captured(self._run_once(self._work(self.compiled, size, states, side, full=True)))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # errors of the compiler have no common base
                if self.compiled is self.ring:
                    raise
                cause = getattr(error, "inner_exception", error)
                log.warning(
                    "%s: PyTorch cannot compile the step (%s), so it runs uncompiled", self.name, first_line(cause)
                )
                self.compiled, self.compiles = self.ring, False
        return self._captured(self._run_once(self._work(self.ring, size, states, side, full=full)))

    def _work(self, step: Step, size: Size, states: RingStates, side: int, *, full: bool) -> Callable[[], None]:
        """Return the work of a step from one set to the other."""
        frame_form, addresses = contract.frame(self.bundle.config, states.layout.batch), size.addresses[side]
        frame = self.gpu.over(addresses[contract.FRAME], frame_form)
        prediction = self.gpu.over(addresses[contract.PREDICTION], frame_form)
        read, written = self._tensors(addresses, states)

        def work() -> None:
            with OwnSettings(), arithmetic(self.bundle.precision), torch.no_grad():
                prediction.copy_(step(frame, read, written, full=full))

        return work

    def _saving(self, size: Size, states: RingStates, side: int) -> Callable[[], None]:
        """Return the work of saving the slots that a step from a set overwrites."""
        read, written = self._tensors(size.addresses[side], states)

        def work() -> None:
            with OwnSettings(), torch.no_grad():
                self.ring.save(read, written)

        return work

    def _tensors(self, addresses: Addresses, states: RingStates) -> tuple[list[Tensor], list[Tensor]]:
        """Return the states that a step reads, and those that it writes, with saved slots in the places of rings."""
        read = [self.gpu.over(addresses[one.name], one) for one in _by_name(states.layout)]
        written = [self.gpu.over(addresses[contract.NEXT + one.name], one) for one in _by_name(states.in_set)]
        return read, written

    def _run_once(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run work once and return it, so that PyTorch compiles it, chooses convolutions and loads kernels."""
        self.gpu.run(work)
        self.cuda.synchronise()
        return work

    def _captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return work as a graph, or as it is where it cannot be captured."""
        try:
            return self.gpu.capture(work)
        except RuntimeError as error:
            self.captures = False
            log.warning(
                "%s: the step cannot be captured as a CUDA graph (%s), so each is enqueued kernel by kernel, "
                "which takes the processor longer",
                self.name,
                first_line(error),
            )
            return partial(self.gpu.run, work)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise failures of PyTorch as errors of the runtime."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise ResourceLimit(
                f"{self.name}: the GPU has no memory left ({first_line(error)}); run fewer streams at once, or close "
                "other programs"
            ) from error
        except RuntimeError as error:
            raise EngineError(
                f"{self.name}: PyTorch could not run the step ({first_line(error)}); open the bundle again, or use "
                "another backend"
            ) from error

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], DeviceState]:
        forecast, state = clip_by_steps(self, context, self.bundle.horizon)
        self.cuda.forget_time()  # of the last step alone
        return forecast, state

    def rollout(self, prediction: NDArray[np.float32], state: DeviceState) -> tuple[NDArray[np.float32], DeviceState]:
        self.check_open()
        forecast, state = rollout_by_steps(self, prediction, state, self.bundle.horizon)
        self.cuda.forget_time()
        return forecast, state

    def release(self) -> None:
        self.steps.clear()
        self.saves.clear()
        del self.ring, self.compiled
        self.gpu.release()


def _by_name(layout: Layout) -> list[contract.Tensor]:
    """Return the tensors of a layout in the order of `contract.states`."""
    return sorted(layout.tensors, key=lambda tensor: tensor.name)
