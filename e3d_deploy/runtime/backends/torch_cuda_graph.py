"""Backend that runs the PyTorch model on an NVIDIA GPU, with steps captured as CUDA graphs."""

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
"""`RingStep`, compiled or not."""
Key = tuple[int, int, bool]
"""Batch size, set of states that the step reads, and True if every ring is full."""

RINGS: dict[str, contract.DType] = {"bf16": "bfloat16", "fp16": "float16"}
"""Data type of the rings by policy, equal to the type of the matrix products that read the rings; default float32."""
TYPES = {"float32": "<f4", "int32": "<i4", "float16": "<f2", "bfloat16": "<i2"}
"""Type strings of the CUDA array interface. The interface lacks bfloat16, which is passed as int16."""


class TorchGpu:
    """PyTorch on the GPU and in the CUDA stream of a `Cuda`."""

    def __init__(self, cuda: Cuda) -> None:
        self.device = torch.device("cuda", cuda.number)
        self.stream = torch.cuda.ExternalStream(cuda.handle, self.device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()  # All graphs share one pool, because they run one at a time.

    @staticmethod
    def check() -> None:
        """Check that PyTorch finds a GPU.

        Raises:
            BackendUnavailable: this PyTorch is built without CUDA, or finds no GPU.
        """
        if not torch.cuda.is_available():
            raise BackendUnavailable(
                f"torch-cuda-graph: PyTorch {torch.__version__} finds no GPU; install a PyTorch built for CUDA, on a "
                f"machine with {GPU}"
            )

    def put(self, module: Module) -> Module:
        """Move a module to the GPU, wait until it is there, and return it."""
        moved = module.to(self.device)
        torch.cuda.synchronize(self.device)
        return moved

    def compile(self, ring: RingStep) -> Callable[..., Tensor]:
        """Return the step compiled for the GPU; PyTorch compiles it at its first run."""
        return compiled(ring)

    def over(self, address: int, tensor: contract.Tensor) -> Tensor:
        """Return a tensor over the memory at a GPU address; the tensor does not own the memory."""
        described = {"shape": tensor.shape, "typestr": TYPES[tensor.dtype], "strides": None, "version": 3}
        owner = SimpleNamespace(__cuda_array_interface__={**described, "data": (address, False)})
        return torch.as_tensor(owner, device=self.device).view(getattr(torch, tensor.dtype))

    def run(self, work: Callable[[], object]) -> None:
        """Run `work` with this CUDA stream current, so that its kernels are enqueued there."""
        with torch.cuda.stream(self.stream):
            work()

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """Capture work as a CUDA graph and return a function that launches the graph in the stream.

        Args:
            work: function that enqueues kernels; it must have run earlier, so that nothing is compiled or loaded during
                the capture.

        Raises:
            RuntimeError: the work cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        # cuBLAS allocates a workspace at its first product in a stream and reuses it. The graph must get a workspace
        # from its own pool: an older workspace would be freed when another backend closes, and the graph would then
        # write to freed memory.
        torch._C._cuda_clearCublasWorkspaces()
        try:
            # The outer `stream` context is needed because a failed capture leaves our stream current in this thread.
            with (
                torch.cuda.stream(self.stream),
                torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"),
            ):
                work()
        except RuntimeError:
            # PyTorch's allocator still directs allocations to the pool, as during the capture; end that.
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
        """Return PyTorch's unused memory to the GPU, including the cuBLAS workspaces of all CUDA streams."""
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


class TorchGraphBackend(DeviceBackend):
    """Backend whose step updates rings in place and is captured as CUDA graphs for each batch size.

    Each batch size has four CUDA graphs of the step, which read set 0 or set 1 of the states, with or without a mask
    for empty slots. All four are captured before the first step. The two without a mask, which run once all rings are
    full, are compiled by PyTorch before they are captured. Compilation took 32 s on an H200, and takes less time once
    PyTorch has cached the result.

    Raises:
        BackendUnavailable: the machine has no GPU, or PyTorch does not support it.
        ResourceLimit: the GPU does not have enough memory.
    """

    name = "torch-cuda-graph"
    compiles = True

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        TorchGpu.check()
        cuda = Cuda()
        super().__init__(bundle.holding(()), cuda, bundle.sizes)
        self.steps: dict[Key, Callable[[], None]] = {}
        self.saves: dict[tuple[int, int], Callable[[], None]] = {}
        """Functions that save the slots that a step overwrites, by batch size and set that the step reads."""
        with cuda.opening():
            cuda.compile_kernel()
            self.gpu = TorchGpu(cuda)
            last = bundle.precision != "fp32"  # Tensor cores read channels last.
            with OwnSettings():
                model = checkpoint.load_content(bundle.held.shared(MODEL), bundle.path / MODEL)
                ring = RingStep(model, precision=bundle.precision, channels_last=last, in_place=True)
                self.ring = self.gpu.put(ring)
            self.compiled: Step = self.gpu.compile(ring)

    def new_states(self, batch: int) -> RingStates:
        return RingStates(self.cuda, self.bundle.config, batch, RINGS.get(self.bundle.precision, "float32"))

    def prepare(self, batch: int, size: Size) -> None:
        """Run each of the four steps once and capture it; the sets do not contain a state yet."""
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
            self.gpu.release()  # The memory may then be enough for a smaller batch size.
            raise
        self.steps |= steps
        self.saves |= saves

    def run_step(self, batch: int, side: int, addresses: Addresses) -> None:
        states = self._sizes[batch].states
        assert isinstance(states, RingStates)
        with self._failures():
            self.saves[batch, side]()
            states.begin(side)  # Before the rings change, so that an interrupted step leaves the state intact.
            self.steps[batch, side, states.full]()

    def _prepared(self, size: Size, states: RingStates, side: int, *, full: bool) -> Callable[[], None]:
        """Run a step that reads set `side` once, capture it, and return it.

        For full rings, the step is compiled first. If compilation or the capture fails, the step runs without it, and
        a warning is logged.
        """
        if full:
            log.info("%s: compiling the step for %d streams, which may take minutes", self.name, states.layout.batch)
            try:
                return self._captured(self._run_once(self._work(self.compiled, size, states, side, full=True)))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # The errors of the compiler have no common base class.
                if self.compiled is self.ring:
                    raise
                cause = getattr(error, "inner_exception", error)
                log.warning(
                    "%s: PyTorch cannot compile the step (%s), so it runs uncompiled", self.name, first_line(cause)
                )
                self.compiled, self.compiles = self.ring, False
        return self._captured(self._run_once(self._work(self.ring, size, states, side, full=full)))

    def _work(self, step: Step, size: Size, states: RingStates, side: int, *, full: bool) -> Callable[[], None]:
        """Return a function that enqueues a step that reads set `side` and writes the other set."""
        frame_form, addresses = contract.frame(self.bundle.config, states.layout.batch), size.addresses[side]
        frame = self.gpu.over(addresses[contract.FRAME], frame_form)
        prediction = self.gpu.over(addresses[contract.PREDICTION], frame_form)
        read, written = self._tensors(addresses, states)

        def work() -> None:
            with OwnSettings(), arithmetic(self.bundle.precision), torch.no_grad():
                prediction.copy_(step(frame, read, written, full=full))

        return work

    def _saving(self, size: Size, states: RingStates, side: int) -> Callable[[], None]:
        """Return a function that saves the slots that a step from set `side` overwrites."""
        read, written = self._tensors(size.addresses[side], states)

        def work() -> None:
            with OwnSettings(), torch.no_grad():
                self.ring.save(read, written)

        return work

    def _tensors(self, addresses: Addresses, states: RingStates) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors that a step reads, and those that it writes, where a saved slot replaces each ring."""
        read = [self.gpu.over(addresses[one.name], one) for one in _by_name(states.layout)]
        written = [self.gpu.over(addresses[contract.NEXT + one.name], one) for one in _by_name(states.in_set)]
        return read, written

    def _run_once(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run work once, so that PyTorch compiles it, chooses convolutions and loads kernels; return the work."""
        self.gpu.run(work)
        self.cuda.synchronise()
        return work

    def _captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return work captured as a CUDA graph, or uncaptured if the capture fails."""
        try:
            return self.gpu.capture(work)
        except RuntimeError as error:
            self.captures = False
            log.warning(
                "%s: the step cannot be captured as a CUDA graph (%s), so each step is enqueued kernel by "
                "kernel, which takes more CPU time",
                self.name,
                first_line(error),
            )
            return partial(self.gpu.run, work)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise PyTorch errors as E3DError."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise ResourceLimit(
                f"{self.name}: the GPU has no memory left ({first_line(error)}); run fewer streams at once, or close "
                "other programs"
            ) from error
        except RuntimeError as error:
            raise EngineError(
                f"{self.name}: PyTorch could not run the step ({first_line(error)}); load the bundle again, or use "
                "another backend"
            ) from error

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], DeviceState]:
        forecast, state = clip_by_steps(self, context, self.bundle.horizon)
        self.cuda.forget_time()  # The timing covers only the last step.
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
