"""One TensorRT engine: loaded from a bundle, checked, and run with inputs and outputs at given addresses."""

import logging
from typing import Any

from e3d_deploy.bundle.folder import SIZES, Bundle
from e3d_deploy.bundle.manifest import GraphEntry
from e3d_deploy.bundle.plans import load_plan
from e3d_deploy.errors import BackendUnavailable, BundleError, E3DError, EngineError, ResourceLimit
from e3d_deploy.runtime.backends.cuda import Cuda
from e3d_deploy.tensorrt_library import Target, library, make_logger, remedy, unsupported_reason

log = logging.getLogger(__name__)

Range = tuple[int, int, int]
"""Fewest, usual and most streams of an optimization profile; TensorRT calls them minimum, optimum and maximum."""
INVALID: tuple[tuple[str, type[E3DError], str], ...] = (
    ("VERSION_MISMATCH", BundleError, "was built by another version of TensorRT-RTX; build it again"),
    ("MALFORMED_ENGINE", BundleError, "is not a TensorRT-RTX engine; build it again"),
    ("UNSUPPORTED_CC", BackendUnavailable, "is for GPUs of another compute capability; build it for this one"),
    ("OLD_CUDA_DRIVER", BackendUnavailable, "needs a newer NVIDIA driver; update it"),
    ("OLD_CUDA_RUNTIME", BackendUnavailable, "needs a newer CUDA runtime; pip install --upgrade 'e3d_deploy[rtx]'"),
    ("CUDA_ERROR", BackendUnavailable, "cannot use CUDA; reinstall the NVIDIA driver"),
    ("INSUFFICIENT_GPU_MEMORY", ResourceLimit, "needs more memory than the GPU has; run fewer streams at once"),
)
"""Reasons why TensorRT-RTX does not load a plan, each with the E3DError to raise, and its message and advice."""


