"""Description of a TensorRT plan, kept beside it, in the manifest and in the cache."""

from collections.abc import Mapping
from dataclasses import dataclass

from e3d_deploy.bundle.schema import Entry


@dataclass(frozen=True, kw_only=True)
class Proof(Entry):
    """Precision of an engine, asked for and found."""

    requested: str
    """Policy of the graph."""
    proved: str
    """Policy that the engine computes in; `tf32 allowed` where TF32 is a permission that shows nowhere."""
    by: str
    """`inspector` if the engine was asked, `graph` if its typed graph was."""
    layers: Mapping[str, int]
    """Number of convolutions and matrix products by precision."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Entry):
    """Options of a build that decide who may load the plan; the other fields of `EngineConfig` stand beside them."""

    version_compatible: bool
    """Later versions of TensorRT may run it."""
    hardware_compatibility: str
    """GPUs that it runs on besides the one it was built on: `none`, `ampere-plus` or `same-compute-capability`."""
    refittable: bool
    """It may be given other weights."""


@dataclass(frozen=True, kw_only=True)
class EngineSidecar(Entry):
    """Description of a plan."""

    graph: str
    """Name of the graph."""
    graph_sha256: str
    """SHA-256 of the graph's file."""
    weights_sha256: str
    """SHA-256 of the weights that the graph reads: of one file, or over the hashes of several."""
    target: str
    """Library that runs it: `tensorrt` or `tensorrt-rtx`."""
    builder: str
    """Version of the library that built it."""
    compute_capability: str
    """GPUs that it is for, such as `portable`, `8.6,8.9` or `9.0 NVIDIA H200`."""
    precision: Proof
    """Precision asked for and found."""
    options: EngineOptions
    """Options of the build."""
    key: str | None = None
    """Key in the cache; absent after a refit."""
    parts: Mapping[str, str] | None = None
    """Parts that the key is made of; absent after a refit."""
    refitted_from: str | None = None
    """SHA-256 of the plan that was given other weights; absent if it was built."""
    cached: bool
    """It was taken from the cache and not built."""
    build_seconds: float
    """Duration of the build (s)."""
    bytes: int
    """Size of the plan (bytes)."""
    sha256: str
    """SHA-256 of the plan."""
    created: str
    """Time of the build or refit (ISO 8601, UTC)."""
