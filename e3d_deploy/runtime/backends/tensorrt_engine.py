"""One TensorRT engine: taken from a bundle, checked, and run in contexts between given addresses."""

import logging
from typing import Any

from e3d_deploy.bundle.folder import SIZES, Bundle
from e3d_deploy.bundle.manifest import GraphEntry
from e3d_deploy.bundle.plans import load_plan
from e3d_deploy.errors import BackendUnavailable, BundleError, E3DError, EngineError, ResourceLimit
from e3d_deploy.runtime.backends.cuda import Cuda
from e3d_deploy.tensorrt_library import Target, library, make_logger, refusal, remedy

log = logging.getLogger(__name__)

Range = tuple[int, int, int]
"""The fewest, the usual and the most streams of a profile."""
INVALID: tuple[tuple[str, type[E3DError], str], ...] = (
    ("VERSION_MISMATCH", BundleError, "was built by another version of TensorRT-RTX; build it again"),
    ("MALFORMED_ENGINE", BundleError, "is no engine of TensorRT-RTX; build it again"),
    ("UNSUPPORTED_CC", BackendUnavailable, "is for GPUs of another compute capability; build it for this one"),
    ("OLD_CUDA_DRIVER", BackendUnavailable, "needs a newer NVIDIA driver; update it"),
    ("OLD_CUDA_RUNTIME", BackendUnavailable, "needs a newer CUDA runtime; pip install --upgrade 'e3d_deploy[rtx]'"),
    ("CUDA_ERROR", BackendUnavailable, "finds no CUDA that works; install the NVIDIA driver again"),
    ("INSUFFICIENT_GPU_MEMORY", ResourceLimit, "needs more memory than the GPU has; run fewer streams at once"),
)
"""Reasons of TensorRT-RTX for not loading a plan, each with our error and what to do."""


