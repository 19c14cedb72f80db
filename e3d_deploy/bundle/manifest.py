"""Manifest of a bundle: its fields, the forms in which older versions wrote them, and what has to hold between them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self, cast

from e3d_deploy.bundle.schema import Entry
from e3d_deploy.bundle.sidecar import EngineSidecar
from e3d_deploy.card import Card
from e3d_deploy.contract import ANY, CONTEXT, FORECAST, FRAME, DType, Ring, States, Tensor
from e3d_deploy.errors import ConfigError

SCHEMA, READS = 2, (1, 2)
"""Schema that is written, and those that are read. What was read in schema 1 is written in it again, so that older
versions go on reading it."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry(Entry):
    """Input or output of a graph."""

    name: str
    """Name in the graph."""
    dtype: str
    """Type of the elements, such as `float32`."""
    shape: tuple[int | str, ...]
    """Length of each axis; `batch` for the axis of streams where it is open."""


@dataclass(frozen=True, kw_only=True)
class GraphEntry(Entry):
    """One graph of the bundle."""

    name: str
    """Name: `step`, `rollout` or `clip`."""
    backends: tuple[str, ...] | None
    """Backends that it is for; null for all that have no graph of their own."""
    file: str
    """File beside the manifest."""
    precision: str
    """Policy that it is run in."""
    by: str = "types"
    """Way to that precision: `types` in the graph, or a `hint` to the library, on a graph in float32."""
    drift: Mapping[str, float | None] | None = None
    """Measured loss of a backend's own graph, by measure; absent for plain fp32."""
    weights: tuple[str, ...]
    """Files that it reads its weights from."""
    nodes: int
    """Number of nodes."""
    opset: int
    """Version of ONNX's operators."""
    inputs: tuple[TensorEntry, ...]
    """Inputs in their order."""
    outputs: tuple[TensorEntry, ...]
    """Outputs in their order."""
    engine_hints: Mapping[str, Any] = field(default_factory=dict)
    """Hints for building an engine of it, by name; none is written so far."""


@dataclass(frozen=True, kw_only=True)
class RingEntry(Entry):
    """Ring of past entries along the second axis of a state."""

    slots: int
    """Number of slots, K; entry e lies in slot e mod K."""
    counter: str
    """Name of the state, int32, that counts entries: slot s is empty, and zero, while s >= it. Each frame adds 1; from
    2K it goes back to K."""
    frames_to_fill: int
    """Frames after which no slot is empty."""


@dataclass(frozen=True, kw_only=True)
class StateEntry(Entry):
    """One tensor of the state of a stream, an input `NAME` and an output `next_NAME` of the graphs."""

    name: str
    """Name of the input."""
    dtype: str
    """Type of the elements: `float32` or `int32`."""
    shape: tuple[int | str, ...]
    """Length of each axis; the first is `batch`, the axis of streams."""
    initial: int
    """Value of all elements before the first frame."""
    ring: RingEntry | None = None
    """Use of the second axis as a ring; absent for other states."""


@dataclass(frozen=True, kw_only=True)
class Producer(Entry):
    """Versions that made the bundle."""

    e3d_deploy: str
    """Version of e3d_deploy."""
    torch: str
    """Version of PyTorch."""
    onnx: str
    """Version of onnx."""


@dataclass(frozen=True, kw_only=True)
class History(Entry):
    """Length of the memory, in words for `e3d inspect`."""

    slots: int
    """Number of past cells that are recalled."""
    exact_for_steps: int
    """Steps for which the result equals that of an unlimited history."""
    then: str
    """Words for the time after."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Entry):
    """Form of the frames, in words."""

    frames: str
    """Frames that go in."""
    patching: str
    """Place where frames are cut into patches."""
    output: str
    """Predictions that come out."""


@dataclass(frozen=True, kw_only=True)
class Rounding(Entry):
    """Largest difference of PyTorch's float32 from its float64 on the reference clip; docs/model.md says why."""

    predictions: float
    """Difference of predictions."""
    states: float
    """Difference of final states."""


@dataclass(frozen=True, kw_only=True)
class Tried(Entry):
    """Precision policy that was measured."""

    policy: str
    """Name of the policy."""
    exclude: tuple[str, ...]
    """Layers that stay in float32."""
    budget: Mapping[str, float]
    """Allowed loss of quality, by measure."""
    fits: bool
    """It keeps the budget."""
    drift: Mapping[str, float | None]
    """Measured loss, by measure; null for what is not a number."""
    bytes: int
    """Size of weights and nodes of the step graph (bytes)."""
    step_ms: float | None
    """Time of a step on ONNX Runtime where it was exported (ms); null if it was not timed."""


