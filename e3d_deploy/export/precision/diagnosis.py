"""Diagnosis of drift: the first inaccurate values of a step, their cause and a remedy.

The step graph and the float32 step graph run from the same state. Values of the same name are compared in the order in
which they are computed. As many values as memory allows are compared at once.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from e3d_deploy import contract
from e3d_deploy.bundle.folder import FLOAT32_STEP, Bundle
from e3d_deploy.export.precision.types import LARGEST, RECALL_LAYER, fixed_values, label_of, makers_of
from e3d_deploy.json_values import json_object
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.operators import PRODUCTS
from e3d_deploy.runtime.backends.emulated import Steps, emulated, session, with_weights
from e3d_deploy.runtime.backends.protocol import State
from e3d_deploy.runtime.backends.rollout import rollout

Cause = Literal["overflow", "convolution", "softmax", "norm", "state", "other"]
"""Cause of an inaccurate value: a kind of operation, or `state` if small errors add up over the steps."""
LIMITS = {"fp32": 1e-4, "tf32": 0.005, "fp16": 0.02, "bf16": 0.15, "int8": 0.3, "fp8": 0.45}
"""Largest error of a value that the rounding of one step explains. An error is the root mean square of the difference
from float32, divided by the root mean square of the value in float32. Each limit is about four times the largest error
measured with the 2×40 model. For all policies but tf32, this was the error of a value after the softmax."""
MORE_EXACT = {"int8": "fp16", "fp8": "fp16", "bf16": "fp16", "fp16": "fp32", "tf32": "fp32", "fp32": "fp32"}
"""More exact policy that is recommended in place of each policy."""
NORM = ("ReduceMean", "Sub", "Sqrt", "Div")
"""Operators of a norm that is written out."""
MAX_BYTES = 64_000_000
"""Maximum memory for the values that are compared at once (bytes)."""
MAX_FINDINGS = 3


@dataclass(frozen=True)
class Finding:
    """An inaccurate value whose inputs are accurate."""

    node: str
    """Name of the node that computes the value, as in step.onnx."""
    layer: str
    """Layer of the product that computes the value, or of the nearest product before it, as named for --exclude."""
    cause: Cause
    step: int
    """Step of the rollout on the reference clip, counted from 1."""
    error: float
    """Root mean square error divided by the root mean square of the value in float32; infinity in place of NaN."""
    largest: float
    """Largest magnitude of the value in float32."""
    advice: str
    """Options of `e3d export` that should avoid the error."""

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values, with None for an infinite error."""
        return json_object(self)


def explain(
    bundle: Bundle,
    backend: str | None = None,
    *,
    native: bool,
    threads: int | None = None,
    most_bytes: int = MAX_BYTES,
) -> list[Finding]:
    """Find the first inaccurate values of the step graph on the reference clip.

    Args:
        backend: backend whose step graph is examined; None for the shared graph.
        native: run the unchanged graph on ONNX Runtime, instead of emulating its types. The results of the two differ
            if ONNX Runtime lacks a type.
        most_bytes: maximum memory for the values that are compared at once.

    Returns:
        At most `MAX_FINDINGS` findings, in the order of computation. If no value is inaccurate in a single step, the
        list has one finding with the cause `state`, because small errors add up over the steps. The list is empty if
        the graph agrees with the float32 step graph, or if the policy is fp32 and no value is inaccurate.
    """
    policy = bundle.precision
    file, plain = bundle.entry("step", backend).file, bundle.entry("step").file
    exact = FLOAT32_STEP if FLOAT32_STEP in bundle.manifest.files else plain
    graph = with_weights(bundle, file)
    float32 = graph if file == exact else with_weights(bundle, exact)  # values have the same names in both graphs
    mine = _Watched(graph if native else emulated(graph, policy), bundle, threads, integers=native)
    # A float32 graph is compared with itself, computed without the optimizations of ONNX Runtime.
    theirs = _Watched(float32, bundle, threads, optimise=float32 is not graph)
    step, frame, state = _worst_step(bundle, mine.steps([]), theirs.steps([]))
    if step is None:
        return []
    comparison = _Comparison(float32.graph, _scales(graph.graph), policy)
    for names in _chunks(float32, graph, most_bytes):
        found = mine.steps(names).run(frame, state), theirs.steps(names).run(frame, state)
        for name in names:
            comparison.add(name, found[0][name], found[1][name])
        if findings := comparison.findings(names, step):
            return findings[:MAX_FINDINGS]
    return [] if policy == "fp32" else [comparison.summed_up(step)]


