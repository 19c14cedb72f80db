"""Description of a TensorRT plan, stored next to the plan, in the manifest and in the engine cache."""

from collections.abc import Mapping
from dataclasses import dataclass

from e3d_deploy.bundle.schema import Entry


@dataclass(frozen=True, kw_only=True)
class PrecisionCheck(Entry):
    """Requested precision of an engine, and the precision that was found in it."""

    requested: str
    """Precision policy of the graph."""
    proved: str
    """Precision policy that was found. It is `tf32 allowed` if TensorRT may use TF32 but does not report where it uses
    TF32."""
    by: str
    """Evidence: `inspector` for the report of TensorRT's engine inspector, `graph` for the data types in the graph."""
    layers: Mapping[str, int]
    """Number of convolutions and matrix products that are computed in each precision."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Entry):
    """Build options that decide where the plan can run.

    The remaining fields of `EngineConfig` are stored next to them.
    """

    version_compatible: bool
    """True if later versions of TensorRT can run the plan."""
    hardware_compatibility: str
    """Further GPUs that can run the plan: `none`, `ampere-plus` or `same-compute-capability`."""
    refittable: bool
    """True if the weights of the plan can be replaced."""


@dataclass(frozen=True, kw_only=True)
class EngineSidecar(Entry):
    """Description of a plan and of its build."""

    graph: str
    """Name of the graph."""
    graph_sha256: str
    """SHA-256 of the graph's file."""
    weights_sha256: str
    """SHA-256 of the file of weights in the bundle. If there are several, SHA-256 of their names and hashes."""
    target: str
    """Library that runs the plan: `tensorrt` or `tensorrt-rtx`."""
    builder: str
    """Version of the library that built the plan."""
    compute_capability: str
    """Compute capabilities of the GPUs that can run the plan, such as `portable`, `8.6,8.9` or `9.0 NVIDIA H200`."""
    precision: PrecisionCheck
    """Requested precision, and the precision that was found in the plan."""
    options: EngineOptions
    """Build options that decide where the plan can run."""
    key: str | None = None
    """Key in the engine cache; absent after a refit."""
    parts: Mapping[str, str] | None = None
    """Inputs of the build, by name, from which the key is computed; absent after a refit."""
    refitted_from: str | None = None
    """SHA-256 of the plan whose weights were replaced; absent if the plan was built."""
    cached: bool
    """True if the plan was copied from the engine cache; false if it was built or refitted."""
    build_seconds: float
    """Duration of the build (s)."""
    bytes: int
    """Size of the plan (bytes)."""
    sha256: str
    """SHA-256 of the plan."""
    created: str
    """Time of the build or refit (ISO 8601, UTC)."""