@dataclass(frozen=True, kw_only=True)
class Precision(Entry):
    """Policy of the graphs, and what is known of its cost; all but the first three absent for plain fp32."""

    policy: str
    """Name of the policy."""
    exclude: tuple[str, ...]
    """Layers that stay in float32."""
    budget: Mapping[str, float]
    """Allowed loss of quality, by measure."""
    fits: bool | None = None
    """It keeps the budget."""
    drift: Mapping[str, float | None] | None = None
    """Measured loss, by measure; null for what is not a number."""
    bytes: int | None = None
    """Size of weights and nodes of the step graph (bytes)."""
    step_ms: float | None = None
    """Time of a step on ONNX Runtime where it was exported (ms)."""
    measured: Mapping[str, Any] | None = None
    """Source and hash of the clips that the loss was measured on."""
    calibration: Mapping[str, Any] | None = None
    """Source and hash of the clips that ranges were learnt from."""
    tried: tuple[Tried, ...] = ()
    """All policies that were measured, the cheapest first."""


@dataclass(frozen=True, kw_only=True)
class Verification(Entry):
    """Last report of `e3d verify` on a backend, as far as it is read again; its other fields stand beside.

    `verify.json` beside the manifest holds such reports; older versions wrote them into the manifest.
    """

    yardstick: str | None = None
    """Reference: `torch`, or `reference.npz`."""
    worst: float | None = None
    """Largest difference of predictions; absent if it is not a number."""
    passed: bool | None = None
    """It was within the budget."""


