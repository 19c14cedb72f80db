"""Manifest of a bundle: its fields, the older schemas that can be read, and checks between the fields."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self, cast

from e3d_deploy.bundle.schema import Entry
from e3d_deploy.bundle.sidecar import EngineSidecar
from e3d_deploy.card import Card
from e3d_deploy.contract import ANY, CONTEXT, FORECAST, FRAME, DType, Ring, States, Tensor
from e3d_deploy.errors import ConfigError

SCHEMA, READS = 2, (1, 2)
"""Schema of new bundles, and the schemas that can be read.

A manifest that was read in schema 1 is written back in schema 1, so that older versions can still read it.
"""


@dataclass(frozen=True, kw_only=True)
class TensorEntry(Entry):
    """Input or output of a graph."""

    name: str
    """Name in the graph."""
    dtype: str
    """Type of the elements, such as `float32`."""
    shape: tuple[int | str, ...]
    """Length of each axis. The axis of streams is `batch` if the graph accepts any batch size."""


@dataclass(frozen=True, kw_only=True)
class GraphEntry(Entry):
    """One graph of the bundle."""

    name: str
    """Name of the graph: `step`, `rollout` or `clip`."""
    backends: tuple[str, ...] | None
    """Backends that run a backend-specific graph; null for a shared graph."""
    file: str
    """Name of the file, which is next to the manifest."""
    precision: str
    """Precision policy that the graph runs in."""
    by: str = "types"
    """Origin of the precision: `types` if the graph contains the data types; `hint` if the graph is in float32, and the
    backend asks the library to compute in another type."""
    drift: Mapping[str, float | None] | None = None
    """Measured drift of a backend-specific graph, by measure; absent for shared graphs, and for fp32 that was exported
    without `--budget`."""
    weights: tuple[str, ...]
    """Files that contain the weights of the graph."""
    nodes: int
    """Number of nodes."""
    opset: int
    """Version of the ONNX operator set."""
    inputs: tuple[TensorEntry, ...]
    """Inputs, in order."""
    outputs: tuple[TensorEntry, ...]
    """Outputs, in order."""
    engine_hints: Mapping[str, Any] = field(default_factory=dict)
    """Hints for building an engine from the graph, by name. No version writes hints yet."""


@dataclass(frozen=True, kw_only=True)
class RingEntry(Entry):
    """Ring that stores the past values of a state, along the second axis of its tensor."""

    slots: int
    """Number of slots, K; value number e is stored in slot e mod K."""
    counter: str
    """Name of the int32 state that counts the values. Each frame adds 1; at 2K the counter returns to K. Slot s is
    empty and contains zeros while the counter is at most s."""
    frames_to_fill: int
    """Number of frames after which no slot is empty."""


@dataclass(frozen=True, kw_only=True)
class StateEntry(Entry):
    """One tensor of a stream's state: the input `NAME` and the output `next_NAME` of the graphs."""

    name: str
    """Name of the input."""
    dtype: str
    """Type of the elements: `float32` or `int32`."""
    shape: tuple[int | str, ...]
    """Length of each axis. The first axis is the axis of streams, `batch`."""
    initial: int
    """Value of all elements in the initial state."""
    ring: RingEntry | None = None
    """Ring along the second axis; absent for states without a ring."""


@dataclass(frozen=True, kw_only=True)
class Producer(Entry):
    """Versions of the software that exported the bundle."""

    e3d_deploy: str
    """Version of e3d_deploy."""
    torch: str
    """Version of PyTorch."""
    onnx: str
    """Version of the package onnx."""


