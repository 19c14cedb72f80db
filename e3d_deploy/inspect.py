"""What a bundle or a model file holds, for `e3d inspect`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e3d_deploy import contract
from e3d_deploy.bundle.folder import MANIFEST, Bundle
from e3d_deploy.card import Card
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BundleError

if TYPE_CHECKING:
    from e3d_deploy.export.graph.statistics import Statistics


def inspect(path: Path) -> dict[str, Any]:
    """What is in a bundle or a model file.

    Raises:
        BundleError, CheckpointError: it is neither, or damaged.
    """
    return inspect_bundle(path) if is_bundle(path) else inspect_model(path)


def is_bundle(path: Path) -> bool:
    """Whether a path is to be read as a bundle, and not as a model file.

    Raises:
        BundleError: it is a part of a bundle, or an archive of one.
    """
    if not path.is_file():
        return True
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise BundleError(
                f"{path}: an archive and no bundle; if `e3d pack` wrote it, take it apart by "
                f"`e3d unpack {path} -o NAME.e3d`"
            )
    if path.suffix == ".onnx":
        folder = f", {path.parent}" if (path.parent / MANIFEST).is_file() else ", NAME.e3d"
        raise BundleError(
            f"{path}: a graph alone, which says nothing of where it is from; give the folder that `e3d export` made"
            f"{folder}"
        )
    return False


def inspect_model(path: Path) -> dict[str, Any]:
    """Config and size of a model file.

    Raises:
        CheckpointError: it is not one.
    """
    from e3d_deploy import checkpoint

    model, card = checkpoint.load(path), checkpoint.read_card(path)
    parameters = sum(weight.numel() for weight in model.parameters())
    return {
        "model": {"file": path.name, "parameters": parameters, "bytes": path.stat().st_size, **_state(model.config)},
        **_window(card),
        "decay": _decay(card),
        "config": model.config.to_dict(),
    }


def inspect_bundle(path: Path) -> dict[str, Any]:
    """Config, graphs, engines and verification of a bundle; its hashes are checked on the way.

    Raises:
        BundleError: it is damaged, incomplete or too new.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    cost = _cost(bundle)  # first, as it refuses a graph that cannot be read
    return {
        "bundle": {
            "name": manifest["name"],
            "digest": bundle.digest[:16],
            "created": manifest["created"],
            "context": bundle.context_length,
            "horizon": bundle.horizon,
            "batch": "any" if bundle.dynamic_batch else bundle.batch,
            **_alone(bundle),
            **_young_ring(bundle),
            "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
            "history": f"exact for {manifest['history']['exact_for_steps']} steps, then {manifest['history']['then']}",
            **{f"made by {name}": version for name, version in manifest["producer"].items()},
            **_state(bundle.config),
        },
        **_window(bundle.card),
        "decay": _decay(bundle.card),
        "config": bundle.config.to_dict(),
        "graph": {
            name: {
                "file": graph["file"],
                "nodes": graph["nodes"],
                "opset": graph["opset"],
                "precision": graph["precision"],
            }
            for name, graph in manifest["graphs"].items()
        },
        **cost,
        "step input": {
            tensor["name"]: {"shape": tensor["shape"], "dtype": tensor["dtype"]}
            for tensor in manifest["graphs"]["step"]["inputs"]
        },
        "engine": {
            name: {
                key: engine.get(key) for key in ("builder", "compute_capability", "bytes", "build_seconds", "created")
            }
            for name, engine in manifest["engines"].items()
        },
        "verified": {
            name: {
                "against": report.get("yardstick"),
                "largest difference": report.get("worst"),
                "passed": report.get("passed"),
            }
            for name, report in manifest["verification"].items()
        },
    }


def graph_statistics(bundle: Bundle) -> dict[str, "Statistics"]:
    """What each graph of a bundle costs.

    Raises:
        BundleError: a graph that is not the one of the manifest.
        ModuleNotFoundError: onnx is not installed.
    """
    from e3d_deploy.export.graph.statistics import statistics

    return {name: statistics(bundle.graph(name), entry) for name, entry in bundle.manifest["graphs"].items()}


def by_graph(columns: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Counts per graph as rows, a row for each name: {"step": {"Conv": 3}} as {"Conv": {"step": 3}}."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    return {name: {graph: column.get(name, 0) for graph, column in columns.items()} for name in names}


def _cost(bundle: Bundle) -> dict[str, Any]:
    """What each graph costs, where there is onnx to read it."""
    try:
        graphs = graph_statistics(bundle)
        from e3d_deploy.export.graph.statistics import HOW
    except ModuleNotFoundError as error:
        return {"cost": f"not known: {error.name} is not installed; pip install 'e3d_deploy[train]'"}
    lengths = {"rollout": bundle.horizon - 1, "clip": bundle.context_length + bundle.horizon - 1}
    return {
        "cost": by_graph({name: _column(one, max(1, lengths.get(name, 1))) for name, one in graphs.items()}),
        "how it is counted": f"{HOW}; streams in a call: {bundle.batch}",
        "nodes": by_graph({name: one.operators for name, one in graphs.items()}),
    }


def _alone(bundle: Bundle) -> dict[str, str]:
    """Return a row for a bundle that steps streams one after another; nothing for others."""
    if bundle.dynamic_batch or bundle.batch > 1:
        return {}
    return {"many streams": "stepped one after another; export with `--batch any` to step them together"}


def _young_ring(bundle: Bundle) -> dict[str, str]:
    """Return a row for a bundle of an older version, whose young rings are slow; nothing for others or without onnx."""
    try:
        import onnx
        from onnx import numpy_helper
    except ModuleNotFoundError:
        return {}
    step = onnx.load(bundle.graph("step"), load_external_data=False).graph
    constants = (numpy_helper.to_array(one) for one in step.initializer if not one.dims and not one.external_data)
    if not any(value == float("-inf") for value in constants):
        return {}
    return {
        "young ring": "masked with minus infinity, with which ONNX Runtime is slow on some processors until the ring "
        "is full; export the model again"
    }


def _column(one: "Statistics", steps: int) -> dict[str, int]:
    return {
        "steps": steps,
        "FLOP a step": round(one.flop / steps),
        "bytes moved a step": round(one.bytes_moved / steps),
        "FLOP": one.flop,
        "bytes moved": one.bytes_moved,
        "of them inputs": one.input_bytes,
        "outputs": one.output_bytes,
        "weights, at each use": one.read_weight_bytes,
        "between nodes": one.intermediate_bytes,
        "weights": one.weights,
        "bytes of weights": one.weight_bytes,
        "nodes of unknown shape": len(one.unknown),
    }


def _window(card: Card) -> dict[str, Any]:
    return {} if card.window is None else {"window": card.window.to_dict()}


def _decay(card: Card) -> dict[str, Any] | None:
    return None if card.decay is None else card.decay.report()


def _state(config: ModelConfig) -> dict[str, int]:
    return {"state of a stream, bytes": sum(tensor.nbytes for tensor in contract.states(config))}
