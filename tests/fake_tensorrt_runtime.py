"""Fake of the part of TensorRT that runs engines, on the memory of `fake_cuda`; ONNX Runtime computes.

The content of a plan is the path of its ONNX graph. test_tensorrt.py compares the signatures of methods and the names
of an engine's properties with the real bindings of TensorRT-RTX.
"""

import hashlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.bundle.plans import sources
from e3d_deploy.export.engines.install import move_in, staging
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.tensorrt_library import Target
from tests.fake_cuda import Machine
from tests.manifests import sidecar

TYPES = {"tensor(float)": "float", "tensor(int32)": "int32"}
SCRATCH = 4096


class IExecutionContext:
    def __init__(self, engine: "ICudaEngine") -> None:
        self.engine, self.library, self.machine = engine, engine.library, engine.library.machine
        self.batch = 1 if engine.fixed else None
        self.profile: int | None = None
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None
        self.captured = False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.machine.did(f"profile {profile_index}")
        self.profile = profile_index
        return not self.library.refuses_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fewest, _, most = self.engine.library.profiles[self.profile]
        assert not self.captured, "the shapes of a captured context may not change"
        self.batch = shape[0]
        return fewest <= shape[0] <= most

    def infer_shapes(self) -> list[str]:
        self.machine.did("shapes")
        return self.library.missing if self.batch else ["frame"]

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        self.machine.check(memory, size)
        self.scratch = memory, size

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.machine.counts["address"] += 1
        assert memory % 256 == 0
        self.machine.check(memory, self.engine.nbytes(name, self.batch))
        self.addresses[name] = memory
        return name != self.library.refuses_address

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 77
        assert self.scratch == (self.scratch and self.scratch[0], SCRATCH)
        capturing = self.machine.capturing is not None
        self.machine.did("enqueue")
        if not self.library.runs or (capturing and not self.library.captures):
            self.engine.logger.log("error", "no kernel image is available")
            return False
        self.captured = self.captured or capturing
        read = {self.addresses[name] for name in self.engine.inputs}
        assert not read & {self.addresses[name] for name in self.engine.outputs}, "an output overwrites an input"

        self.machine.put(partial(self.engine.compute, self.addresses.copy(), self.batch))
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return bool(self.library.capturable)


class IRuntimeConfig:
    cuda_graph_strategy = "unset"
    dynamic_shapes_kernel_specialization_strategy = "lazy"
    allocation = "static"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.allocation = strategy


