"""Building of TensorRT engines from the graphs of a bundle, with TensorRT 10, TensorRT 11 or TensorRT-RTX."""

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.bundle.plans import check_sources, weights_sha256
from e3d_deploy.bundle.sidecar import EngineOptions, EngineSidecar
from e3d_deploy.config import EngineConfig
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.export.engines.cache import EngineCache, key_of
from e3d_deploy.export.engines.choose import check_graphs, default_target
from e3d_deploy.export.engines.install import move_in, staging
from e3d_deploy.export.engines.plan import build_plan, default_buckets, profile
from e3d_deploy.export.engines.precision_check import check_precision
from e3d_deploy.inventory import machine, rtx_unsupported_reason
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.backends.specs import check_runs
from e3d_deploy.tensorrt_library import Target, library, unsupported_reason

RECIPE = "2"
"""Version of the builder settings in plan.py that are not options. Raise it when these settings change, so that the
cache returns no outdated plan."""


def build(
    bundle: Bundle | str | Path,
    target: Target | None = None,
    config: EngineConfig | None = None,
    *,
    graphs: Sequence[str] = (),
    cache: EngineCache | None = None,
    progress: Notify = silent,
    remark: Notify = silent,
) -> dict[str, EngineSidecar]:
    """Build an engine of each graph of a bundle into its folder `engines/`, or take it from the cache.

    Each plan gets a sidecar (`.json`), and its hash is recorded in the manifest: a plan is native code, and only plans
    with a recorded hash are loaded. The bundle does not change until all engines are built.

    Args:
        bundle: bundle, opened or as the path of its folder. A bundle that was opened before does not show the new
            engines; open it again.
        target: TensorRT library to build for; None for the one that is installed here.
        config: options of the builder; None for the defaults.
        graphs: graphs to build; empty for all. Engines of other graphs are kept if they can run together with the new
            engines.
        cache: cache to take engines from and to store them in; None for no cache.

    Returns:
        The sidecar of each graph.

    Raises:
        BackendUnavailable: the library is not installed, needs a GPU, or does not run the precision of a graph.
        BundleError: the bundle changed during the build.
        ConfigError: the library does not support an option, or the bundle lacks a graph.
        EngineError: the library cannot read or build a graph; the message names the node. An engine does not compute in
            the precision of its graph.
    """
    bundle, target = Bundle.of(bundle), target or default_target()
    trt = library(target)
    config = _suited(trt, config or EngineConfig(), target, remark)
    capability = _capability(target, config)
    if capability is None and cache is not None:
        remark("nothing is cached: the GPU cannot be identified; pip install cuda-core")
        cache = None
    sidecars = {}
    wanted = check_graphs(bundle, graphs)
    with staging(bundle) as stage:
        for graph in wanted:
            check_runs(bundle.entry(graph, target).precision, target)
            parts = _parts(bundle, graph, target, trt.__version__, capability, config)
            job = _Job(trt, bundle, graph, config, parts, stage / f"{graph}.{target}.plan")
            sidecars[graph] = job.run(cache, progress, remark)
        move_in(bundle, target, stage, sidecars)
    return sidecars


