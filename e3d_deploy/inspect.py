"""Content of a bundle or a model file, for `e3d inspect`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from e3d_deploy import contract
from e3d_deploy.bundle.folder import MANIFEST, Bundle, verifications
from e3d_deploy.bundle.schema import Entry
from e3d_deploy.card import Card
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BundleError
from e3d_deploy.json_values import json_object
from e3d_deploy.libraries import pip_install

if TYPE_CHECKING:
    from e3d_deploy.export.graph.statistics import Statistics

Contents = TypeVar("Contents")


@dataclass(frozen=True, kw_only=True)
class ModelContents:
    """Content of a model file."""

    file: str
    """Name of the file."""
    parameters: int
    """Number of weights."""
    bytes: int
    """Size of the file (bytes)."""
    config: ModelConfig
    card: Card

    def to_json(self) -> dict[str, Any]:
        """Return the content as JSON values."""
        about = {"file": self.file, "parameters": self.parameters, "bytes": self.bytes}
        return {
            "model": {**about, "state_bytes_per_stream": contract.states_of(self.config).nbytes},
            **_card_sections(self.card),
            "config": self.config.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class GraphContents:
    """Graph of a bundle, as its manifest describes it."""

    file: str
    backends: tuple[str, ...] | None
    """Backends that it is for; None for all that have no graph of their own."""
    nodes: int
    opset: int
    precision: str
    """Policy that it is run in."""
    by: str
    """Way to that precision: `types` in the graph, or a `hint` to the library."""


@dataclass(frozen=True, kw_only=True)
class EngineContents:
    """Engine of a bundle."""

    builder: str
    compute_capability: str
    bytes: int
    """Size of the plan (bytes)."""
    build_seconds: float
    created: str


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Last verification of a backend; None for what its report does not say."""

    against: str | None
    """Yardstick: `torch` or `reference.npz`."""
    largest_difference: float | None
    """Largest absolute difference of predictions."""
    passed: bool | None


@dataclass(frozen=True, kw_only=True)
class GraphCost:
    """Cost of one call of a graph, counted as `statistics.HOW` says."""

    steps: int
    """Steps of the network in a call."""
    flop_per_step: int
    bytes_moved_per_step: int
    flop: int
    bytes_moved: int
    input_bytes: int
    output_bytes: int
    read_weight_bytes: int
    """Weights, read at each use (bytes)."""
    intermediate_bytes: int
    """Written and read between nodes (bytes)."""
    weights: int
    """Numbers in the weights."""
    weight_bytes: int
    unknown_nodes: int
    """Nodes that are left out, as their shapes are not known."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Costs of a bundle's graphs."""

    graphs: Mapping[str, GraphCost]
    operators: Mapping[str, Mapping[str, int]]
    """Nodes by type, of each graph."""
    counted: str
    """Rules by which FLOP and bytes are counted."""
    streams: int
    """Streams in a call."""


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """Content of a bundle."""

    name: str
    digest: str
    created: str
    context_length: int
    """Frames that the clip graph takes."""
    horizon: int
    """Frames that the clip graph gives."""
    batch: int | None
    """Streams that its graphs step at once; None for any number."""
    slow_young_ring: bool | None
    """ONNX Runtime is slow on some processors until the ring is full; None where onnx is not installed."""
    bytes: int
    """Size of all its files (bytes)."""
    state_bytes: int
    """Size of a stream's state (bytes)."""
    history: Mapping[str, Any]
    """Cell states kept (`slots`), steps for which that is exact (`exact_for_steps`), and what is recalled `then`."""
    producer: Mapping[str, str]
    """Versions of the libraries that made it."""
    config: ModelConfig
    card: Card
    graphs: Mapping[str, GraphContents]
    cost: Cost | None
    """Cost of its graphs; None where onnx is not installed."""
    cost_missing: str | None
    """Reason for which the cost is not known."""
    step_inputs: Mapping[str, Mapping[str, Any]]
    """Shape and type of each input of the step graph."""
    engines: Mapping[str, EngineContents]
    verified: Mapping[str, Verified]
    """Last verification, by backend."""

    def to_json(self) -> dict[str, Any]:
        """Return the content as JSON values; costs and nodes have a row for each of their names, a column per graph."""
        cost = self.cost
        return json_object(
            {
                "bundle": {
                    "name": self.name,
                    "digest": self.digest,
                    "created": self.created,
                    "context": self.context_length,
                    "horizon": self.horizon,
                    "batch": "any" if self.batch is None else self.batch,
                    "slow_young_ring": self.slow_young_ring,
                    "bytes": self.bytes,
                    "history": self.history,
                    "producer": self.producer,
                    "state_bytes_per_stream": self.state_bytes,
                },
                **_card_sections(self.card),
                "config": self.config.to_dict(),
                "graph": self.graphs,
                "cost": None if cost is None else by_graph({name: vars(one) for name, one in cost.graphs.items()}),
                "cost_missing": self.cost_missing,
                "counted": None if cost is None else f"{cost.counted}; streams in a call: {cost.streams}",
                "nodes": None if cost is None else by_graph(cost.operators),
                "step_inputs": self.step_inputs,
                "engine": self.engines,
                "verified": self.verified,
            }
        )


def inspect(path: Path) -> ModelContents | BundleContents:
    """Read what a bundle or a model file holds.

    Raises:
        BundleError, CheckpointError: it is neither, or damaged.
    """
    return inspect_bundle(path) if is_bundle(path) else inspect_model(path)