class ICudaEngine:
    device_memory_size_v2 = SCRATCH

    def __init__(self, library: "FakeTensorRT", plan: bytes, logger: Any) -> None:
        self.library, self.logger = library, logger
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        file = Path(plan.decode())
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.inputs = {tensor.name: tensor for tensor in self.session.get_inputs()}
        self.outputs = {tensor.name: tensor for tensor in self.session.get_outputs()}
        self.tensors = {**self.inputs, **self.outputs}
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), len(library.profiles)

    @property
    def fixed(self) -> bool:
        return all("batch" not in tensor.shape for tensor in self.inputs.values())

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return "half" if name == self.library.half else TYPES[self.tensors[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if side == "batch" else side for side in self.tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [(batch, *self.get_tensor_shape(name)[1:]) for batch in self.library.profiles[profile_index]]

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        if self.library.no_context:
            self.logger.log("error", self.library.no_context)
            return None
        if isinstance(strategy, IRuntimeConfig):
            kept = (strategy.cuda_graph_strategy, strategy.dynamic_shapes_kernel_specialization_strategy)
            assert kept == ("disabled", "eager")
            strategy = strategy.allocation
        assert strategy == "user managed"
        self.library.contexts += 1
        return IExecutionContext(self)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def shape(self, name: str, batch: int | None) -> list[int]:
        return [batch or 1 if side == "batch" else side for side in self.tensors[name].shape]

    def nbytes(self, name: str, batch: int | None) -> int:
        return 4 * int(np.prod(self.shape(name, batch)))

    def compute(self, addresses: dict[str, int], batch: int | None) -> None:
        binding = self.session.io_binding()
        for bind, names in ((binding.bind_input, self.inputs), (binding.bind_output, self.outputs)):
            for name in names:
                dtype = np.int32 if self.tensors[name].type == "tensor(int32)" else np.float32
                bind(name, "cpu", 0, dtype, self.shape(name, batch), addresses[name])
        self.session.run_with_iobinding(binding)


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, library: "FakeTensorRT", logger: Any) -> None:
        self.library, self.logger = library, logger
        library.runtimes.append(self)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not self.library.loads:
            self.logger.log("error", self.library.reason)
            return None
        return ICudaEngine(self.library, serialized_engine, self.logger)

    def get_engine_validity(self, buffer: bytes) -> tuple[str, int]:
        return self.library.validity


class FakeTensorRT:
    """Fake module `tensorrt_rtx`; its attributes control its behaviour."""

    class ILogger:
        Severity = SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal", INFO="info")

    __version__ = "1.7.1"
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    DataType = SimpleNamespace(FLOAT="float", INT32="int32")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    CudaGraphStrategy = SimpleNamespace(DISABLED="disabled")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    ComputeCapability = SimpleNamespace(SM86=86, SM120=120)
    EngineValidity = SimpleNamespace(VALID="valid", SUBOPTIMAL="suboptimal", INVALID="invalid")
    EngineInvalidityDiagnostics = SimpleNamespace(
        VERSION_MISMATCH=1,
        UNSUPPORTED_CC=2,
        OLD_CUDA_DRIVER=4,
        OLD_CUDA_RUNTIME=8,
        INSUFFICIENT_GPU_MEMORY=16,
        MALFORMED_ENGINE=32,
        CUDA_ERROR=64,
    )

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.profiles: list[Any] = [(1, 1, 1)]
        self.loads, self.runs, self.captures, self.capturable, self.refuses_profiles = True, True, True, True, False
        self.reason, self.no_context, self.refuses_address, self.half = "bad magic", "", "", ""
        self.missing: list[str] = []
        self.validity = ("valid", 0)
        self.contexts = 0
        self.runtimes: list[Runtime] = []

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(self, logger)


CLASSES = (ICudaEngine, IExecutionContext, IRuntimeConfig, Runtime)
"""Fake classes with the same names as in the bindings."""
OURS = {"shape", "nbytes", "compute", "fixed", "allocation"}
"""Attributes that only the fake classes have."""


def add_engines(path: Path, *graphs: str, target: Target = "tensorrt-rtx", version: str = "1.7.1") -> Bundle:
    """Install engines for the fake in a bundle, for all its graphs or for the given ones."""
    bundle = Bundle.open(path)
    sidecars = {}
    with staging(bundle) as stage:
        for graph in graphs or bundle.graphs:
            plan = str(bundle.graph(graph)).encode()
            (stage / f"{graph}.{target}.plan").write_bytes(plan)
            sidecars[graph] = sidecar(
                graph=graph,
                target=target,
                builder=version,
                compute_capability="portable",
                sha256=hashlib.sha256(plan).hexdigest(),
                **sources(bundle, graph, target),
            )
        move_in(bundle, target, stage, sidecars)
    return Bundle.open(path)


def pictures(count: int, batch: int = 1) -> NDArray[np.uint8]:
    """Return random pictures, [count, B, H, W, C]."""
    return np.random.default_rng(5).integers(0, 256, (count, batch, 16, 24, 1), np.uint8)


def floats(count: int, batch: int = 1) -> NDArray[np.float32]:
    """Return random frames, [count, B, C, H, W]."""
    return np.random.default_rng(6).random((count, batch, 1, 16, 24), np.float32)


def same(one: Backend, state: Any, other: Backend, its: Any) -> None:
    """Assert that states of two backends are bitwise equal."""
    arrays = other.to_arrays(its)
    for name, array in one.to_arrays(state).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