class Engine:
    """Engine for one graph of a bundle. Its execution contexts share scratch memory, so only one may run at a time.

    Raises:
        BackendUnavailable: the library is not installed, or does not run the engine on this GPU.
        BundleError: the bundle has no engine for the graph; or the engine may not be loaded; or its tensors differ from
            those of the graph.
        ResourceLimit: the GPU does not have enough memory.
    """

    def __init__(self, bundle: Bundle, graph: str, target: Target, cuda: Cuda) -> None:
        self.trt, self.cuda, self.batch = library(target), cuda, bundle.batch
        self.name = f"{bundle.path / 'engines' / graph}.{target}.plan"
        self.logger = make_logger(self.trt)
        if target == "tensorrt-rtx" and (words := unsupported_reason(self.trt, cuda.compute_capability)):
            raise BackendUnavailable(f"{target}: {words}")
        plan = load_plan(
            bundle, graph, target=target, version=self.trt.__version__, compute_capability=cuda.compute_capability
        )
        try:
            self.runtime = self.trt.Runtime(self.logger)  # By default, the runtime runs no host code of a plan.
        except TypeError as error:  # The bindings raise TypeError if the library creates no runtime.
            raise BackendUnavailable(f"{target}: cannot start ({self.logger.reason}); {remedy(target)}") from error
        check_validity(self.trt, self.runtime, plan, self.name)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            again = f"build it again: `e3d build {bundle.path} --target {target}`"
            raise self.failure(f"cannot be loaded; {again}", BundleError)
        self.inputs = self._check_tensors(bundle.entry(graph, target))
        self.ranges = self._ranges()
        self.scratch = cuda.allocate(max(1, self.engine.device_memory_size_v2))

    def _check_tensors(self, graph: GraphEntry) -> dict[str, tuple[int, ...]]:
        """Check that the tensors match the manifest; return the input shapes, with -1 for a dynamic batch axis."""
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
            raise BundleError(f"{self.name}: its tensor {odd[0]} differs from the manifest; build the engine again")
        return {name: tuple(shape) for name, (mode, _, shape) in found.items() if mode == modes.INPUT}

    def _ranges(self) -> list[Range]:
        """Return the range of streams of each optimization profile; empty if the batch size is fixed."""
        name = next((name for name, shape in self.inputs.items() if -1 in shape), None)
        if name is None:
            return []
        profiles = range(self.engine.num_optimization_profiles)
        shapes = [self.engine.get_tensor_profile_shape(name, profile) for profile in profiles]
        return [(fewest[0], usual[0], most[0]) for fewest, usual, most in shapes]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes that the engine accepts, ascending.

        They are the sizes in `SIZES` that a profile allows, and the usual size of each profile.
        """
        if not self.ranges:
            return (self.batch,)
        allowed = {size for size in SIZES for fewest, _, most in self.ranges if fewest <= size <= most}
        return tuple(sorted(allowed | {usual for _, usual, _ in self.ranges}))

    def _profile(self, batch: int) -> int:
        """Return the index of the profile for `batch` streams.

        That is the profile whose usual size is `batch`; if there is none, of the profiles that allow `batch` streams,
        the one with the lowest maximum.
        """
        fitting = [index for index, (fewest, _, most) in enumerate(self.ranges) if fewest <= batch <= most]
        if not fitting:
            raise BundleError(f"{self.name}: has no profile for {batch} streams, unlike the step; build it again")
        return min(fitting, key=lambda index: (self.ranges[index][1] != batch, self.ranges[index][2]))

    def context(self, batch: int) -> Any:
        """Return an execution context for `batch` streams.

        Each captured graph needs its own context, which must not change afterwards.

        Raises:
            BundleError: no profile allows `batch` streams.
            EngineError: TensorRT reports an error.
            ResourceLimit: the GPU does not have enough memory.
        """
        self.logger.errors.clear()
        context = self._new_context()
        if context is None:
            raise self.failure("cannot create an execution context")
        if self.ranges and not context.set_optimization_profile_async(self._profile(batch), self.cuda.handle):
            raise self.failure(f"refuses its profile for {batch} streams")
        for name, shape in self.inputs.items():
            if -1 in shape and not context.set_input_shape(name, (batch, *shape[1:])):
                raise self.failure(f"refuses {batch} streams")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise self.failure(f"cannot infer its shapes ({error})") from error
        if missing:
            raise self.failure(f"cannot infer the shape of {', '.join(missing)}")
        context.set_device_memory(int(self.scratch.handle), self.scratch.size)
        return context

    def _new_context(self) -> Any:
        own = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(self.trt, "CudaGraphStrategy"):
            return self.engine.create_execution_context(own)
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(own)
        config.cuda_graph_strategy = self.trt.CudaGraphStrategy.DISABLED  # This backend captures graphs itself.
        # By default, runs use fallback kernels until specialised kernels are compiled, and a captured graph keeps them.
        config.dynamic_shapes_kernel_specialization_strategy = self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return self.engine.create_execution_context(config)

    def enqueue(self, context: Any, addresses: dict[str, int]) -> None:
        """Enqueue a run in the CUDA stream, with inputs and outputs at these addresses.

        Raises:
            EngineError: TensorRT reports an error.
            ResourceLimit: the GPU does not have enough memory.
        """
        self.logger.errors.clear()
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self.failure(f"refuses the address of {name}")
        if not context.execute_async_v3(self.cuda.handle):
            raise self.failure("could not run")

    def failure(self, what: str, kind: type[E3DError] = EngineError) -> E3DError:
        """Return the E3DError for a failed call, with the reason that the library logged."""
        reason = self.logger.reason
        if "out of memory" in reason.lower() or "OutOfMemory" in reason:
            return ResourceLimit(f"{self.name}: {what} ({reason}); run fewer streams at once, or close other programs")
        return kind(f"{self.name}: {what} ({reason})")


def check_validity(trt: Any, runtime: Any, plan: bytes, name: str) -> None:
    """Check that TensorRT-RTX can run a plan, before the plan is loaded; TensorRT has no such check.

    Raises:
        BackendUnavailable: the engine does not suit this GPU, its driver or its CUDA runtime.
        BundleError: the plan is damaged, or was built by another version of TensorRT-RTX.
        ResourceLimit: the engine needs more memory than the GPU has.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, bits = runtime.get_engine_validity(plan)
    if validity == trt.EngineValidity.SUBOPTIMAL:
        log.warning("%s: runs on this GPU, but would run faster if it were built for this GPU", name)
    if validity != trt.EngineValidity.INVALID:
        return
    for bit, kind, words in INVALID:
        if int(bits) & int(getattr(trt.EngineInvalidityDiagnostics, bit)):
            raise kind(f"{name}: {words}")
    raise BackendUnavailable(
        f"{name}: TensorRT-RTX cannot run it here and gives no reason; check that there is an NVIDIA GPU"
    )