class _Watched:
    """Step graph that can return any of its values."""

    def __init__(
        self, model: ModelProto, bundle: Bundle, threads: int | None, *, integers: bool = False, optimise: bool = True
    ) -> None:
        self.model, self.bundle, self.threads = model, bundle, threads
        self.integers, self.optimise = integers, optimise

    def steps(self, names: Sequence[str]) -> Steps:
        watched = ModelProto()
        watched.CopyFrom(self.model)
        known = {output.name for output in watched.graph.output}
        watched.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in known
        )
        level = onnxruntime.GraphOptimizationLevel
        opened = session(
            watched,
            threads=self.threads,
            integers=self.integers,
            level=level.ORT_ENABLE_ALL if self.optimise else level.ORT_DISABLE_ALL,
        )
        return Steps(opened, self.bundle.config, self.bundle.batch)


def _worst_step(bundle: Bundle, mine: Steps, theirs: Steps) -> tuple[int | None, NDArray[np.float32], State]:
    """Return the first step with results that are not finite; if there is none, the step with the largest difference.

    Returns:
        The number of the step, counted from 1, or None if no step differs; and the frame and state that the step reads.
    """
    clip = np.repeat(bundle.reference()["frames"][None], bundle.batch, axis=0)  # [B, T, C, H, W]
    context, T = clip[:, : bundle.context_length], clip.shape[1]
    frame, before = clip[:, 0], mine.initial_state()
    worst: tuple[float, int | None, NDArray[np.float32], State] = (0.0, None, frame, before)
    both = zip(rollout(mine, context, T - 1), rollout(theirs, context, T - 1), strict=True)
    for number, ((prediction, state), (their_prediction, _)) in enumerate(both, 1):
        if not all(np.isfinite(value).all() for value in (prediction, *state.values())):
            return number, frame, before
        difference = float(np.abs(prediction - their_prediction).max())
        if difference > worst[0]:
            worst = (difference, number, frame, before)
        frame, before = clip[:, number] if number < bundle.context_length else prediction, state
    return worst[1:]


def _scales(graph: GraphProto) -> dict[str, float]:
    """Return the scalar quantisation scales of an int8 or fp8 graph, keyed by `VALUE/POLICY`."""
    scales = {one.name: one for one in graph.initializer if one.name.endswith("/scale") and not one.dims}
    return {name.removesuffix("/scale"): float(numpy_helper.to_array(one)) for name, one in scales.items()}


def _chunks(float32: ModelProto, graph: ModelProto, most_bytes: int) -> Iterator[list[str]]:
    """Yield the names of the float32 values that both graphs compute, in order, in chunks that fit into memory.

    Each value is stored twice, so the values of a chunk take at most half of `most_bytes`.
    """
    inferred = onnx.shape_inference.infer_shapes(float32).graph
    types = {one.name: one.type.tensor_type for one in (*inferred.value_info, *inferred.output)}
    computed = set(makers_of(graph.graph))
    fixed = fixed_values(float32.graph)
    names: list[str] = []
    size = 0
    for node in float32.graph.node:
        for name in node.output:
            kind = types.get(name)
            if name in fixed or name not in computed or kind is None or kind.elem_type != TensorProto.FLOAT:
                continue
            bytes_ = 4 * prod(side.dim_value or 1 for side in kind.shape.dim)
            if names and 2 * (size + bytes_) > most_bytes:
                yield names
                names, size = [], 0
            names.append(name)
            size += bytes_
    if names:
        yield names


