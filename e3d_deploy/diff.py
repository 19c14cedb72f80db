"""Differences between two bundles or model files, for `e3d diff`. Needs NumPy; counting nodes by type needs onnx."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.bundle.folder import MODEL, Bundle
from e3d_deploy.bundle.manifest import GraphEntry
from e3d_deploy.bundle.sidecar import EngineSidecar
from e3d_deploy.errors import BundleError
from e3d_deploy.inspect import by_graph, graph_statistics, is_bundle
from e3d_deploy.json_values import json_object
from e3d_deploy.paths import check_path
from e3d_deploy.tensors import DAMAGED, entries_of, read_tensors, tensors_of

Values = dict[str, Any]
MAX_LISTED = 10
"""Maximum number of tensors listed."""
ABOUT = ("schema", "name", "created", "files", "config", "graphs", "engines", "states")
"""Fields of a manifest that `settings` omits, because they do not affect the results or have their own section."""


@dataclass(frozen=True)
class Compared:
    """Values of one of the two bundles or model files."""

    about: Values
    """Path and kind, and for a bundle its name and creation time; these may differ between equal bundles."""
    sections: dict[str, Values]
    weights: Mapping[str, NDArray[Any]]
    missing: dict[str, str] = field(default_factory=dict)
    """Sections that could not be read, with the reason."""


def diff(one: str | Path, other: str | Path) -> dict[str, Any]:
    """Compare two bundles, two model files, or the weights and config of a bundle with those of a model file.

    Returns:
        `a` and `b`: path and kind of the first and the second path.
        One entry per section: the values that differ, by name, as [value in a, value in b]; None for a missing value.
        `weights`: the differences of the tensors.
        `differs_in`: the sections with differences.
        `not_compared`: the sections that could not be compared, with the reason.

    Raises:
        BundleError, CheckpointError: A path is damaged, or is neither a bundle nor a model file.
    """
    one, other = check_path("one", one), check_path("other", other)
    a, b = _read(one), _read(other)
    shared = [name for name in a.sections if name in b.sections]
    absent = {"nodes": 0}
    sections = {name: _changes(a.sections[name], b.sections[name], absent.get(name)) for name in shared}
    weights = _weights(a.weights, b.weights)
    differs = [name for name, changes in sections.items() if changes]
    if weights["changed"] or weights["shapes"] or weights["only_a"] or weights["only_b"]:
        differs.append("weights")
    alone = dict.fromkeys(sorted(set(a.sections) ^ set(b.sections)), "only one of the two has this section")
    return {
        "a": a.about,
        "b": b.about,
        **sections,
        "weights": weights,
        "differs_in": differs,
        "not_compared": {**alone, **a.missing, **b.missing},
    }


def _read(path: Path) -> Compared:
    return _read_bundle(path) if is_bundle(path) else _read_model(path)


def _read_model(path: Path) -> Compared:
    tensors, metadata = read_tensors(path)
    entries = entries_of(path, metadata)
    sections = {"config": _flat(entries["config"]), "card": _flat(entries.get("card", {}))}
    return Compared({"path": str(path), "kind": "model"}, sections, tensors)


def _read_bundle(path: Path) -> Compared:
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    rest = {"card": {}} | {name: value for name, value in manifest.to_json().items() if name not in ABOUT}
    settings = {name: value for name, value in rest.items() if not isinstance(value, dict)}
    sections = {
        "config": _flat(bundle.config.to_dict()),
        "settings": _flat(settings),
        "graphs": _flat({_title(entry): _graph(entry) for entry in manifest.graphs}),
        "states": _flat({one.name: one.to_json() for one in bundle.manifest.states}),
        **{name: _flat(value) for name, value in rest.items() if name not in settings},
        "engines": _flat({name: _engine(sheet) for name, sheet in manifest.engines.items()}),
        "files": {name: f"{_size(bundle, name)}, {digest[:12]}" for name, digest in manifest.files.items()},
    }
    missing = {}
    try:
        nodes = by_graph({name: one.operators for name, one in graph_statistics(bundle).items()})
    except ModuleNotFoundError:
        missing["nodes"] = "onnx is not installed"
    else:
        sections["nodes"] = _flat(nodes)
    about = {"path": str(path), "kind": "bundle", "name": manifest.name, "created": manifest.created}
    try:
        weights, _ = tensors_of(bundle.held[MODEL])
    except DAMAGED as error:
        raise BundleError(f"{path / MODEL}: not a safetensors file ({error}); export the model again") from error
    return Compared(about, sections, weights, missing)


def _size(bundle: Bundle, name: str) -> str:
    size = bundle.size(name)
    return "missing" if size is None else f"{size:,} bytes"  # an engine may have been deleted


def _title(entry: GraphEntry) -> str:
    """Return the name of a graph, followed by its backends if it is not a shared graph."""
    return entry.name if entry.backends is None else f"{entry.name} ({', '.join(entry.backends)})"


def _graph(entry: GraphEntry) -> Values:
    """Return the entry of a graph with one text per input and output, without the fields that `_title` shows."""
    tensors = {
        what: {tensor.name: f"{tensor.dtype} {list(tensor.shape)}" for tensor in both}
        for what, both in (("inputs", entry.inputs), ("outputs", entry.outputs))
    }
    rest = {name: value for name, value in entry.to_json().items() if name not in ("name", "backends")}
    return {**rest, **tensors}


def _engine(sheet: EngineSidecar) -> Values:
    """Return an engine's sidecar without the fields that differ between two builds of the same engine."""
    return {name: value for name, value in sheet.to_json().items() if name not in ("created", "build_seconds")}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Values:
    """Flatten nested mappings to one level, with dotted paths as names; a list is one value."""
    flat: Values = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _changes(a: Values, b: Values, absent: Any) -> dict[str, list[Any]]:
    pairs = {name: [a.get(name, absent), b.get(name, absent)] for name in {**a, **b}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _weights(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Compare tensors by name: count equal and changed tensors, and list the largest differences."""
    shared = [name for name in a if name in b]
    shapes = {name: [list(a[name].shape), list(b[name].shape)] for name in shared if a[name].shape != b[name].shape}
    changed = [
        {"name": name, "shape": list(a[name].shape), **_distance(a[name], b[name])}
        for name in shared
        if name not in shapes and not np.array_equal(a[name], b[name], equal_nan=True)
    ]
    changed.sort(key=lambda one: one["max_abs"] if one["max_abs"] is not None else np.inf, reverse=True)
    return {
        "tensors": [len(a), len(b)],
        "same": len(shared) - len(shapes) - len(changed),
        "changed": len(changed),
        "shapes": shapes,
        "only_a": [name for name in a if name not in b],
        "only_b": [name for name in b if name not in a],
        "largest": changed[:MAX_LISTED],
    }


def _distance(a: NDArray[Any], b: NDArray[Any]) -> dict[str, float | None]:
    """Return the largest absolute difference, and the norm of the difference divided by the norm of `a`.

    A result that is not finite becomes None.
    """
    exact = np.asarray(a, np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        difference = np.asarray(b, np.float64) - exact
        values = {
            "max_abs": float(np.abs(difference).max()),
            "relative": float(np.linalg.norm(difference) / np.linalg.norm(exact)),
        }
    return json_object(values)
