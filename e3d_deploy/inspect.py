"""Contents of a bundle or a model file, for `e3d inspect`."""

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
from e3d_deploy.paths import check_path

if TYPE_CHECKING:
    from e3d_deploy.export.graph.statistics import Statistics

Contents = TypeVar("Contents")


@dataclass(frozen=True, kw_only=True)
class ModelContents:
    """Contents of a model file."""

    file: str
    """Name of the model file."""
    parameters: int
    """Number of scalar weights."""
    bytes: int
    """Size of the file (bytes)."""
    config: ModelConfig
    card: Card

    def to_json(self) -> dict[str, Any]:
        """Return the contents as JSON values."""
        about = {"file": self.file, "parameters": self.parameters, "bytes": self.bytes}
        return {
            "model": {**about, "state_bytes_per_stream": contract.states_of(self.config).nbytes},
            **_card_sections(self.card),
            "config": self.config.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class GraphContents:
    """Graph of a bundle, from the manifest."""

    file: str
    backends: tuple[str, ...] | None
    """Backends that run the graph; None for a shared graph."""
    nodes: int
    opset: int
    precision: str
    """Precision policy of the graph."""
    by: str
    """Method that sets the precision: `types` in the graph, or a `hint` to the library."""


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
    """Last verification of a backend; values that the report does not contain are None."""

    against: str | None
    """Source of the expected outputs: `torch` or `reference.npz`."""
    largest_difference: float | None
    """Largest absolute difference of predictions."""
    passed: bool | None


@dataclass(frozen=True, kw_only=True)
class GraphCost:
    """Cost of one call of a graph, counted by the rules in `statistics.HOW`."""

    steps: int
    """Network steps per call."""
    flop_per_step: int
    bytes_moved_per_step: int
    flop: int
    bytes_moved: int
    input_bytes: int
    output_bytes: int
    read_weight_bytes: int
    """Weights read, counted at each use (bytes)."""
    intermediate_bytes: int
    """Data written and read between nodes (bytes)."""
    weights: int
    """Number of scalar weights."""
    weight_bytes: int
    unknown_nodes: int
    """Number of nodes that are not counted, because their shapes are unknown."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of each graph of a bundle."""

    graphs: Mapping[str, GraphCost]
    operators: Mapping[str, Mapping[str, int]]
    """Number of nodes by type, for each graph."""
    counted: str
    """Rules by which FLOP and bytes are counted."""
    streams: int
    """Streams per call."""


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """Contents of a bundle."""

    name: str
    digest: str
    created: str
    context_length: int
    """Frames in the context of the clip graph."""
    horizon: int
    """Frames in the forecast of the clip graph."""
    batch: int | None
    """Number of streams that the graphs step at once; None for any number."""
    slow_young_ring: bool | None
    """True if ONNX Runtime is slow on some processors until the ring is full; None if onnx is not installed."""
    bytes: int
    """Total size of the files (bytes)."""
    state_bytes: int
    """Size of the state of one stream (bytes)."""
    history: Mapping[str, Any]
    """Number of cell states kept (`slots`), number of steps with an exact recall (`exact_for_steps`), and the states
    that are recalled after these steps (`then`)."""
    producer: Mapping[str, str]
    """Versions of the libraries that exported the bundle."""
    config: ModelConfig
    card: Card
    graphs: Mapping[str, GraphContents]
    cost: Cost | None
    """Cost of the graphs; None if onnx is not installed."""
    cost_missing: str | None
    """Reason why the cost is unknown; None if it is known."""
    step_inputs: Mapping[str, Mapping[str, Any]]
    """Shape and type of each input of the step graph."""
    engines: Mapping[str, EngineContents]
    verified: Mapping[str, Verified]
    """Last verification of each backend."""

    def to_json(self) -> dict[str, Any]:
        """Return the contents as JSON values. `cost` and `nodes` map each name to one value per graph."""
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
                "counted": None if cost is None else f"{cost.counted}; streams per call: {cost.streams}",
                "nodes": None if cost is None else by_graph(cost.operators),
                "step_inputs": self.step_inputs,
                "engine": self.engines,
                "verified": self.verified,
            }
        )


def inspect(path: Bundle | str | Path) -> ModelContents | BundleContents:
    """Read the contents of a bundle or a model file.

    Args:
        path: bundle, opened or as its path, or model file.

    Raises:
        BundleError, CheckpointError: The path is neither a bundle nor a model file, or is damaged.
    """
    path = check_path("path", path)
    return inspect_bundle(path) if is_bundle(path) else inspect_model(path)


def is_bundle(path: Path) -> bool:
    """Return False if a path is a file, which should be a model file; True for all other paths, also missing ones.

    Raises:
        BundleError: The file is a graph or an archive.
    """
    if not path.is_file():
        return True
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise BundleError(
                f"{path}: an archive, not a bundle; if `e3d pack` wrote it, unpack it with "
                f"`e3d unpack {path} -o NAME.e3d`; if it is a PyTorch checkpoint, import it with `e3d import`"
            )
    if path.suffix == ".onnx":
        folder = f", {path.parent}" if (path.parent / MANIFEST).is_file() else ", NAME.e3d"
        raise BundleError(f"{path}: a graph, not a bundle; give the folder that `e3d export` made{folder}")
    return False


def inspect_model(path: Path) -> ModelContents:
    """Read config, card and size of a model file.

    Raises:
        CheckpointError: The file is not a model file, or is damaged.
    """
    from e3d_deploy import checkpoint

    model, card = checkpoint.load(path), checkpoint.read_card(path)
    parameters = sum(weight.numel() for weight in model.parameters())
    return ModelContents(
        file=path.name, parameters=parameters, bytes=path.stat().st_size, config=model.config, card=card
    )


def inspect_bundle(path: Path) -> BundleContents:
    """Read config, graphs, engines and verifications of a bundle, and check the hashes of its files.

    Raises:
        BundleError: The bundle is damaged, incomplete or too new.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    cost, missing = _cost(bundle)  # before the rest, because it raises for a graph that cannot be read
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
    """Create a `kind` from those fields of an entry that have the same names as its own."""
    return kind(**{field.name: getattr(entry, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def graph_statistics(bundle: Bundle) -> dict[str, "Statistics"]:
    """Count the cost of each graph of a bundle.

    Raises:
        BundleError: A graph does not match the manifest.
        ModuleNotFoundError: onnx is not installed.
    """
    from e3d_deploy.export.graph.statistics import statistics

    return {name: statistics(bundle.onnx(name), bundle.entry(name)) for name in bundle.graphs}


def by_graph(columns: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Regroup counts by name: {"step": {"Conv": 3}} becomes {"Conv": {"step": 3}}; missing counts are 0."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    return {name: {graph: column.get(name, 0) for graph, column in columns.items()} for name in names}


def _cost(bundle: Bundle) -> tuple[Cost | None, str | None]:
    """Return the cost of each graph, or None and the reason why the cost is unknown."""
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
    """Return True if a bundle masks empty slots with minus infinity, as older versions did; None without onnx."""
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