@dataclass(frozen=True, kw_only=True)
class History(Entry):
    """Length of the history, as `e3d inspect` shows it."""

    slots: int
    """Number of past cell states in the history."""
    exact_for_steps: int
    """Number of steps for which the result equals that of an unlimited history."""
    then: str
    """Cell states that later steps can recall, in words, such as `the last 5 cells`."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Entry):
    """Format of frames and predictions, in words."""

    frames: str
    """Data type, layout and value range of the input frames."""
    patching: str
    """Place where frames are cut into patches: `inside the graphs`."""
    output: str
    """Value range of the predictions: `not clipped`."""


@dataclass(frozen=True, kw_only=True)
class Rounding(Entry):
    """Rounding error of PyTorch: the difference between its float32 and float64 outputs; see docs/model.md."""

    predictions: float
    """Largest absolute difference between the predictions for the reference clip."""
    states: float
    """Largest absolute difference between the states after the last step of the reference clip."""


@dataclass(frozen=True, kw_only=True)
class Tried(Entry):
    """Precision policy that the export tried, with its measured drift."""

    policy: str
    """Name of the policy."""
    exclude: tuple[str, ...]
    """Layers that stay in float32."""
    budget: Mapping[str, float]
    """Maximum loss of quality, by measure."""
    fits: bool
    """True if the drift is within the budget."""
    drift: Mapping[str, float | None]
    """Measured loss of quality, by measure; null if the loss is not a number."""
    bytes: int
    """Size of the step graph with its weights (bytes)."""
    step_ms: float | None
    """Time of a step in ONNX Runtime on the machine that exported the bundle (ms); null if the step was not timed."""


@dataclass(frozen=True, kw_only=True)
class Precision(Entry):
    """Precision policy of the graphs, with its measured drift.

    For fp32 that was exported without `--budget`, only `policy`, `exclude` and `budget` exist.
    """

    policy: str
    """Name of the policy."""
    exclude: tuple[str, ...]
    """Layers that stay in float32."""
    budget: Mapping[str, float]
    """Maximum loss of quality, by measure."""
    fits: bool | None = None
    """True if the drift is within the budget."""
    drift: Mapping[str, float | None] | None = None
    """Measured loss of quality, by measure; null if the loss is not a number."""
    bytes: int | None = None
    """Size of the step graph with its weights (bytes)."""
    step_ms: float | None = None
    """Time of a step in ONNX Runtime on the machine that exported the bundle (ms)."""
    measured: Mapping[str, Any] | None = None
    """Source and hash of the clips on which the drift was measured."""
    calibration: Mapping[str, Any] | None = None
    """Source and hash of the clips from which value ranges were determined."""
    tried: tuple[Tried, ...] = ()
    """All policies that the export tried, ordered from cheapest."""


@dataclass(frozen=True, kw_only=True)
class Verification(Entry):
    """Last report of `e3d verify` on a backend, stored in `verify.json` next to the manifest.

    Older versions stored the reports in the manifest. A report has more fields than this list; `e3d inspect` shows only
    the fields below.
    """

    yardstick: str | None = None
    """Origin of the expected outputs: `torch` if PyTorch computed them during `e3d verify`; `reference.npz` if they are
    PyTorch's recorded outputs."""
    worst: float | None = None
    """Largest absolute difference between the predictions; null or absent if the difference is not a number."""
    passed: bool | None = None
    """True if the backend was within the budget; null or absent if the report has no verdict."""