class Engine:
    """The engine of one graph of a bundle, whose contexts share one piece of scratch memory and so run one at a time.

    Raises:
        BackendUnavailable: the library is not installed, or does not run the engine on this GPU.
        BundleError: there is no engine, or it may not be loaded, or it has other tensors than the graph.
        ResourceLimit: the GPU has not enough memory.
    """

    def __init__(self, bundle: Bundle, graph: str, target: Target, cuda: Cuda) -> None:
        self.trt, self.cuda, self.batch = library(target), cuda, bundle.batch
        self.name = f"{bundle.path / 'engines' / graph}.{target}.plan"
        self.logger = make_logger(self.trt)
        if target == "tensorrt-rtx" and (words := refusal(self.trt, cuda.compute_capability)):
            raise BackendUnavailable(f"{target}: {words}")
        plan = load_plan(
            bundle, graph, target=target, version=self.trt.__version__, compute_capability=cuda.compute_capability
        )
        try:
            self.runtime = self.trt.Runtime(self.logger)  # which runs no code of the host from a plan unless told to
        except TypeError as error:  # how the bindings say that there is none
            raise BackendUnavailable(f"{target}: does not run here ({self.logger.reason}); {remedy(target)}") from error
        check_validity(self.trt, self.runtime, plan, self.name)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            again = f"build it again: `e3d build {bundle.path} --target {target}`"
            raise self.failure(f"cannot be loaded; {again}", BundleError)
        self.inputs = self._check_tensors(bundle.entry(graph, target))
        self.ranges = self._ranges()
        self.scratch = cuda.allocate(max(1, self.engine.device_memory_size_v2))

    def _check_tensors(self, graph: GraphEntry) -> dict[str, tuple[int, ...]]:
        """Compare the tensors with the manifest; return the shapes of the inputs, with -1 for an open batch."""
        types = {"float32": self.trt.DataType.FLOAT, "int32": self.trt.DataType.INT32}
        modes = self.trt.TensorIOMode
        listed = {
            tensor.name: (mode, types.get(tensor.dtype), [-1 if side == "batch" else side for side in tensor.shape])
            for mode, tensors in ((modes.INPUT, graph.inputs), (modes.OUTPUT, graph.outputs))
            for tensor in tensors
        }
        engine, found = self.engine, {}
        for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
            shape = list(engine.get_tensor_shape(name))
            found[name] = (engine.get_tensor_mode(name), engine.get_tensor_dtype(name), shape)
        if odd := [name for name in {**listed, **found} if found.get(name) != listed.get(name)]:
            raise BundleError(f"{self.name}: its {odd[0]} is not as the manifest lists it; build it again")
        return {name: tuple(shape) for name, (mode, _, shape) in found.items() if mode == modes.INPUT}

    def _ranges(self) -> list[Range]:
        """Streams that each profile allows; none where their number is fixed."""
        name = next((name for name, shape in self.inputs.items() if -1 in shape), None)
        if name is None:
            return []
        profiles = range(self.engine.num_optimization_profiles)
        shapes = [self.engine.get_tensor_profile_shape(name, profile) for profile in profiles]
        return [(fewest[0], usual[0], most[0]) for fewest, usual, most in shapes]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of streams it takes: those of `SIZES` that a profile allows, and the usual number of each profile."""
        if not self.ranges:
            return (self.batch,)
        allowed = {size for size in SIZES for fewest, _, most in self.ranges if fewest <= size <= most}
        return tuple(sorted(allowed | {usual for _, usual, _ in self.ranges}))

    def _profile(self, batch: int) -> int:
        """The profile that is made for so many streams, or else the narrowest that allows them."""
        fitting = [index for index, (fewest, _, most) in enumerate(self.ranges) if fewest <= batch <= most]
        if not fitting:
            raise BundleError(f"{self.name}: has no profile for {batch} streams, as the step has; build it again")
        return min(fitting, key=lambda index: (self.ranges[index][1] != batch, self.ranges[index][2]))

    def context(self, batch: int) -> Any:
        """Return a context for `batch` streams. Each captured graph needs its own, which must not change afterwards.

        Raises:
            EngineError: TensorRT refuses.
            ResourceLimit: the GPU has not enough memory.
        """
        self.logger.errors.clear()
        context = self._new_context()
        if context is None:
            raise self.failure("gives no context")
        if self.ranges and not context.set_optimization_profile_async(self._profile(batch), self.cuda.handle):
            raise self.failure(f"does not take its profile for {batch} streams")
        for name, shape in self.inputs.items():
            if -1 in shape and not context.set_input_shape(name, (batch, *shape[1:])):
                raise self.failure(f"does not take {batch} streams")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise self.failure(f"does not know its shapes ({error})") from error
        if missing:
            raise self.failure(f"does not know the shape of {', '.join(missing)}")
        context.set_device_memory(int(self.scratch.handle), self.scratch.size)
        return context

    def _new_context(self) -> Any:
        own = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(self.trt, "CudaGraphStrategy"):
            return self.engine.create_execution_context(own)
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(own)
        config.cuda_graph_strategy = self.trt.CudaGraphStrategy.DISABLED  # the graphs are ours
        # Else the first runs, and with them a captured graph, have kernels that stand in for those made later.
        config.dynamic_shapes_kernel_specialization_strategy = self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return self.engine.create_execution_context(config)

    def enqueue(self, context: Any, addresses: dict[str, int]) -> None:
        """Put a run into the stream of the GPU, between these addresses.

        Raises:
            EngineError: TensorRT refuses.
        """
        self.logger.errors.clear()
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self.failure(f"does not take the address of {name}")
        if not context.execute_async_v3(self.cuda.handle):
            raise self.failure("could not be run")

    def failure(self, what: str, kind: type[E3DError] = EngineError) -> E3DError:
        """The error for what the library has just refused."""
        reason = self.logger.reason
        if "out of memory" in reason.lower() or "OutOfMemory" in reason:
            return ResourceLimit(f"{self.name}: {what} ({reason}); run fewer streams at once, or close other programs")
        return kind(f"{self.name}: {what} ({reason})")


def check_validity(trt: Any, runtime: Any, plan: bytes, name: str) -> None:
    """Ask TensorRT-RTX whether it runs a plan, before it loads it; TensorRT cannot be asked.

    Raises:
        BackendUnavailable, BundleError, ResourceLimit: it does not, and why.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, bits = runtime.get_engine_validity(plan)
    if validity == trt.EngineValidity.SUBOPTIMAL:
        log.warning("%s: runs on this GPU, but could run faster if it were built for it", name)
    if validity != trt.EngineValidity.INVALID:
        return
    for bit, kind, words in INVALID:
        if int(bits) & int(getattr(trt.EngineInvalidityDiagnostics, bit)):
            raise kind(f"{name}: {words}")
    raise BackendUnavailable(f"{name}: TensorRT-RTX does not run it here, and gives no reason; is there an NVIDIA GPU?")
