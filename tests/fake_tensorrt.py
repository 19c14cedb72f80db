"""Fake of the part of TensorRT that builds engines, which records every call and returns fixed values.

test_build.py compares its signatures with the real bindings of TensorRT-RTX.
"""

import json
from types import SimpleNamespace
from typing import Any

Call = tuple[str, Any]


class IBuilderConfig:
    progress_monitor: Any
    builder_optimization_level: int
    hardware_compatibility_level: str
    num_compute_capabilities: int

    def __init__(self, library: "FakeTensorRT") -> None:
        self.library = library

    def set_memory_pool_limit(self, pool: str, pool_size: int) -> None:
        self.library.calls[pool] = pool_size

    def set_flag(self, flag: str) -> None:
        self.library.calls.setdefault("flags", []).append(flag)

    def clear_flag(self, flag: str) -> None:
        self.library.calls.setdefault("cleared", []).append(flag)

    def set_compute_capability(self, compute_capability: str, index: int) -> bool:
        self.library.calls.setdefault("capabilities", {})[index] = compute_capability
        return True

    def add_optimization_profile(self, profile: "IOptimizationProfile") -> int:
        self.library.calls.setdefault("profiles", []).append(profile.shapes)
        return -1 if self.library.refuses_profiles else 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> "ITimingCache":
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: "ITimingCache", ignore_mismatch: bool) -> bool:
        self.timing_cache = cache
        return not cache.content.startswith(b"foreign")

    def get_timing_cache(self) -> "ITimingCache":
        return self.timing_cache


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"timed "


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = (min, opt, max)


class INetworkDefinition:
    def __init__(self, library: "FakeTensorRT") -> None:
        self.tensors = [
            SimpleNamespace(name=name, shape=shape, get_dimension_name=lambda axis: library.axis if axis == 0 else "")
            for name, shape in library.inputs.items()
        ]
        self.num_inputs = len(self.tensors)

    def get_input(self, index: int) -> Any:
        return self.tensors[index]


class Builder:
    def __init__(self, library: "FakeTensorRT", logger: Any) -> None:
        if library.no_gpu:
            raise TypeError("factory function returned nullptr")
        self.library, self.logger = library, logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        self.library.calls["network"] = flags
        return INetworkDefinition(self.library)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self.library)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        library = self.library
        library.built += 1
        library.calls["level"] = config.builder_optimization_level
        library.calls["compatibility"] = getattr(config, "hardware_compatibility_level", None)
        config.progress_monitor.phase_start("tactics", None, 2)
        go_on = config.progress_monitor.step_complete("tactics", 0)
        if library.waits_for_cancel:
            while go_on:
                go_on = config.progress_monitor.step_complete("tactics", 1)
            library.calls["cancelled"] = True
            return None
        if library.plan is None:
            self.logger.log("error", library.reason)
            self.logger.log("error", "and so on")
        return library.plan


class ParserError:
    def node_operator(self) -> str:
        return "Einsum"

    def node_name(self) -> str:
        return "t3/einsum"

    def desc(self) -> str:
        return "no such op"


class OnnxParser:
    num_errors = 1

    def __init__(self, library: "FakeTensorRT", network: INetworkDefinition, logger: Any) -> None:
        self.library = library

    def parse_from_file(self, model: str) -> bool:
        return self.library.parses

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class EngineInspector:
    execution_context: Any = None

    def __init__(self, library: "FakeTensorRT") -> None:
        self.library = library

    def get_engine_information(self, format: str) -> str:
        self.library.calls["inspected with"] = self.execution_context
        return json.dumps(self.library.information)


class ISerializationConfig:
    def __init__(self) -> None:
        self.flags: list[str] = []

    def set_flag(self, flag: str) -> bool:
        self.flags.append(flag)
        return True


class ICudaEngine:
    num_io_tensors = 1

    def __init__(self, library: "FakeTensorRT", plan: bytes) -> None:
        self.library, self.plan = library, plan

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self.library)

    def create_execution_context(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(shapes=shapes, set_input_shape=shapes.__setitem__)

    def get_tensor_name(self, index: int) -> str:
        return "frame"

    def get_tensor_mode(self, name: str) -> str:
        return "input"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 1, 16, 24)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [(1, 1, 16, 24), (4, 1, 16, 24), (8, 1, 16, 24)]

    def create_serialization_config(self) -> ISerializationConfig:
        return ISerializationConfig()

    def serialize_with_config(self, arg0: ISerializationConfig) -> bytes:
        return self.plan + b" refitted" + "".join(arg0.flags).encode()


