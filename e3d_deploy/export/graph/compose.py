"""Graphs put together from one exported step: step and rollout with their ring of past cells, and the unrolled clip."""

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
    """One frame and the states in, the prediction and the next states out; any number of streams if `batch` is None.

    `core` is `step.Step` as a graph, from `variants.expand`. Around it stands the ring: entries are read where they
    lie, empty slots are hidden by a bias on the scores, and the new entry takes the place of the oldest.
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
    """The last prediction of the step graph and its states in, the forecast and the states after it out.

    The first frame of the forecast is that prediction; each step sees the frame before its own.
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
    """A step on values of a graph, rings and all; the names of its prediction and of the next states."""
    K, Q = config.history_length, config.positions
    slots = graph.constant(np.arange(K, dtype=np.int32)[None])  # [1, K]
    written = graph.op("Unsqueeze", state["written"], graph.integers(1))  # [B, 1]
    empty = graph.op("GreaterOrEqual", slots, written)  # [B, K]
    hidden_by = graph.op("Where", empty, graph.constant(np.float32(contract.EMPTY_BIAS)), graph.constant(np.float32(0)))
    spread = graph.op("Expand", graph.op("Unsqueeze", hidden_by, graph.integers(2)), graph.integers(1, K, Q))
    # One axis for all queries, and one for heads where the core has it.
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
    """The context in, the forecast and the states after its last step out.

    Unrolled: the first L steps see the context, the others the prediction before them. A history is as
    long as there are entries, so nothing is hidden and nothing is copied into rings.
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
    """The last K entries in the order of their slots."""
    kept = entries[-config.history_length :]
    slots = contract.slots(len(entries), config.history_length)
    return [entry for _, entry in sorted(zip(slots, kept, strict=True))]


def _following(states: Sequence[contract.Tensor]) -> list[contract.Tensor]:
    return [contract.Tensor(NEXT + state.name, state.shape, state.dtype) for state in states]


class _Graph:
    """A graph under construction that shares the weights of a core.

    Args:
        batch: streams that it runs at once; None for a named axis, any number.
    """

    def __init__(self, core: GraphProto, batch: int | None) -> None:
        self.batch, self.dynamic = batch or 1, batch is None
        self.nodes: list[NodeProto] = []
        self.initializers = list(core.initializer)
        self.constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.count = 0
        self.counted: str | None = None
        # What depends on weights alone is computed once, not once a step.
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
        """A list of integers, as axes and shapes are given."""
        return self.constant(np.array(values, np.int64))

    def integer(self, value: int) -> str:
        return self.constant(np.int64(value))

    def streams(self, like: str) -> str:
        """Return the name of a one-element list that holds the number of streams, which is that of `like`."""
        if not self.dynamic:
            return self.integers(self.batch)
        if self.counted is None:
            self.counted = self.op("Shape", like, start=0, end=1)
        return self.counted

    def zeros(self, shape: tuple[int, ...], *, like: str) -> str:
        """Zeros of a shape for each stream."""
        if not self.dynamic:
            return self.op("ConstantOfShape", self.integers(self.batch, *shape))
        return self.op("ConstantOfShape", self.op("Concat", self.streams(like), self.integers(*shape), axis=0))

    def concat(self, names: Sequence[str], axis: int) -> str:
        return names[0] if len(names) == 1 else self.op("Concat", *names, axis=axis)

    def inline(self, core: GraphProto, bindings: Mapping[str, str], *, prefix: str) -> dict[str, str]:
        """Add the nodes of a core; return the names of its outputs.

        Args:
            bindings: names for its inputs. One that is not bound is a bias that hides nothing, and its
                addition is left out.
            prefix: before the name of every value inside.
        """
        inputs = {value.name for value in core.input}
        names = {name: name for name in self.fixed} | dict(bindings)
        for node in self.moving:
            unbound = [name for name in node.input if name in inputs and name not in names]
            if unbound:
                assert node.op_type == "Add", f"{unbound[0]} may be left out of an Add alone"
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
        """Hand values out of the graph under other names."""
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