class _Comparison:
    """Errors of the values of a graph compared with the float32 graph; the values themselves are not stored."""

    def __init__(self, float32: GraphProto, scales: Mapping[str, float], policy: str) -> None:
        self.policy, self.scales, self.limit = policy, scales, LIMITS[policy]
        self.makers, self.fixed = makers_of(float32), fixed_values(float32)
        self.errors: dict[str, float] = {}
        self.sizes: dict[str, float] = {}
        self.largest: dict[str, float] = {}

    def add(self, name: str, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        # Scores of empty slots equal the bias in both graphs (−∞ in bundles of older versions), so they are not counted
        # in the size of the value.
        differ = found != expected
        finite = np.isfinite(expected) & (expected != np.float32(contract.EMPTY_BIAS))
        difference = np.subtract(found, expected, where=differ, out=np.zeros_like(expected))
        size = float(np.sqrt(np.square(expected[finite], dtype=np.float64).mean())) if finite.any() else 0.0
        maker = self.makers[name]
        if maker.op_type == "ReduceMean":
            # A mean may cancel to nearly 0, so its error is divided by the size of the values that are averaged.
            size = max(size, self.sizes.get(maker.input[0], 0.0))
        self.sizes[name] = size
        error = float(np.sqrt(np.square(difference, dtype=np.float64).mean())) / (size or 1.0)
        self.errors[name] = error if np.isfinite(error) else float("inf")
        self.largest[name] = float(np.abs(expected[finite]).max(initial=0.0))

    def findings(self, names: Collection[str], step: int) -> list[Finding]:
        """Return a finding for each inaccurate value whose inputs are all accurate."""
        off = [name for name in names if self.errors[name] > self.limit]
        first = [name for name in off if not any(self._off(one) for one in self.makers[name].input)]
        return [self._finding(name, step, self._cause(name)) for name in first]

    def summed_up(self, step: int) -> Finding:
        """Return the finding for small errors that add up over the steps: the product with the largest error."""
        layers = [name for name in self.errors if self.makers[name].op_type in PRODUCTS]
        return self._finding(max(layers, key=lambda name: self.errors[name]), step, "state")

    def _off(self, name: str) -> bool:
        return self.errors.get(name, 0.0) > self.limit

    def _cause(self, name: str) -> Cause:
        node = self.makers[name]
        kinds = {self.makers[one].op_type for one in node.input if one in self.makers}
        if not np.isfinite(self.errors[name]) or self._cut_off(node):
            return "overflow"
        if node.op_type == "Conv":
            return "convolution"
        if node.op_type in ("MatMul", "Softmax"):
            return "softmax" if node.name.split("/")[-2].endswith(RECALL_LAYER) else "convolution"
        return "norm" if node.op_type in NORM or kinds & {"Sqrt", "Div"} else "other"

    def _cut_off(self, node: NodeProto) -> bool:
        """Return True if an input of a quantised product exceeds its calibrated range by more than 5%."""
        for name in node.input[:2]:
            scale = self.scales.get(f"{name.rpartition('t0/')[2]}/{self.policy}")
            if scale is not None and self.largest.get(name, 0.0) > 1.05 * scale * LARGEST[self.policy]:
                return True
        return False

    def _finding(self, name: str, step: int, cause: Cause) -> Finding:
        layer = self._layer(name)
        exclude = f"--exclude {layer}"
        advice = exclude
        if cause == "state":
            advice = f"--precision {MORE_EXACT[self.policy]}"
        elif cause == "overflow" and self.policy in LARGEST:
            advice = f"--calibration with clips like these, or {exclude}"
        elif cause == "overflow":
            advice = f"--precision bf16, or {exclude}"
        node = self.makers[name].name
        return Finding(node, layer, cause, step, self.errors[name], self.largest[name], advice)

    def _layer(self, name: str) -> str:
        """Return the layer of the product that computes a value, or of the nearest product before it."""
        queue, seen = [name], {name}
        for value in queue:
            node = self.makers.get(value)
            if node is None:
                continue
            if node.op_type in PRODUCTS:
                return label_of(node, self.makers)
            fresh = [one for one in node.input if one not in seen]
            seen.update(fresh)
            queue.extend(fresh)
        return name
