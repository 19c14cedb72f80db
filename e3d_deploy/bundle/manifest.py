"""What a manifest has to hold before anything is read by it; docs/bundle.md says what it means."""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any

from e3d_deploy.card import Card
from e3d_deploy.errors import ConfigError

FIELDS = {
    "name": str,
    "created": str,
    "producer": dict,
    "config": dict,
    "context_length": int,
    "horizon": int,
    "batch": int,
    "dynamic_batch": bool,
    "history": dict,
    "rounding": dict,
    "graphs": dict,
    "verification": dict,
    "engines": dict,
    "files": dict,
}
"""Required fields of a manifest beside `schema`, and their types in JSON; `card` is optional."""
GRAPH = {
    "file": str,
    "precision": str,
    "weights": list,
    "nodes": int,
    "opset": int,
    "inputs": list,
    "outputs": list,
}
TENSOR = {"name": str, "dtype": str, "shape": list}
HISTORY = {"exact_for_steps": int, "then": str}
ROUNDING = {"predictions": int | float, "states": int | float}


def problems(manifest: Mapping[str, Any], *, always: set[str]) -> Iterator[str]:
    """What keeps a manifest from being used. The first counts: the others are looked for as if it were not there.

    Args:
        always: files that must be among those that are hashed, as must every graph and its weights.
    """
    yield from _odd("", manifest, FIELDS)
    yield from _odd("history ", manifest["history"], HISTORY)
    yield from _odd("card ", manifest.get("card", {}), {})
    try:
        Card.from_dict(manifest.get("card", {}))
    except ConfigError as error:
        yield f"its {error}"
    yield from _odd("rounding ", manifest["rounding"], ROUNDING)
    yield from _odd("graphs ", manifest["graphs"], {"step": dict})
    for name, graph in manifest["graphs"].items():
        yield from _odd(f"graph {name} ", graph, GRAPH)
        for tensor in (*graph["inputs"], *graph["outputs"]):
            yield from _odd(f"a tensor of graph {name} ", tensor, TENSOR)
        yield from (f"a file of graph {name} is {one!r}" for one in graph["weights"] if not isinstance(one, str))
    for part in ("verification", "engines"):
        for name, sheet in manifest[part].items():
            yield from _odd(f"{part} {name} ", sheet, {})
    yield from (f"{name} is {manifest[name]}" for name in ("context_length", "horizon", "batch") if manifest[name] < 1)
    yield from (f"its hash of {name} is none" for name, one in manifest["files"].items() if not isinstance(one, str))
    needed = always.union(*([graph["file"], *graph["weights"]] for graph in manifest["graphs"].values()))
    if unlisted := needed - set(manifest["files"]):
        yield f"has no hash of {', '.join(sorted(unlisted))}"
    # Engines are in a folder and are hashed only when they are loaded; nothing else may pass for one.
    yield from (f"names {name}, which is no file beside it" for name in sorted(needed) if "/" in name)


def _odd(where: str, entry: object, fields: Mapping[str, type | UnionType]) -> Iterator[str]:
    """What an entry lacks of its fields, or has of another kind."""
    if not isinstance(entry, Mapping):
        yield f"{where}is {entry!r}"
    elif missing := set(fields) - set(entry):
        yield f"{where}lacks {', '.join(sorted(missing))}"
    else:
        for name, kind in fields.items():
            if not isinstance(entry[name], kind):
                yield f"{where}{name} is {entry[name]!r}"
