"""Composition of graphs from one exported step: step and rollout with rings of past cells, and the unrolled clip."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.contract import NEXT
from e3d_deploy.export.graph.recall import KEY_BIAS

OPSET, IR_VERSION = 20, 10
ELEMENT = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}


def step_graph(core: GraphProto, config: ModelConfig, batch: int | None) -> ModelProto:
    """Return the graph of one step: it takes a frame and the states, and returns the prediction and the next states.

    The graph adds a ring of past cells to each layer. The entries of a ring are read in the order of their slots, a
    bias on the scores hides empty slots, and the new entry replaces the oldest one.

    Args:
        core: `step.Step` in standard operators, from `variants.expand`.
        batch: batch size; None for any batch size.
    """
    graph = _Graph(core, batch)
    states = contract.states(config, graph.batch)
    state = {tensor.name: tensor.name for tensor in states}
    prediction, following = _ring_step(graph, core, config, contract.FRAME, state, prefix="t0/")
    graph.give({contract.PREDICTION: prediction, **{NEXT + name: value for name, value in following.items()}})
    return graph.model(
        "step",
        inputs=[contract.frame(config, graph.batch), *states],
        outputs=[contract.frame(config, graph.batch, contract.PREDICTION), *_following(states)],
    )


def rollout_graph(core: GraphProto, config: ModelConfig, batch: int | None, *, horizon: int) -> ModelProto:
    """Return the graph of a rollout: it takes the outputs of the step graph, and returns the forecast and the states.

    The first frame of the forecast is the prediction of the step graph. Each of the `horizon` − 1 steps of this graph
    reads the previous frame of the forecast. The returned states are the states after the last step.
    """
    graph = _Graph(core, batch)
    states = contract.states(config, graph.batch)
    state = {tensor.name: tensor.name for tensor in states}
    predictions = [contract.PREDICTION]
    for t in range(horizon - 1):
        prediction, state = _ring_step(graph, core, config, predictions[-1], state, prefix=f"t{t}/")
        predictions.append(prediction)
    forecast = graph.concat([graph.op("Unsqueeze", one, graph.integers(1)) for one in predictions], axis=1)
    graph.give({contract.FORECAST: forecast, **{NEXT + name: value for name, value in state.items()}})
    return graph.model(
        "rollout",
        inputs=[contract.frame(config, graph.batch, contract.PREDICTION), *states],
        outputs=[contract.clip(config, horizon, contract.FORECAST, graph.batch), *_following(states)],
    )


def _ring_step(
    graph: "_Graph", core: GraphProto, config: ModelConfig, frame: str, state: Mapping[str, str], *, prefix: str
) -> tuple[str, dict[str, str]]:
    """Add one step with its rings to a graph; return the names of its prediction and of the next states."""
    K, Q = config.history_length, config.positions
    slots = graph.constant(np.arange(K, dtype=np.int32)[None])  # [1, K]
    written = graph.op("Unsqueeze", state["written"], graph.integers(1))  # [B, 1]
    empty = graph.op("GreaterOrEqual", slots, written)  # [B, K]
    hidden_by = graph.op("Where", empty, graph.constant(np.float32(contract.EMPTY_BIAS)), graph.constant(np.float32(0)))
    spread = graph.op("Expand", graph.op("Unsqueeze", hidden_by, graph.integers(2)), graph.integers(1, K, Q))
    # Axes of size 1: one for the queries and, if the core has an axis for heads, one for the heads.
    ones = next([1] * (len(one.type.tensor_type.shape.dim) - 2) for one in core.input if one.name == KEY_BIAS)
    bindings = {contract.FRAME: frame, KEY_BIAS: graph.op("Reshape", spread, graph.integers(0, *ones, K * Q))}
    bindings |= {name: value for name, value in state.items() if not name.startswith(("history", "written"))}
    for layer, N in enumerate(config.hidden):
        bindings[f"keys.{layer}"] = graph.op("Reshape", state[f"history.{layer}"], graph.integers(0, K * Q, N))
    outputs = graph.inline(core, bindings, prefix=prefix)

    index = graph.op("Mod", written, graph.constant(np.int32(K)))  # [B, 1]
    here = graph.op("Unsqueeze", graph.op("Equal", slots, index), graph.integers(2, 3))  # [B, K, 1, 1]
    following = {name.removeprefix(NEXT): value for name, value in outputs.items() if name.startswith(NEXT)}
    for layer in range(len(config.hidden)):
        entry = graph.op("Unsqueeze", outputs[f"entry.{layer}"], graph.integers(1))  # [B, 1, D·h·w, N]
        following[f"history.{layer}"] = graph.op("Where", here, entry, state[f"history.{layer}"])
    more = graph.op("Add", state["written"], graph.constant(np.int32(1)))
    full = graph.op("GreaterOrEqual", more, graph.constant(np.int32(2 * K)))
    following["written"] = graph.op("Where", full, graph.op("Sub", more, graph.constant(np.int32(K))), more)
    return outputs[contract.PREDICTION], following


def clip_graph(
    core: GraphProto, config: ModelConfig, batch: int | None, *, context_length: int, horizon: int
) -> ModelProto:
    """Return the graph of a clip: it takes the context, and returns the forecast and the states after the last step.

    The steps are unrolled: the first `context_length` steps read the context, each later step the previous prediction.
    The history of a step has exactly as many entries as were written, at most K. There are therefore no empty slots to
    hide, and entries are copied into rings only after the last step.
    """
    graph = _Graph(core, batch)
    layers = range(len(config.hidden))
    state = {
        tensor.name: graph.zeros(tensor.shape[1:], like=contract.CONTEXT)
        for tensor in contract.states(config)
        if not tensor.name.startswith(("history", "written"))
    }
    positions = config.positions
    entries = {layer: [graph.zeros((positions, config.hidden[layer]), like=contract.CONTEXT)] for layer in layers}
    predictions: list[str] = []
    for t in range(context_length + horizon - 1):
        frame = (
            graph.op("Gather", contract.CONTEXT, graph.integer(t), axis=1) if t < context_length else predictions[-1]
        )
        keys = {f"keys.{layer}": graph.concat(entries[layer][-config.history_length :], axis=1) for layer in layers}
        outputs = graph.inline(core, {**state, **keys, contract.FRAME: frame}, prefix=f"t{t}/")
        predictions.append(outputs[contract.PREDICTION])
        state = {name: outputs[NEXT + name] for name in state}
        for layer in layers:
            entries[layer].append(outputs[f"entry.{layer}"])

    forecast = [graph.op("Unsqueeze", prediction, graph.integers(1)) for prediction in predictions[-horizon:]]
    graph.op("Concat", *forecast, axis=1, output=contract.FORECAST)
    graph.give({NEXT + name: value for name, value in state.items()})
    for layer in layers:
        ring = [graph.op("Unsqueeze", entry, graph.integers(1)) for entry in _ring(entries[layer], config)]
        if missing := config.history_length - len(ring):
            ring.append(graph.zeros((missing, positions, config.hidden[layer]), like=contract.CONTEXT))
        graph.op("Concat", *ring, axis=1, output=f"{NEXT}history.{layer}")
    written = np.full(1, contract.written_after(len(entries[0]) - 1, config.history_length), np.int32)
    graph.op("Expand", graph.constant(written), graph.streams(contract.CONTEXT), output=NEXT + "written")
    return graph.model(
        "clip",
        inputs=[contract.clip(config, context_length, contract.CONTEXT, graph.batch)],
        outputs=[
            contract.clip(config, horizon, contract.FORECAST, graph.batch),
            *_following(contract.states(config, graph.batch)),
        ],
    )


def _ring(entries: list[str], config: ModelConfig) -> list[str]:
    """Return the last K entries in the order of their slots in a ring."""
    kept = entries[-config.history_length :]
    slots = contract.slots(len(entries), config.history_length)
    return [entry for _, entry in sorted(zip(slots, kept, strict=True))]


def _following(states: Sequence[contract.Tensor]) -> list[contract.Tensor]:
    return [contract.Tensor(NEXT + state.name, state.shape, state.dtype) for state in states]


class _Graph:
    """Graph under construction that shares the weights of a core.

    Args:
        batch: batch size; None for a named axis of any size.
    """

    def __init__(self, core: GraphProto, batch: int | None) -> None:
        self.batch, self.dynamic = batch or 1, batch is None
        self.nodes: list[NodeProto] = []
        self.initializers = list(core.initializer)
        self.constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.count = 0
        self.counted: str | None = None
        # Nodes that depend only on weights are added once, here; `inline` adds all other nodes once per step.
        self.fixed = {initializer.name for initializer in core.initializer}
        self.moving = []
        for node in core.node:
            if all(name in self.fixed for name in node.input if name):
                self.fixed.update(node.output)
                self.nodes.append(node)
            else:
                self.moving.append(node)

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        if output is None:
            self.count += 1
            output = f"composed/{kind.lower()}_{self.count}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind}:{output}", **attributes))
        return output

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = f"composed/constant_{len(self.constants)}"
            self.initializers.append(numpy_helper.from_array(array, self.constants[key]))
        return self.constants[key]

    def integers(self, *values: int) -> str:
        """Return the name of a constant list of integers, such as axes or a shape."""
        return self.constant(np.array(values, np.int64))

    def integer(self, value: int) -> str:
        return self.constant(np.int64(value))

    def streams(self, like: str) -> str:
        """Return the name of a one-element list with the number of streams, the size of the first axis of `like`."""
        if not self.dynamic:
            return self.integers(self.batch)
        if self.counted is None:
            self.counted = self.op("Shape", like, start=0, end=1)
        return self.counted

    def zeros(self, shape: tuple[int, ...], *, like: str) -> str:
        """Add zeros of `shape` for each stream of `like`; return their name."""
        if not self.dynamic:
            return self.op("ConstantOfShape", self.integers(self.batch, *shape))
        return self.op("ConstantOfShape", self.op("Concat", self.streams(like), self.integers(*shape), axis=0))

    def concat(self, names: Sequence[str], axis: int) -> str:
        return names[0] if len(names) == 1 else self.op("Concat", *names, axis=axis)

    def inline(self, core: GraphProto, bindings: Mapping[str, str], *, prefix: str) -> dict[str, str]:
        """Add the nodes of a core that depend on its inputs; return the name of each of its outputs in this graph.

        Args:
            bindings: names of the values that replace the inputs of the core. An input may be omitted if it is a bias
                that hides nothing; the Add node that reads the bias is then omitted too.
            prefix: text before the name of each node and value that is added.
        """
        inputs = {value.name for value in core.input}
        names = {name: name for name in self.fixed} | dict(bindings)
        for node in self.moving:
            unbound = [name for name in node.input if name in inputs and name not in names]
            if unbound:
                assert node.op_type == "Add", f"{unbound[0]}: only an input of an Add may be omitted"
                (other,) = (name for name in node.input if name not in unbound)
                names[node.output[0]] = names[other]
                continue
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name = prefix + node.name
            names.update({name: prefix + name for name in node.output})
            copy.input[:] = [names[name] if name else "" for name in node.input]
            copy.output[:] = [names[name] for name in node.output]
            self.nodes.append(copy)
        return {value.name: names[value.name] for value in core.output}

    def give(self, values: Mapping[str, str]) -> None:
        """Make values outputs of the graph.

        Args:
            values: name of each value, by the name of the output.
        """
        for name, value in values.items():
            self.op("Identity", value, output=name)

    def model(self, name: str, *, inputs: Sequence[contract.Tensor], outputs: Sequence[contract.Tensor]) -> ModelProto:
        def values(tensors: Sequence[contract.Tensor]) -> list[onnx.ValueInfoProto]:
            first = [contract.ANY] if self.dynamic else [self.batch]
            return [
                helper.make_tensor_value_info(one.name, ELEMENT[one.dtype], [*first, *one.shape[1:]]) for one in tensors
            ]

        graph = helper.make_graph(self.nodes, name, values(inputs), values(outputs), self.initializers)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="e3d_deploy"
        )