@dataclass(frozen=True, kw_only=True)
class Manifest(Entry):
    """Content of manifest.json."""

    schema: int
    """Version of the schema; 2 in new bundles."""
    name: str
    """Name of the bundle."""
    created: str
    """Time of the export (ISO 8601, UTC)."""
    producer: Producer
    """Versions of the software that exported the bundle."""
    config: Mapping[str, Any]
    """Fields of `ModelConfig`, as in `model.safetensors`. The field `semantics` names the implementation of E3D-LSTM
    that the network follows; see docs/model.md."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the model, listed in the section "Facts about the model" of docs/bundle.md; absent if there are
    none."""
    context_length: int
    """Number of frames that the clip graph takes."""
    horizon: int
    """Number of frames that the clip and rollout graphs return."""
    batch: int
    """Batch size of the graphs, which is the number of streams that a step takes; 1 if `dynamic_batch` is true."""
    dynamic_batch: bool
    """True if the graphs accept any batch size. If false and `batch` is 1, the runtime steps streams one after
    another."""
    history: History
    """Length of the history."""
    preprocessing: Preprocessing
    """Format of frames and predictions, in words."""
    rounding: Rounding
    """Rounding error of PyTorch in float32."""
    precision: Precision
    """Precision policy of the graphs."""
    states: tuple[StateEntry, ...] = ()
    """Tensors of a stream's state, sorted by name; absent in schema 1, where the states follow from `config`."""
    graphs: tuple[GraphEntry, ...]
    """All graphs. In schema 1, `graphs` is an object by name, and its entries have no `name`, `backends` and
    `engine_hints`."""
    verification: Mapping[str, Verification]
    """Reports of older versions, by backend; empty in new bundles, whose reports are in `verify.json`."""
    engines: Mapping[str, EngineSidecar]
    """Sidecar of each plan, by `GRAPH.TARGET`; see docs/engines.md."""
    files: Mapping[str, str]
    """SHA-256 of every file except the manifest. All graphs, their weights, the model file and `reference.npz` must be
    listed. A plan that is not listed is not part of the bundle."""

    @classmethod
    def from_json(cls, value: object, where: str = "") -> Self:
        """Create the manifest from a decoded JSON value, in any schema of `READS`.

        Raises:
            ValueError: A field is missing or has the wrong type; the error names the field.
        """
        if isinstance(value, Mapping) and value.get("schema") == 1 and "graphs" in value:
            graphs = value["graphs"]
            if not isinstance(graphs, Mapping):
                raise ValueError("graphs: got a list, expected an object by name in schema 1")
            return super().from_json({**value, "graphs": ()}, where)._with_graphs(graphs)
        return super().from_json(value, where)

    def _with_graphs(self, graphs: Mapping[str, object]) -> Self:
        """Return the manifest with its graphs, which schema 1 stores as an object by name."""
        return replace(self, graphs=tuple(_graph_of_schema_1(name, entry) for name, entry in graphs.items()))

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON values, in the schema in which it was read."""
        result = super().to_json()
        if self.schema == 1:
            named = ("name", "backends")
            result["graphs"] = {
                one["name"]: {key: value for key, value in one.items() if key not in named} for one in result["graphs"]
            }
        return result

    def entry(self, name: str, backend: str | None = None) -> GraphEntry | None:
        """Return the entry of the graph that a backend runs: its backend-specific graph, or else the shared graph.

        Args:
            backend: name of the backend; None prefers the shared graph, and then the first graph in the list.

        Returns:
            The entry, or None if there is no such graph.
        """
        named = [one for one in self.graphs if one.name == name]
        own = [one for one in named if one.backends is not None and (backend is None or backend in one.backends)]
        shared = [one for one in named if one.backends is None]
        ordered = shared + own if backend is None else own + shared
        return ordered[0] if ordered else None

    def stream_states(self) -> States | None:
        """Return the description of a stream's state; None in schema 1, which does not contain the description."""
        return States(tuple(_tensor(one) for one in self.states)) if self.states else None

    def problems(self, *, always: set[str]) -> Iterator[str]:
        """Yield a text per error, such as `batch: got 0, expected 1 or more`; the types of fields are already checked.

        Args:
            always: names of files that `files` must list, in addition to the graphs and their weights.
        """
        for name in ("context_length", "horizon", "batch"):
            if (value := getattr(self, name)) < 1:
                yield f"{name}: got {value}, expected 1 or more"
        try:
            Card.from_dict(self.card)
        except ConfigError as error:
            yield str(error).removesuffix("; save or export the model again")
        yield from self._graph_problems()
        yield from self._state_problems()
        yield from self._length_problems()
        needed = always.union(*([graph.file, *graph.weights] for graph in self.graphs))
        if unlisted := needed - set(self.files):
            yield f"files: lacks the hash of {', '.join(sorted(unlisted))}"
        yield from (f"files: got {name!r}, expected a name of a file" for name in sorted(self.files) if "\0" in name)
        # Only engines are in a subfolder, and their hashes are checked when they are loaded. A graph or its weights in
        # that folder would escape the check.
        yield from (
            f"files: got {name}, expected a file next to the manifest" for name in sorted(needed) if "/" in name
        )

    def _graph_problems(self) -> Iterator[str]:
        if self.entry("step") is None:
            yield "graphs: lacks step"
        yield from (
            f"graphs.{one.name}.backends: is empty, expected names, or null for all backends"
            for one in self.graphs
            if one.backends == ()
        )
        takers = [(one.name, backend) for one in self.graphs for backend in (one.backends or (None,))]
        yield from (
            f"graphs: has two graphs {name} for {backend or 'all backends'}, expected one"
            for name, backend in dict.fromkeys(takers)
            if takers.count((name, backend)) > 1
        )

    def _state_problems(self) -> Iterator[str]:
        if self.schema > 1 and not self.states:
            yield "states: is empty, expected the states of a stream"
        forms = {one.name: one for one in self.states}
        if list(forms) != sorted(one.name for one in self.states):
            yield f"states: got {[one.name for one in self.states]}, expected each name once, in alphabetical order"
        for one in self.states:
            lengths = one.shape[1:]
            if one.shape[:1] != (ANY,) or not all(isinstance(side, int) and side > 0 for side in lengths):
                yield f"states.{one.name}.shape: got {list(one.shape)}, expected {ANY!r} and then lengths of 1 or more"
            elif one.dtype not in ("float32", "int32"):
                yield f"states.{one.name}.dtype: got {one.dtype!r}, expected float32 or int32"
            elif one.ring is not None:
                counter = forms.get(one.ring.counter)
                if counter is None or (counter.dtype, counter.shape) != ("int32", (ANY,)):
                    yield f"states.{one.name}.ring.counter: got {one.ring.counter!r}, expected an int32 state [{ANY}]"
                elif lengths[:1] != (one.ring.slots,):
                    yield (
                        f"states.{one.name}.ring.slots: got {one.ring.slots}, expected the second length of its shape "
                        f"{list(one.shape)}"
                    )
                elif one.ring.frames_to_fill != (fill := one.ring.slots - counter.initial):
                    yield f"states.{one.name}.ring.frames_to_fill: got {one.ring.frames_to_fill}, expected {fill}"

    def _length_problems(self) -> Iterator[str]:
        """Yield an error for each graph that contradicts the states, or the lengths of context and forecast.

        An invalid budget is reported too.
        """
        states = {one.name: (one.dtype, one.shape[1:]) for one in self.states}
        for graph in (graph for graph in self.graphs if graph.name == "step" and states):
            inputs = {one.name: (one.dtype, one.shape[1:]) for one in graph.inputs if one.name != FRAME}
            for name in sorted(states.keys() | inputs.keys()):
                if states.get(name) != inputs.get(name):
                    yield f"states.{name}: got {states.get(name)}, expected {inputs.get(name)} as in the step graph"
        for graph in (graph for graph in self.graphs if graph.name == "clip"):
            tensors = {one.name: one.shape[1:2] for one in (*graph.inputs, *graph.outputs)}
            for name, length in ((CONTEXT, self.context_length), (FORECAST, self.horizon)):
                if tensors.get(name) != (length,):
                    yield f"graphs.clip: {name} has {tensors.get(name)} frames, expected {length}"
        if not self.precision.budget or min(self.precision.budget.values()) < 0:
            yield f"precision.budget: got {dict(self.precision.budget)}, expected limits of 0 or more"


def describe_states(states: States) -> tuple[StateEntry, ...]:
    """Return the entries that describe a stream's state in the manifest."""
    return tuple(
        StateEntry(
            name=one.name,
            dtype=one.dtype,
            shape=(ANY, *one.shape[1:]),
            initial=one.initial,
            ring=None if one.ring is None else RingEntry(**asdict(one.ring)),
        )
        for one in states.tensors
    )


def _tensor(entry: StateEntry) -> Tensor:
    """Return the description of a state for one stream: its first axis has length 1."""
    ring = entry.ring
    return Tensor(
        entry.name,
        (1, *(int(side) for side in entry.shape[1:])),
        cast("DType", entry.dtype),
        initial=entry.initial,
        ring=None if ring is None else Ring(slots=ring.slots, counter=ring.counter, frames_to_fill=ring.frames_to_fill),
    )


def _graph_of_schema_1(name: str, entry: object) -> GraphEntry:
    """Return the entry of a graph of schema 1. There, the name of the graph is its key, and all graphs are shared."""
    where = f"graphs.{name}"
    if not isinstance(entry, Mapping):
        return GraphEntry.from_json(entry, where)  # raises the error for a wrong type
    return GraphEntry.from_json({**entry, "name": name, "backends": None}, where)