@dataclasses.dataclass(frozen=True)
class _Job:
    """Build of one engine, or its retrieval from the cache."""

    trt: Any
    bundle: Bundle
    graph: str
    config: EngineConfig
    parts: Mapping[str, str]
    destination: Path

    def run(self, cache: EngineCache | None, progress: Notify, remark: Notify) -> EngineSidecar:
        """Write the plan to its destination; return its sidecar."""
        if cache is None:
            return self.build(None, progress, remark)
        key = key_of(self.parts)
        with cache.lock(key, lambda: remark(f"{self.graph}: another process builds this engine; waiting for it")):
            if sidecar := cache.take(self.parts, self.destination, remark):
                remark(f"{self.graph}: taken from the cache")
                return dataclasses.replace(sidecar, cached=True)
            remark(f"{self.graph}: not cached: {cache.difference(self.parts, self.graph)}")
            sidecar = self.build(cache.duration(self.kind), progress, remark)
            try:
                cache.put(sidecar, self.destination)
                cache.remember(self.kind, sidecar.build_seconds)
            except OSError as error:
                remark(f"{self.graph}: not stored in the cache ({error.strerror}: {cache.folder})")
        return sidecar

    @property
    def kind(self) -> str:
        """Kind of build, a key for durations: builds of one kind take about the same time."""
        entry = self.bundle.entry(self.graph, self.parts["target"])
        return f"{self.graph} {self.parts['target']} {entry.precision} {entry.nodes} nodes"

    def build(self, expected: float | None, progress: Notify, remark: Notify) -> EngineSidecar:
        file, started = self.bundle.graph(self.graph, self.parts["target"]), time.monotonic()
        plan = build_plan(
            self.trt,
            file,
            self.config,
            tf32=self.parts["precision"] == "tf32",
            expected=expected,
            progress=lambda phase: progress(f"{self.graph}: {phase}"),
            remark=remark,
        )
        seconds = time.monotonic() - started
        check_sources(self.bundle, self.graph, self.parts["target"])
        precision = check_precision(
            self.trt, plan, self.bundle.onnx(self.graph, self.parts["target"]), self.parts["precision"]
        )
        self.destination.write_bytes(plan)
        return EngineSidecar(
            graph=self.graph,
            graph_sha256=self.parts["graph"],
            weights_sha256=self.parts["weights"],
            target=self.parts["target"],
            builder=self.trt.__version__,
            compute_capability=self.parts["compute_capability"],
            precision=precision,
            options=EngineOptions.from_json(self.config.to_dict()),
            key=key_of(self.parts),
            parts=dict(self.parts),
            cached=False,
            build_seconds=round(seconds, 2),
            bytes=len(plan),
            sha256=hashlib.sha256(plan).hexdigest(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _parts(
    bundle: Bundle, graph: str, target: Target, builder: str, capability: str | None, config: EngineConfig
) -> dict[str, str]:
    """Return the inputs that determine an engine, by name; a timing cache is not one of them."""
    entry = bundle.entry(graph, target)
    options = {name: value for name, value in config.to_dict().items() if name != "timing_cache"}
    options.pop("compute_capabilities")
    buckets = options.pop("batches") or default_buckets(graph)
    return {
        "graph": bundle.manifest.files[entry.file],
        "weights": weights_sha256(bundle),
        "target": target,
        "builder": builder,
        "compute_capability": capability or "of the building machine",
        "precision": entry.precision,
        "profile": profile(buckets) if bundle.dynamic_batch else "fixed",
        **{name: str(value) for name, value in options.items()},
        "recipe": RECIPE,
    }


def _suited(trt: Any, config: EngineConfig, target: Target, remark: Notify) -> EngineConfig:
    """Check that a library supports the options; return them, without a timing cache that it cannot use.

    Raises:
        ConfigError: the library does not support an option that would change the engine.
        BackendUnavailable: the library supports an option only with an NVIDIA driver, and none is installed.
    """
    if target == "tensorrt":
        if config.compute_capabilities:
            raise ConfigError(
                "compute_capabilities: TensorRT builds for the GPU of this machine; use --hardware-compatibility, or "
                "--target tensorrt-rtx"
            )
        return config
    if config.version_compatible:
        raise ConfigError("version_compatible: TensorRT-RTX does not support it; build again when the library changes")
    if config.hardware_compatibility != "none":
        raise ConfigError(
            "hardware_compatibility: TensorRT-RTX does not support it, because its engines are portable; name the GPUs "
            "that an engine is for with --compute-capability"
        )
    for capability in config.compute_capabilities:
        if words := unsupported_reason(trt, capability):
            raise ConfigError(f"compute_capabilities: {words}")
    if not config.compute_capabilities and (words := rtx_unsupported_reason()):
        remark(f"the engines are for other machines: {words}")
    if config.refittable and not machine()["nvidia_driver"]:
        raise BackendUnavailable(
            "refittable: TensorRT-RTX builds such engines only with an NVIDIA driver, and none is installed here; "
            "omit --refit, or build on the device"
        )
    if config.timing_cache is not None:
        remark("the timing cache is not used: TensorRT-RTX times no kernels when it builds")
        return dataclasses.replace(config, timing_cache=None)
    return config


def _capability(target: Target, config: EngineConfig) -> str | None:
    """Return the GPUs that an engine is for: `portable`, `8.6,8.9` or `9.0 NVIDIA H200`; None if not identifiable."""
    if target == "tensorrt-rtx":
        return ",".join(config.compute_capabilities) or "portable"
    try:
        from cuda.core import Device

        from e3d_deploy.runtime.backends.cuda import CudaError
    except (ImportError, BackendUnavailable):
        return None
    try:
        device = Device(0)
        major, minor = device.compute_capability
        return f"{major}.{minor} {device.name}"
    except (CudaError, OSError, RuntimeError):
        return None