class Runtime:
    def __init__(self, library: "FakeTensorRT", logger: Any) -> None:
        self.library, self.logger = library, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not self.library.loads:
            self.logger.log("error", "CUDA driver version is insufficient")
            return None
        return ICudaEngine(self.library, serialized_engine)


class Refitter:
    def __init__(self, library: "FakeTensorRT", engine: ICudaEngine, logger: Any) -> None:
        self.library, self.engine = library, engine

    def get_all_weights(self) -> list[str]:
        return ["cells.0.merge.weight", *self.library.unmatched]

    def get_missing_weights(self) -> list[str]:
        return self.library.missing

    def refit_cuda_engine(self) -> bool:
        if self.library.refits:
            self.engine.plan += b" with other weights"
        return self.library.refits


class OnnxParserRefitter:
    num_errors = 0

    def __init__(self, library: "FakeTensorRT", refitter: Refitter, logger: Any) -> None:
        self.library = library

    def refit_from_file(self, model: str) -> bool:
        self.library.calls["refitted from"] = model
        return not self.library.unmatched


class FakeTensorRT:
    """Fake module `tensorrt`; its attributes control its behaviour."""

    class ILogger:
        Severity = SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal", INFO="info")

        def __init__(self) -> None:
            pass

    class IProgressMonitor:
        def __init__(self) -> None:
            pass

    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    BuilderFlag = SimpleNamespace(
        TF32="tf32", REFIT="refit", VERSION_COMPATIBLE="version", EXCLUDE_LEAN_RUNTIME="no lean"
    )
    HardwareCompatibilityLevel = SimpleNamespace(
        AMPERE_PLUS="ampere+", NONE="none", SAME_COMPUTE_CAPABILITY="same compute capability"
    )
    ComputeCapability = SimpleNamespace(SM75="75", SM86="86", SM89="89")
    LayerInformationFormat = SimpleNamespace(JSON="json")
    TensorIOMode = SimpleNamespace(INPUT="input")
    SerializationFlag = SimpleNamespace(INCLUDE_REFIT=" again")

    def __init__(
        self, *, strongly_typed: int | None = 3, plan: bytes | None = b"plan", version: str = "10.7.0"
    ) -> None:
        flags = {} if strongly_typed is None else {"STRONGLY_TYPED": strongly_typed}
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**flags)
        self.plan, self.__version__ = plan, version
        self.reason = "no tactic for Conv_3"
        self.parses, self.no_gpu, self.waits_for_cancel, self.refuses_profiles = True, False, False, False
        self.loads, self.refits = False, True
        self.unmatched: list[str] = []
        self.missing: list[str] = []
        self.information: dict[str, Any] = {}
        self.inputs: dict[str, tuple[int, ...]] = {"frame": (1, 1, 16, 24)}
        self.axis = "batch"
        self.calls: dict[str, Any] = {}
        self.built = 0

    def Builder(self, logger: Any) -> Builder:
        return Builder(self, logger)

    def OnnxParser(self, network: INetworkDefinition, logger: Any) -> OnnxParser:
        return OnnxParser(self, network, logger)

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(self, logger)

    def Refitter(self, engine: ICudaEngine, logger: Any) -> Refitter:
        return Refitter(self, engine, logger)

    def OnnxParserRefitter(self, refitter: Refitter, logger: Any) -> OnnxParserRefitter:
        return OnnxParserRefitter(self, refitter, logger)


CLASSES = (
    Builder,
    EngineInspector,
    IBuilderConfig,
    ICudaEngine,
    INetworkDefinition,
    IOptimizationProfile,
    ISerializationConfig,
    ITimingCache,
    OnnxParser,
    OnnxParserRefitter,
    ParserError,
    Refitter,
    Runtime,
)
"""Fake classes with the same names as in the bindings."""
