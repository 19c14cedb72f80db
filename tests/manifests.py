"""Manifests with changed fields, and sidecars of plans that do not exist."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from e3d_deploy.bundle.folder import write_manifest
from e3d_deploy.bundle.manifest import Manifest
from e3d_deploy.bundle.sidecar import EngineOptions, EngineSidecar, PrecisionCheck
from e3d_deploy.runtime import Bundle


def rewrite(path: Path, **fields: Any) -> None:
    """Change fields in the manifest of a bundle on disk."""
    write_manifest(path, replace(Bundle.open(path).manifest, **fields))


def changed(bundle: Bundle, **fields: Any) -> Bundle:
    """Return a bundle with changed fields in its manifest; the file on disk is not changed."""
    return replace(bundle, manifest=replace(bundle.manifest, **fields))


def with_graph(bundle: Bundle, name: str, **fields: Any) -> Bundle:
    """Return a bundle with changed fields in the entry of one graph."""
    return changed(bundle, graphs=graphs_with(bundle.manifest, name, **fields))


def with_policy(bundle: Bundle, policy: str) -> Bundle:
    """Return a bundle whose manifest names another policy for the bundle and for the step graph."""
    precision = replace(bundle.manifest.precision, policy=policy)
    return changed(with_graph(bundle, "step", precision=policy), precision=precision)


def graphs_with(manifest: Manifest, name: str, **fields: Any) -> tuple[Any, ...]:
    """Return the graphs of a manifest, one of them with changed fields."""
    return tuple(replace(one, **fields) if one.name == name else one for one in manifest.graphs)


def with_shape(bundle: Bundle, number: int, length: int) -> tuple[Any, ...]:
    """Return the inputs of the step graph, after setting the length of the second axis of one of them."""
    inputs = list(bundle.entry("step").inputs)
    batch, _, *rest = inputs[number].shape
    inputs[number] = replace(inputs[number], shape=(batch, length, *rest))
    return tuple(inputs)


def sidecar(**fields: Any) -> EngineSidecar:
    """Return the sidecar of a plan for `tensorrt`; `fields` replace its default fields."""
    plain: dict[str, Any] = {
        "graph": "step",
        "graph_sha256": "0" * 64,
        "weights_sha256": "0" * 64,
        "target": "tensorrt",
        "builder": "10.7",
        "compute_capability": "9.0 NVIDIA H200",
        "precision": PrecisionCheck(requested="fp32", proved="fp32", by="graph", layers={"fp32": 1}),
        "options": EngineOptions(version_compatible=False, hardware_compatibility="none", refittable=False),
        "cached": False,
        "build_seconds": 1.0,
        "bytes": 4,
        "sha256": "0" * 64,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return EngineSidecar(**plain | fields)