def is_bundle(path: Path) -> bool:
    """Return True for a path to be read as a bundle, False for a model file.

    Raises:
        BundleError: it is a part of a bundle, or an archive of one.
    """
    if not path.is_file():
        return True
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise BundleError(
                f"{path}: an archive and no bundle; if `e3d pack` wrote it, take it apart by "
                f"`e3d unpack {path} -o NAME.e3d`; a checkpoint of PyTorch becomes a model by `e3d import`"
            )
    if path.suffix == ".onnx":
        folder = f", {path.parent}" if (path.parent / MANIFEST).is_file() else ", NAME.e3d"
        raise BundleError(
            f"{path}: a graph alone, which says nothing of where it is from; give the folder that `e3d export` made"
            f"{folder}"
        )
    return False


def inspect_model(path: Path) -> ModelContents:
    """Read config, card and size of a model file.

    Raises:
        CheckpointError: it is not one.
    """
    from e3d_deploy import checkpoint

    model, card = checkpoint.load(path), checkpoint.read_card(path)
    parameters = sum(weight.numel() for weight in model.parameters())
    return ModelContents(
        file=path.name, parameters=parameters, bytes=path.stat().st_size, config=model.config, card=card
    )


def inspect_bundle(path: Path) -> BundleContents:
    """Read config, graphs, engines and verification of a bundle; its hashes are checked on the way.

    Raises:
        BundleError: it is damaged, incomplete or too new.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    cost, missing = _cost(bundle)  # first, as it refuses a graph that cannot be read
    return BundleContents(
        name=manifest.name,
        digest=bundle.digest[:16],
        created=manifest.created,
        context_length=bundle.context_length,
        horizon=bundle.horizon,
        batch=None if bundle.dynamic_batch else bundle.batch,
        slow_young_ring=_slow_young_ring(bundle),
        bytes=sum(bundle.size(name) or 0 for name in (MANIFEST, *manifest.files)),
        state_bytes=bundle.states.nbytes,
        history=manifest.history.to_json(),
        producer=manifest.producer.to_json(),
        config=bundle.config,
        card=bundle.card,
        graphs={one.file.removesuffix(".onnx"): _selected(GraphContents, one) for one in manifest.graphs},
        cost=cost,
        cost_missing=missing,
        step_inputs={
            tensor.name: {"shape": list(tensor.shape), "dtype": tensor.dtype} for tensor in bundle.entry("step").inputs
        },
        engines={name: _selected(EngineContents, engine) for name, engine in manifest.engines.items()},
        verified={
            name: Verified(against=report.yardstick, largest_difference=report.worst, passed=report.passed)
            for name, report in verifications(bundle).items()
        },
    )


def _selected(kind: type[Contents], entry: Entry) -> Contents:
    """Return the fields of an entry that a dataclass has."""
    return kind(**{field.name: getattr(entry, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def graph_statistics(bundle: Bundle) -> dict[str, "Statistics"]:
    """Count the cost of each graph of a bundle.

    Raises:
        BundleError: a graph that is not the one of the manifest.
        ModuleNotFoundError: onnx is not installed.
    """
    from e3d_deploy.export.graph.statistics import statistics

    return {name: statistics(bundle.onnx(name), bundle.entry(name)) for name in bundle.graphs}


def by_graph(columns: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Counts per graph as rows, a row for each name: {"step": {"Conv": 3}} as {"Conv": {"step": 3}}."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    return {name: {graph: column.get(name, 0) for graph, column in columns.items()} for name in names}


def _cost(bundle: Bundle) -> tuple[Cost | None, str | None]:
    """Return the cost of each graph, or the reason for which it is not known."""
    try:
        graphs = graph_statistics(bundle)
        from e3d_deploy.export.graph.statistics import HOW
    except ModuleNotFoundError as error:
        return None, f"{error.name} is not installed; {pip_install('train')}"
    lengths = {"rollout": bundle.horizon - 1, "clip": bundle.context_length + bundle.horizon - 1}
    cost = Cost(
        graphs={name: _graph_cost(one, max(1, lengths.get(name, 1))) for name, one in graphs.items()},
        operators={name: one.operators for name, one in graphs.items()},
        counted=HOW,
        streams=bundle.batch,
    )
    return cost, None


def _graph_cost(one: "Statistics", steps: int) -> GraphCost:
    return GraphCost(
        steps=steps,
        flop_per_step=round(one.flop / steps),
        bytes_moved_per_step=round(one.bytes_moved / steps),
        flop=one.flop,
        bytes_moved=one.bytes_moved,
        input_bytes=one.input_bytes,
        output_bytes=one.output_bytes,
        read_weight_bytes=one.read_weight_bytes,
        intermediate_bytes=one.intermediate_bytes,
        weights=one.weights,
        weight_bytes=one.weight_bytes,
        unknown_nodes=len(one.unknown),
    )


def _slow_young_ring(bundle: Bundle) -> bool | None:
    """Return True for a bundle of an older version, which masks its ring with minus infinity; None without onnx."""
    try:
        import onnx
        from onnx import numpy_helper
    except ModuleNotFoundError:
        return None
    step = onnx.load_from_string(bundle.onnx("step")).graph
    constants = (numpy_helper.to_array(one) for one in step.initializer if not one.dims and not one.external_data)
    return any(bool(value == float("-inf")) for value in constants)


def _card_sections(card: Card) -> dict[str, Any]:
    window = {} if card.window is None else {"window": card.window.to_dict()}
    return {**window, "decay": None if card.decay is None else card.decay.report()}
