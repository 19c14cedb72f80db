"""Build of one graph into a TensorRT plan; contains every call to the builder of TensorRT 10, 11 and TensorRT-RTX.

A *bucket* is the batch sizes of one optimization profile of an engine: fewest, usual and most streams.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from e3d_deploy.config import EngineConfig
from e3d_deploy.errors import BackendUnavailable, ConfigError, EngineError
from e3d_deploy.export.engines.watch import in_thread, make_monitor
from e3d_deploy.export.graph.layers import locate
from e3d_deploy.files import write_file
from e3d_deploy.progress import Notify, silent
from e3d_deploy.tensorrt_library import make_logger

BATCH = "batch"
"""Name of the only axis of a graph that may be dynamic."""
ONE_STREAM, TWO_STREAMS = (1, 1, 1), (2, 2, 2)
"""Bucket of exactly one stream, and bucket of exactly two streams."""
ADVICE = (
    ("Turing", "remove 7.5 from --compute-capability: TensorRT-RTX has no float32 products for it"),
    ("HW-specific datatypes", "bfloat16 runs on 8.0 and later, FP8 on 8.9; remove others from --compute-capability"),
    ("workspace limit", "raise --workspace-mb"),
    ("libnvinfer_lean", "install tensorrt-lean, or omit --version-compatible"),
    ("CUDA driver version", "this needs an NVIDIA GPU and its driver"),
)
"""Words in messages of the builder, each with advice to the user."""


def build_plan(
    trt: Any,
    graph: Path,
    config: EngineConfig,
    *,
    tf32: bool = False,
    expected: float | None = None,
    progress: Notify = silent,
    remark: Notify = silent,
) -> bytes:
    """Build the engine of one graph; return its plan.

    Args:
        trt: module of the library.
        tf32: allow float32 products to be computed in TF32.
        expected: time of the last build of this kind, shown with the progress (s).

    Raises:
        ConfigError: this version of the library does not support an option.
        BackendUnavailable: the library needs a GPU and finds none.
        EngineError: the graph cannot be read or built.
        KeyboardInterrupt: Ctrl-C was pressed, and the build was cancelled.
    """
    logger = make_logger(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # the bindings raise it if the library returns no builder
        raise BackendUnavailable(
            f"TensorRT {trt.__version__}: cannot create a builder ({logger.reason}); TensorRT builds on the GPU that "
            "the engine is for, and needs its driver; TensorRT-RTX builds without a GPU"
        ) from error
    # TensorRT 10 takes the types from the graph only with this flag; TensorRT 11 and TensorRT-RTX always do.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise EngineError(
            f"{graph}: cannot be read by TensorRT {trt.__version__} ({_parser_words(parser) or logger.reason})"
            + locate(graph, _parser_words(parser))
        )
    settings = builder.create_builder_config()
    _set_options(trt, settings, config, tf32)
    _add_profiles(builder, settings, network, config, graph, remark)
    if config.timing_cache is not None:
        _load_timing(settings, Path(config.timing_cache), remark)
    monitor = make_monitor(trt, progress, expected)
    settings.progress_monitor = monitor

    def work(_weights: Any = parser, _logger: Any = logger) -> Any:
        return builder.build_serialized_network(network, settings)

    plan = in_thread(work, monitor)
    if plan is None:
        raise EngineError(_not_built(trt, graph, logger.reason))
    if config.timing_cache is not None:
        _save_timing(settings, Path(config.timing_cache), remark)
    return bytes(plan)


def default_buckets(graph: str) -> tuple[tuple[int, int, int], ...]:
    """Return the default buckets of a graph whose batch size is dynamic.

    Each graph has a bucket of one stream. The step has a bucket of two streams too, because a stream with renewal
    steps two states in one call. The other graphs do not need the second bucket, because no two streams are forecast
    in one call, and it would double the build time and the size of the engines of these larger graphs.
    """
    return (ONE_STREAM, TWO_STREAMS) if graph == "step" else (ONE_STREAM,)


def profile(buckets: Iterable[tuple[int, int, int]]) -> str:
    """Format buckets for the cache key, such as `1 1 1, 2 2 2`."""
    return ", ".join(" ".join(map(str, bucket)) for bucket in buckets)


def _parser_words(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors)


def _not_built(trt: Any, graph: Path, reason: str) -> str:
    advice = "".join(f"; {what}" for words, what in ADVICE if words in reason)
    return f"{graph}: TensorRT {trt.__version__} could not build it ({reason}){locate(graph, reason)}{advice}"


def _set_options(trt: Any, settings: Any, config: EngineConfig, tf32: bool) -> None:
    settings.builder_optimization_level = config.optimization_level
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # lets the inspector list types
    settings.max_aux_streams = 0
    if not tf32:
        settings.clear_flag(trt.BuilderFlag.TF32)  # the builder sets this flag by default
    if config.workspace_bytes is not None:
        settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_bytes)
    if config.version_compatible:
        settings.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        # Without this flag the plan contains code for the host, which the TensorRT backend never allows to run.
        settings.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if config.refittable:
        settings.set_flag(trt.BuilderFlag.REFIT)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # The TensorRT backend allocates all memory; a step that allocates could not be captured in a CUDA graph.
        settings.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if config.hardware_compatibility != "none":
        name = config.hardware_compatibility.upper().replace("-", "_")
        level = _member(trt, "HardwareCompatibilityLevel", name, f"hardware_compatibility {name}")
        settings.hardware_compatibility_level = level
    if config.compute_capabilities:
        settings.num_compute_capabilities = len(config.compute_capabilities)
        for index, one in enumerate(config.compute_capabilities):
            target = _member(trt, "ComputeCapability", "SM" + one.replace(".", ""), f"compute capability {one}")
            settings.set_compute_capability(target, index)


def _member(trt: Any, enum: str, name: str, what: str) -> Any:
    values = getattr(trt, enum, None)
    if not hasattr(values, name):
        known = ", ".join(member for member in dir(values) if member.isupper())
        raise ConfigError(f"{what}: TensorRT {trt.__version__} does not support it, only {known or 'none'}")
    return getattr(values, name)


def _add_profiles(builder: Any, settings: Any, network: Any, config: EngineConfig, graph: Path, remark: Notify) -> None:
    """Add an optimization profile for each bucket, if the batch size of the graph is dynamic."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    open_axes = [(one, axis) for one in inputs for axis, size in enumerate(one.shape) if size == -1]
    for one, axis in open_axes:
        if one.get_dimension_name(axis) != BATCH:
            name = one.get_dimension_name(axis) or f"number {axis}"
            raise EngineError(f"{graph}: axis {name} of {one.name} is dynamic, and only an axis named {BATCH} may be")
    if not open_axes:
        if config.batches:
            remark(f"{graph.name}: runs a fixed number of streams, so the batch buckets are ignored")
        return
    for bucket in config.batches or default_buckets(graph.stem):
        profile = builder.create_optimization_profile()
        for one in inputs:
            shapes = [tuple(batch if size == -1 else size for size in one.shape) for batch in bucket]
            if -1 in one.shape:
                profile.set_shape(one.name, *shapes)
        if settings.add_optimization_profile(profile) == -1:
            raise EngineError(f"{graph}: the builder refuses a profile for {', '.join(map(str, bucket))} streams")


def _load_timing(settings: Any, file: Path, remark: Notify) -> None:
    for content in (file.read_bytes() if file.exists() else b"", b""):
        cache = settings.create_timing_cache(content)
        if cache is not None and settings.set_timing_cache(cache, False):
            return
        remark(f"{file}: belongs to a different GPU or version of TensorRT, and is replaced")


def _save_timing(settings: Any, file: Path, remark: Notify) -> None:
    try:
        write_file(file, bytes(settings.get_timing_cache().serialize()))
    except OSError as error:
        remark(f"{file}: not written ({error.strerror}); the engine is not affected")