@dataclass(frozen=True, kw_only=True)
class Manifest(Entry):
    """Content of manifest.json."""

    schema: int
    """Version of this form: 2."""
    name: str
    """Name of the bundle."""
    created: str
    """Time of the export (ISO 8601, UTC)."""
    producer: Producer
    """Versions that made it."""
    config: Mapping[str, Any]
    """Fields of `ModelConfig`, as in `model.safetensors`; `semantics` says which E3D-LSTM this is, docs/model.md."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the model, see below; absent if there are none."""
    context_length: int
    """Frames that the clip graph takes."""
    horizon: int
    """Frames that the clip and rollout graphs give."""
    batch: int
    """Streams that the graphs run at once; 1 where they take any number."""
    dynamic_batch: bool
    """The graphs take any number of streams; otherwise streams are stepped one after another if `batch` is 1."""
    history: History
    """Length of the memory."""
    preprocessing: Preprocessing
    """Form of the frames."""
    rounding: Rounding
    """Rounding error of PyTorch's float32."""
    precision: Precision
    """Policy of the graphs."""
    states: tuple[StateEntry, ...] = ()
    """State of a stream, by name; in schema 1 it follows from `config`."""
    graphs: tuple[GraphEntry, ...]
    """All graphs. In schema 1 an object by name, without `name`, `backends` and `engine_hints`."""
    verification: Mapping[str, Verification]
    """Reports of older versions, by backend; empty since they are in `verify.json`."""
    engines: Mapping[str, EngineSidecar]
    """Sidecar of each plan, by `GRAPH.TARGET`; docs/engines.md."""
    files: Mapping[str, str]
    """SHA-256 of every file but the manifest. Every graph, its weights, the model and the reference must be listed; a
    plan that is not is not part of the bundle."""

    @classmethod
    def from_json(cls, value: object, where: str = "") -> Self:
        """Return the manifest from what JSON gives, in any schema of `READS`.

        Raises:
            ValueError: a field is missing, or of the wrong type; it says which.
        """
        if isinstance(value, Mapping) and value.get("schema") == 1 and "graphs" in value:
            graphs = value["graphs"]
            if not isinstance(graphs, Mapping):
                raise ValueError("graphs: got a list, expected an object by name, as the schema is 1")
            return super().from_json({**value, "graphs": ()}, where)._with_graphs(graphs)
        return super().from_json(value, where)

    def _with_graphs(self, graphs: Mapping[str, object]) -> Self:
        """Return the manifest with the graphs of schema 1."""
        return replace(self, graphs=tuple(_graph_of_schema_1(name, entry) for name, entry in graphs.items()))

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON values, in its own schema."""
        result = super().to_json()
        if self.schema == 1:
            named = ("name", "backends")
            result["graphs"] = {
                one["name"]: {key: value for key, value in one.items() if key not in named} for one in result["graphs"]
            }
        return result

    def entry(self, name: str, backend: str | None = None) -> GraphEntry | None:
        """Return the graph of a name for a backend: one of its own before one for all; None if there is none.

        Args:
            backend: None for the graph for all, or else the first.
        """
        named = [one for one in self.graphs if one.name == name]
        own = [one for one in named if one.backends is not None and (backend is None or backend in one.backends)]
        shared = [one for one in named if one.backends is None]
        ordered = shared + own if backend is None else own + shared
        return ordered[0] if ordered else None

    def stream_states(self) -> States | None:
        """Return the states that are described; None in schema 1."""
        return States(tuple(_tensor(one) for one in self.states)) if self.states else None

    def problems(self, *, always: set[str]) -> Iterator[str]:
        """Yield what keeps the manifest from being used although its fields are of the right types.

        Args:
            always: files that must be among those that are hashed, as must every graph and its weights.
        """
        for name in ("context_length", "horizon", "batch"):
            if (value := getattr(self, name)) < 1:
                yield f"{name}: got {value}, expected 1 or more"
        try:
            Card.from_dict(self.card)
        except ConfigError as error:
            yield str(error).removesuffix("; save or export the model again")
        yield from self._odd_graphs()
        yield from self._odd_states()
        yield from self._odd_lengths()
        needed = always.union(*([graph.file, *graph.weights] for graph in self.graphs))
        if unlisted := needed - set(self.files):
            yield f"files: has no hash of {', '.join(sorted(unlisted))}"
        yield from (f"files: got {name!r}, expected a name of a file" for name in sorted(self.files) if "\0" in name)
        # Engines are in a folder and are hashed only when they are loaded; nothing else may pass for one.
        yield from (f"names {name}, which is no file beside it" for name in sorted(needed) if "/" in name)

    def _odd_graphs(self) -> Iterator[str]:
        if self.entry("step") is None:
            yield "graphs: lacks step"
        yield from (
            f"graphs.{one.name}.backends: is empty, expected names, or null for all"
            for one in self.graphs
            if one.backends == ()
        )
        takers = [(one.name, backend) for one in self.graphs for backend in (one.backends or (None,))]
        yield from (
            f"graphs: has two graphs {name} for {backend or 'all backends'}, expected one"
            for name, backend in dict.fromkeys(takers)
            if takers.count((name, backend)) > 1
        )

    def _odd_states(self) -> Iterator[str]:
        if self.schema > 1 and not self.states:
            yield "states: has none, expected those of a stream"
        forms = {one.name: one for one in self.states}
        if list(forms) != sorted(one.name for one in self.states):
            yield "states: expected each name once, in their order"
        for one in self.states:
            lengths = one.shape[1:]
            if one.shape[:1] != (ANY,) or not all(isinstance(side, int) and side > 0 for side in lengths):
                yield f"states.{one.name}.shape: got {list(one.shape)}, expected {ANY} and lengths"
            elif one.dtype not in ("float32", "int32"):
                yield f"states.{one.name}.dtype: got {one.dtype!r}, expected float32 or int32"
            elif one.ring is not None:
                counter = forms.get(one.ring.counter)
                if counter is None or (counter.dtype, counter.shape) != ("int32", (ANY,)):
                    yield f"states.{one.name}.ring.counter: got {one.ring.counter!r}, expected a state int32 [{ANY}]"
                elif lengths[:1] != (one.ring.slots,):
                    yield f"states.{one.name}.ring.slots: got {one.ring.slots}, its shape is {list(one.shape)}"
                elif one.ring.frames_to_fill != (fill := one.ring.slots - counter.initial):
                    yield f"states.{one.name}.ring.frames_to_fill: got {one.ring.frames_to_fill}, expected {fill}"

    def _odd_lengths(self) -> Iterator[str]:
        """Yield where the graphs disagree with the states, or with the lengths of context and forecast."""
        states = {one.name: (one.dtype, one.shape[1:]) for one in self.states}
        for graph in (graph for graph in self.graphs if graph.name == "step" and states):
            inputs = {one.name: (one.dtype, one.shape[1:]) for one in graph.inputs if one.name != FRAME}
            for name in sorted(states.keys() | inputs.keys()):
                if states.get(name) != inputs.get(name):
                    yield f"states.{name}: {states.get(name)}, but the step graph takes {inputs.get(name)}"
        for graph in (graph for graph in self.graphs if graph.name == "clip"):
            tensors = {one.name: one.shape[1:2] for one in (*graph.inputs, *graph.outputs)}
            for name, length in ((CONTEXT, self.context_length), (FORECAST, self.horizon)):
                if tensors.get(name) != (length,):
                    yield f"graphs.clip: {name} has {tensors.get(name)} frames, expected {length}"
        if not self.precision.budget or min(self.precision.budget.values()) < 0:
            yield f"precision.budget: got {dict(self.precision.budget)}, expected what may be lost, 0 or more"


def describe_states(states: States) -> tuple[StateEntry, ...]:
    """Return the entries of the manifest for some states."""
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
    """Return a state as a tensor of one stream."""
    ring = entry.ring
    return Tensor(
        entry.name,
        (1, *(int(side) for side in entry.shape[1:])),
        cast("DType", entry.dtype),
        initial=entry.initial,
        ring=None if ring is None else Ring(slots=ring.slots, counter=ring.counter, frames_to_fill=ring.frames_to_fill),
    )


def _graph_of_schema_1(name: str, entry: object) -> GraphEntry:
    where = f"graphs.{name}"
    if not isinstance(entry, Mapping):
        return GraphEntry.from_json(entry, where)  # which refuses it
    return GraphEntry.from_json({**entry, "name": name, "backends": None}, where)
