"""Typed graphs: the right values have low types, all graphs compute the same, and the drift is measured."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import e3d_deploy.onnxruntime_library  # noqa: F401, as it imports ONNX Runtime without its telemetry
from e3d_deploy import checkpoint, contract
from e3d_deploy.cli import main
from e3d_deploy.commands.verify import judged as judged_line
from e3d_deploy.config import EngineConfig, ModelConfig
from e3d_deploy.errors import BackendUnavailable, ConfigError, EngineError, QualityError, ShapeError
from e3d_deploy.export import bundle as bundle_module
from e3d_deploy.export.bundle import export
from e3d_deploy.export.engines.plan import build_plan
from e3d_deploy.export.graph.compose import clip_graph, rollout_graph, step_graph
from e3d_deploy.export.graph.to_onnx import export_core
from e3d_deploy.export.graph.variants import PLAIN, VARIANTS, expand
from e3d_deploy.export.precision.drift import Drift
from e3d_deploy.export.precision.quantize import calibrate
from e3d_deploy.export.precision.types import LOW, NUMPY, evaluate, fixed_values, products, stamp, typed
from e3d_deploy.model import E3DLSTM
from e3d_deploy.operators import PRODUCTS
from e3d_deploy.policies import POLICIES, Budget, parse_budget
from e3d_deploy.runtime import Bundle, load
from e3d_deploy.runtime.backends.emulated import Steps, emulated, session
from e3d_deploy.runtime.backends.protocol import initial_arrays
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.specs import check_runs, export_backends, shared_policies
from e3d_deploy.runtime.verify import verify
from tests.kept_steps import KeptSteps
from tests.manifests import changed, with_graph

CONTEXT, HORIZON = 3, 3
SEMANTICS = {
    "paper": ModelConfig(image_size=(16, 24), hidden=(4, 6), kernel_size=3, history_length=4),
    "google": ModelConfig(image_size=(16, 16), hidden=(4, 4), kernel_size=3, history_length=4, semantics="google"),
    "openstl": ModelConfig(image_size=(16, 16), hidden=(4, 4), kernel_size=3, history_length=4, semantics="openstl"),
}
NATIVE = ("fp16", "int8")
"""Policies that ONNX Runtime runs without emulation."""
SUMMED = 1e-5
"""Largest error of a product that is summed in float32, as a share of the sum of absolute values; measured 7e-7."""


def network(config: ModelConfig) -> E3DLSTM:
    torch.manual_seed(1)
    model = E3DLSTM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)  # biases start at 0 and norms at 1, which would hide errors
    return model.eval().requires_grad_(False)


def clips(config: ModelConfig, count: int = 2) -> list[NDArray[np.float32]]:
    """Return clips of noise that moves to the right."""
    rng = np.random.default_rng(0)
    start = rng.random((count, config.channels, *config.image_size), np.float32)
    return [np.stack([np.roll(one, t, axis=-1) for t in range(CONTEXT + HORIZON)]) for one in start]


class Case:
    """Network with its exported step and the ranges of its values."""

    def __init__(self, semantics: str, steps: KeptSteps) -> None:
        self.config = SEMANTICS[semantics]
        self.model = network(self.config)
        self.exported = steps(self.model, 1)
        self.core = expand(self.exported, VARIANTS[PLAIN])
        self.clips = clips(self.config)
        self.ranges = calibrate(self.core, self.config, 1, self.clips, context_length=CONTEXT, threads=1)

    def graphs(self, policy: str, **options: Any) -> dict[str, ModelProto]:
        core = typed(self.core, policy, ranges=self.ranges, **options)
        graphs = {
            "step": step_graph(core, self.config, 1),
            "rollout": rollout_graph(core, self.config, 1, horizon=HORIZON),
            "clip": clip_graph(core, self.config, 1, context_length=CONTEXT, horizon=HORIZON),
        }
        return {name: stamp(graph, policy) for name, graph in graphs.items()}


@cache
def case_of(semantics: str, steps: KeptSteps) -> Case:
    return Case(semantics, steps)


@pytest.fixture(scope="module", params=SEMANTICS)
def case(request: pytest.FixtureRequest, steps: KeptSteps) -> Case:
    return case_of(request.param, steps)


@pytest.fixture(scope="module")
def paper(steps: KeptSteps) -> Case:
    return case_of("paper", steps)


@pytest.mark.parametrize("policy", LOW)
def test_graphs_are_valid_and_typed_where_they_should_be(case: Case, policy: str) -> None:
    core_products = {node.name for nodes in products(case.core).values() for node in nodes}
    for name, graph in case.graphs(policy).items():
        onnx.checker.check_model(graph, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True).graph
        types = {one.name: one.type.tensor_type.elem_type for one in (*inferred.input, *inferred.value_info)}
        types |= {one.name: one.data_type for one in inferred.initializer}
        makers = {output: node for node in inferred.node for output in node.output}

        def kind(value: str) -> int:
            """Return the type of a factor; for a quantised factor, its quantised type."""
            maker = makers.get(value)  # noqa: B023
            return types[maker.input[0] if maker and maker.op_type == "DequantizeLinear" else value]  # noqa: B023

        kinds = Counter(
            tuple(kind(value) for value in node.input[:2])
            for node in inferred.node
            if node.op_type in ("Conv", "MatMul")
        )
        low, wide = (LOW[policy], LOW[policy]), (TensorProto.FLOAT, TensorProto.FLOAT)
        steps = {"step": 1, "rollout": HORIZON - 1, "clip": CONTEXT + HORIZON - 1}[name]
        assert kinds == {low: steps * len(core_products), wide: steps}  # the convolution to the frame
        for node in inferred.node:
            if node.op_type in ("Softmax", "ReduceMean", "Sqrt", "Div", "Tanh", "Sigmoid"):
                assert {types[value] for value in node.input if types[value] != TensorProto.INT64} == {
                    TensorProto.FLOAT
                }
        ends = [*graph.graph.input, *graph.graph.output]
        assert {one.type.tensor_type.elem_type for one in ends} == {TensorProto.FLOAT, TensorProto.INT32} or (
            name == "clip"
        )


SAME = {"fp16": 5e-3, "bf16": 3e-2, "int8": 0.15, "fp8": 0.3}
"""Tolerance of predictions when the same typed step is computed in two ways.

Measured on one processor: 6e-7 with casts and 3e-8 with quantisation, where both ways use the same kernels. With
different kernels, a value may be rounded to the other neighbour in the low type. Noise of 1e-7 of each float32 result,
added to imitate this, moved predictions by up to 1.1e-3, 6.1e-3, 4.1e-2 and 1e-4 over a rollout; one unit of float8 is
larger, but rarely flips. These bounds cannot distinguish typed from untyped steps: over a rollout the noise moved even
the median by up to 0.8 of the difference between them. Other tests check that the graphs have the same types and
compute the same in float32.
"""
EMULATION = {"fp16": 5e-3, "bf16": 3e-2, "int8": 0.15, "fp8": 0.3}
"""Tolerance of an emulated step against ONNX's reference; measured 2e-6, and 1e-4 in float8. With noise of 1e-7 of each
float32 result: 1.1e-3, 7.0e-3, 3.4e-2 and 1e-4."""
UNEXPLAINED = 0.1
"""Largest error of the emulation, as a share of the difference between typed and untyped step; both are taken at the
upper quartile of all values, which a few flipped roundings hardly move. Measured 1e-4 in fp16, 2e-5 in bf16, and below
1e-6 in int8 and fp8. With noise of 1e-7 of each float32 result, the largest of 25 draws was 0.024, 0.022, 3e-6 and
3e-6. An emulation that ignored the types would have a share of 1."""
FIRST_STEP = {"fp16": 2e-3, "bf16": 2e-2, "int8": 0.1, "fp8": 0.3}
"""Tolerance of the first step in each type against float32; measured at most 6e-4, 6e-3, 3e-2 and 9e-2 on three
networks."""
OPENVINO = {"fp16": 2e-3, "bf16": 5e-2, "int8": 0.15}
"""Tolerance of OpenVINO's first step against the emulation; measured 4.3e-4, 2.6e-3 and 2.4e-7 on a processor that
computes all but int8 in float32. On processors with native bfloat16, OpenVINO keeps every value of the step in
bfloat16; an emulation that rounded all values moved predictions by 1.2e-2. In int8, quantising the output of a
concatenation led to a difference of 0.2."""


@pytest.mark.parametrize("policy", LOW)
def test_step_rollout_and_clip_compute_the_same(case: Case, policy: str) -> None:
    native = policy in NATIVE
    running = {
        name: session(graph if native else emulated(graph, policy), threads=1, integers=native)
        for name, graph in case.graphs(policy).items()
    }
    steps = Steps(running["step"], case.config, 1)
    clip = case.clips[0]
    state, predictions, seen = steps.initial_state(), [], None
    for t in range(CONTEXT + HORIZON - 1):
        frame = clip[t : t + 1] if t < CONTEXT else predictions[-1]
        prediction, state = steps.step(frame, state)
        predictions.append(prediction)
        seen = state if t == CONTEXT - 1 else seen
    assert seen is not None
    forecast = np.stack(predictions[-HORIZON:], axis=1)
    feeds: dict[str, dict[str, Any]] = {
        "clip": {contract.CONTEXT: clip[None, :CONTEXT]},
        "rollout": {contract.PREDICTION: predictions[CONTEXT - 1], **seen},
    }
    for name, feed in feeds.items():
        names = [output.name for output in running[name].get_outputs()]
        outputs = dict(zip(names, running[name].run(names, feed), strict=True))
        np.testing.assert_allclose(outputs[contract.FORECAST], forecast, rtol=0, atol=SAME[policy], err_msg=name)
        np.testing.assert_array_equal(outputs[contract.NEXT + "written"], state["written"])


@pytest.mark.parametrize("policy", LOW)
def test_first_step_of_zero_states_matches_float32(case: Case, policy: str) -> None:
    """The norms see only biases, and would amplify the rounding errors of biases in a low type."""
    graph = case.graphs(policy)["step"]
    steps = Steps(session(emulated(graph, policy), threads=1), case.config, 1)
    exact = Steps(session(step_graph(case.core, case.config, 1), threads=1), case.config, 1)
    frame = case.clips[0][:1]
    found, expected = steps.step(frame, steps.initial_state())[0], exact.step(frame, exact.initial_state())[0]
    assert np.abs(found - expected).max() < FIRST_STEP[policy]


def step_feed(case: Case) -> dict[str, Any]:
    """Return a frame, and states of noise with four entries in each history."""
    rng = np.random.default_rng(3)
    feed: dict[str, Any] = {contract.FRAME: case.clips[0][:1]}
    for name, value in initial_arrays(case.config, 1).items():
        feed[name] = np.full(1, 4, np.int32) if name == "written" else rng.standard_normal(value.shape, np.float32)
    return feed


@pytest.mark.parametrize("policy", LOW)
def test_emulation_is_what_the_types_say(paper: Case, policy: str) -> None:
    """ONNX's reference evaluator computes with the types themselves."""
    graph, feed = paper.graphs(policy)["step"], step_feed(paper)
    names = [output.name for output in graph.graph.output]
    with np.errstate(all="ignore"):
        expected = dict(zip(names, ReferenceEvaluator(graph).run(None, feed), strict=True))
    frame = feed.pop(contract.FRAME)
    found, untyped = (
        Steps(session(model, threads=1), paper.config, 1).run(frame, feed)
        for model in (emulated(graph, policy), step_graph(paper.core, paper.config, 1))
    )
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=EMULATION[policy], err_msg=name)
    left, made = (
        np.quantile(np.concatenate([np.abs(values[name] - expected[name]).ravel() for name in names]), 0.75)
        for values in (found, untyped)
    )
    assert left <= UNEXPLAINED * made


@pytest.mark.parametrize(("policy", "half_unit"), [("fp16", 2.0**-11), ("bf16", 2.0**-8)])
def test_emulated_products_are_rounded_once(paper: Case, policy: str, half_unit: float) -> None:
    """Each product is computed again from the factors it read, so that earlier roundings do not matter."""
    model = emulated(paper.graphs(policy)["step"], policy)
    nodes = [node for node in model.graph.node if node.op_type in PRODUCTS and node.output[0].endswith("/wide")]
    assert len(nodes) == sum(map(len, products(paper.core).values()))
    for node in nodes:
        result = node.output[0].removesuffix("/wide")
        model.graph.node.append(helper.make_node("Cast", [result], [f"{result}/seen"], to=TensorProto.FLOAT))
        for name in (*node.input, f"{result}/seen"):
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    feed = step_feed(paper)
    values = Steps(session(model, threads=1), paper.config, 1).run(feed.pop(contract.FRAME), feed)
    for node in nodes:
        one, other = (values[name] for name in node.input)
        found = values[node.output[0].removesuffix("/wide") + "/seen"]
        for value in (one, other, found):
            np.testing.assert_array_equal(value.astype(NUMPY[policy]).astype(np.float32), value, err_msg=node.name)
        exact, size = product(node, one, other), product(node, np.abs(one), np.abs(other))
        assert (np.abs(found - exact) <= half_unit * np.abs(exact) + SUMMED * size).all(), node.name


def product(node: NodeProto, one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute a matrix product or a convolution in float64."""
    if node.op_type == "MatMul":
        return np.matmul(one, other, dtype=np.float64)
    x, kernel = torch.from_numpy(one).double(), torch.from_numpy(other).double()
    axes = x.ndim - 2
    pads = helper.get_node_attr_value(node, "pads")  # before each axis, then after each
    around = [side for axis in reversed(range(axes)) for side in (pads[axis], pads[axes + axis])]
    convolution = torch.nn.functional.conv2d if axes == 2 else torch.nn.functional.conv3d
    return convolution(torch.nn.functional.pad(x, around), kernel).numpy()


def test_tf32_is_emulated_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((5, 5)).astype(np.float32) for _ in range(2))
    node = helper.make_node("MatMul", ["x", "y"], ["z"], name="product")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [5, 5]) for name in "xyz"]
    model = helper.make_model(
        helper.make_graph([node], "g", ends[:2], ends[2:]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    (found,) = session(emulated(model, "tf32"), threads=1).run(None, {"x": x, "y": y})

    def rounded(value: NDArray[np.float32]) -> NDArray[np.float32]:
        bits = value.view(np.uint32)
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000).astype(np.uint32).view(np.float32)

    np.testing.assert_allclose(found, rounded(x) @ rounded(y), rtol=1e-6, atol=1e-6)
    assert np.abs(found - x @ y).max() > 1e-5


def test_ranges_and_weights_are_those_of_onnxruntimes_quantiser(paper: Case, tmp_path: Path) -> None:
    """`quantize_static` runs with the settings that TensorRT accepts, on a core with folded weights."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    core = GraphProto()
    core.CopyFrom(paper.core)
    fixed = fixed_values(core)
    convolutions = [node for nodes in products(core).values() for node in nodes if node.op_type == "Conv"]
    originals = {node.name: node.input[1] for node in convolutions}
    for node in convolutions:
        folded = numpy_helper.from_array(np.ascontiguousarray(evaluate(core, node.input[1])), f"{node.name}/folded")
        core.initializer.append(folded)
        node.input[1] = folded.name
    model = helper.make_model(core, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    class Reader:
        """Inputs of the core over the same rollouts."""

        def __init__(self) -> None:
            self.feeds = self.read()

        def read(self) -> Iterator[dict[str, Any]]:
            steps = Steps(session(step_graph(paper.core, paper.config, 1), threads=1), paper.config, 1)
            K, Q = paper.config.history_length, paper.config.positions
            for clip in paper.clips:
                state, prediction = steps.initial_state(), clip[:1]
                for t in range(len(clip) - 1):
                    frame = clip[t : t + 1] if t < CONTEXT else prediction
                    empty = np.arange(K) >= state["written"][0]
                    feed = {"frame": frame, "key_bias": np.where(empty, -np.inf, 0).repeat(Q)[None, None]}
                    feed["key_bias"] = feed["key_bias"].astype(np.float32)
                    for name, value in state.items():
                        kind, _, layer = name.partition(".")
                        if kind == "history":
                            feed[f"keys.{layer}"] = value.reshape(1, K * Q, -1)
                        elif kind != "written":
                            feed[name] = value
                    yield feed
                    prediction, state = steps.step(frame, state)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "DedicatedQDQPair": True,
        "QuantizeBias": False,
    }
    quantize_static(
        model,
        tmp_path / "int8.onnx",
        Reader(),  # type: ignore[arg-type]
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        op_types_to_quantize=["Conv", "MatMul"],
        nodes_to_quantize=[node.name for nodes in products(paper.core).values() for node in nodes],
        extra_options=options,
    )
    theirs = {one.name: numpy_helper.to_array(one) for one in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    ours = {one.name: numpy_helper.to_array(one) for one in typed(paper.core, "int8", ranges=paper.ranges).initializer}
    compared = 0
    for node in convolutions:
        weight = originals[node.name]
        np.testing.assert_array_equal(ours[f"{weight}/int8"], theirs[f"{node.name}/folded_quantized"])
        np.testing.assert_allclose(ours[f"{weight}/int8/scale"], theirs[f"{node.name}/folded_scale"], rtol=1e-6)
    factors = {value for nodes in products(paper.core).values() for node in nodes for value in node.input[:2]}
    for value in factors - fixed:
        if f"{value}/int8/scale" in ours and f"{value}_scale" in theirs:
            np.testing.assert_allclose(ours[f"{value}/int8/scale"], theirs[f"{value}_scale"], rtol=1e-5)
            compared += 1
    assert compared > 10


@pytest.mark.usefixtures("any_batch")
@pytest.mark.parametrize("policy", ["bf16", "int8"])
def test_typed_graphs_take_any_number_of_streams(exported: Path, paper: Case, steps: KeptSteps, policy: str) -> None:
    """The network is that of the shared bundle, whose step for any number of streams is exported already."""
    core = expand(steps(checkpoint.load(exported / "tiny.safetensors"), None), VARIANTS[PLAIN])
    ranges = calibrate(core, paper.config, None, paper.clips, context_length=CONTEXT, threads=1)
    graph = stamp(step_graph(typed(core, policy, ranges=ranges), paper.config, None), policy)
    onnx.checker.check_model(graph, full_check=True)
    running = session(emulated(graph, policy), threads=1)
    two, one = Steps(running, paper.config, 2), Steps(running, paper.config, 1)
    frames = np.stack([clip[0] for clip in paper.clips])
    found, _ = two.step(frames, two.initial_state())
    expected = [one.step(frame[None], one.initial_state())[0] for frame in frames]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=0, atol=SAME[policy])


@pytest.mark.parametrize("policy", ["bf16", "int8"])
def test_convolutions_in_3d_are_typed_too(policy: str) -> None:
    """The window of this network has three frames."""
    config = ModelConfig(image_size=(16, 16), hidden=(4,), kernel_size=3, window_length=3, history_length=3)
    model = network(config)
    core = expand(export_core(model, 1), VARIANTS["openvino"])
    ranges = calibrate(core, config, 1, clips(config), context_length=CONTEXT, threads=1)
    graph = stamp(step_graph(typed(core, policy, ranges=ranges), config, 1), policy)
    onnx.checker.check_model(graph, full_check=True)
    steps = Steps(session(emulated(graph, policy), threads=1), config, 1)
    exact = Steps(session(step_graph(core, config, 1), threads=1), config, 1)
    found, expected = (list(one.predictions(clips(config)[0], CONTEXT)) for one in (steps, exact))
    # Measured: 7e-3 and 4e-2.
    assert 0 < np.abs(np.stack(found) - np.stack(expected)).max() < {"bf16": 0.03, "int8": 0.2}[policy]


def test_ranges_are_learnt_over_rollouts(paper: Case) -> None:
    """At the first step hidden states and memory are zero, so ranges learnt from single frames would be zero too."""
    first = [clip[:2] for clip in paper.clips]
    single = calibrate(paper.core, paper.config, 1, first, context_length=1, threads=1)
    hidden = next(name for node in paper.core.node if "hidden.0" in node.input for name in node.output)
    assert single[hidden] == 0
    assert paper.ranges[hidden] > 0.1


def test_products_are_named_by_their_layers(case: Case) -> None:
    names = set(products(case.core))
    assert {"cells.0.hidden_conv", "cells.1.input_conv", "cells.0.recall.scores", "cells.1.recall.values"} <= names
    assert not any("to_patch" in name for name in names)
    memory = {name for name in names if name.endswith("memory_conv")}
    assert len(memory) == (2 if case.config.semantics == "paper" else 0)  # a memory that stays zero is folded


def test_excluded_layers_stay_in_float32(paper: Case) -> None:
    excluded = ["cells.0.hidden_conv", "cells.1.recall.scores"]
    core = typed(paper.core, "bf16", exclude=excluded)
    untouched = {node.name for node in core.node} & {
        node.name for nodes in products(paper.core).values() for node in nodes
    }
    assert untouched == {node.name for label in excluded for node in products(paper.core)[label]}
    with pytest.raises(ConfigError, match=r"exclude: got cells\.7\.x, expected some of cells\.0\.hidden_conv, "):
        typed(paper.core, "bf16", exclude=["cells.7.x"])


# Tests of bundles. All bundles share the exported step.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, paper: Case) -> Path:
    folder = tmp_path_factory.mktemp("precision")
    checkpoint.save(paper.model, folder / "model.safetensors")
    np.save(folder / "clips.npy", (255 * np.stack(clips(paper.config, 4))).astype(np.uint8).transpose(0, 1, 3, 4, 2))
    return folder


def make(folder: Path, core: GraphProto, name: str, **options: Any) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "export_core", lambda *_: core)
        arguments: dict[str, Any] = {
            "context_length": CONTEXT,
            "horizon": HORIZON,
            "batch": 1,  # like the core
            "reference": folder / "clips.npy",
            "calibration": folder / "clips.npy",
            **options,
        }
        return Bundle.open(export(folder / "model.safetensors", folder / name, **arguments))


WIDE = Budget(dssim=0.5, dpsnr=20)
"""Budget for networks with random weights, whose predictions are too poor to judge a loss by."""


@pytest.fixture(scope="module")
def bundles(folder: Path, paper: Case) -> dict[str, Bundle]:
    return {
        policy: make(folder, paper.exported, f"{policy}.e3d", precision=policy, budget=WIDE)
        for policy in POLICIES
        if policy != "fp32"
    }


def measured(bundle: Bundle) -> float:
    """Return the difference that was measured when a bundle was exported."""
    drift = bundle.manifest.precision.drift
    assert drift is not None
    assert drift["difference"] is not None
    return drift["difference"]


@pytest.mark.parametrize("policy", LOW)
def test_weights_of_a_low_type_are_stored_once(bundles: dict[str, Bundle], policy: str) -> None:
    bundle = bundles[policy]
    for entry in bundle.manifest.graphs:
        file = bundle.path / entry.file
        onnx.checker.check_model(file, full_check=True)
        if entry.by == "hint":
            assert (entry.precision, entry.opset, entry.weights) == (policy, 20, ("model.safetensors",))
            continue
        assert (entry.precision, entry.opset) == (policy, 22 if policy == "bf16" else 20)
        assert entry.weights == ("model.safetensors", "weights.safetensors")
        graph = onnx.load(file, load_external_data=False).graph
        low = [one for one in graph.initializer if one.data_type == LOW[policy] and one.dims]
        assert low
        assert all(one.external_data[0].value == "weights.safetensors" for one in low)
        assert not any(node.op_type == "QuantizeLinear" and "weight" in node.input[0] for node in graph.node)
    wide = (bundle.path / "model.safetensors").stat().st_size
    assert (bundle.path / "weights.safetensors").stat().st_size < 0.75 * wide


def test_tf32_has_the_graph_of_fp32_and_an_entry_in_the_manifest(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["tf32"]
    assert bundle.precision == "tf32"
    assert not (bundle.path / "weights.safetensors").exists()
    assert 1e-5 < measured(bundle) < 0.1
    assert verify(bundle, open_backend(bundle, "onnxruntime", threads=1)).worst < 1e-5


def test_the_manifest_records_the_drift_and_the_clips(bundles: dict[str, Bundle]) -> None:
    entry = bundles["int8"].manifest.precision
    assert (entry.policy, entry.exclude, entry.fits) == ("int8", (), True)
    assert entry.budget == {"dssim": 0.5, "dpsnr": 20}
    assert entry.calibration is not None
    assert entry.measured is not None
    assert entry.drift is not None
    assert {**entry.calibration} | {"sha256": ""} == {"source": "clips.npy", "clips": 2, "frames": 12, "sha256": ""}
    assert len(entry.calibration["sha256"]) == 64
    # The reference clip, two clips that are not used for calibration, and one of the package's video.
    assert entry.measured["clips"] == 4
    assert all(value is not None and math.isfinite(value) for value in entry.drift.values())
    assert bundles["bf16"].manifest.precision.calibration is None


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "fp32"])
def test_verify_judges_by_the_policy(bundles: dict[str, Bundle], policy: str) -> None:
    bundle = bundles[policy]
    report = verify(bundle, open_backend(bundle, "emulated"), open_backend(bundle, "torch"))
    assert report.passed
    assert math.isinf(report.budget)
    assert (report.dssim_budget, report.dpsnr_budget) == (0.5, 20)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["budget"] is None
    # The export measured the same clip among others, with the same number of threads.
    assert max(report.predictions) <= 1.01 * measured(bundle)
    strict = changed(bundle, precision=replace(bundle.manifest.precision, budget={"dssim": 0.0}))
    assert report.dssim is not None
    assert verify(strict, open_backend(bundle, "emulated")).passed == (report.dssim <= 0)


def test_a_clip_without_the_true_future_cannot_judge_a_low_precision(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["fp16"]
    with pytest.raises(ShapeError, match="expected at least 6, because fp16 is compared with the true frames"):
        verify(bundle, open_backend(bundle, "torch"), open_backend(bundle, "torch"), clips(bundle.config)[0][:4])


@pytest.mark.parametrize("policy", ["bf16", "fp8"])
def test_onnxruntime_refuses_policies_that_it_does_not_run(bundles: dict[str, Bundle], policy: str) -> None:
    result = CliRunner().invoke(main, ["verify", str(bundles[policy].path), "--backend", "onnxruntime"])
    assert result.exit_code == 4
    assert f"onnxruntime does not run {policy}, only int8, fp16, tf32, fp32; use tensorrt" in result.stderr


def test_auto_logs_when_it_computes_in_float32_instead_of_bfloat16(
    bundles: dict[str, Bundle], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e3d_deploy.runtime.choose.candidates", lambda: ["onnxruntime", "torch"])
    with load(bundles["bf16"].path) as predictor:
        assert predictor.backend.name == "torch"
    assert "backend torch: computes in float32, not in the bundle's bf16" in caplog.text
    monkeypatch.setattr("e3d_deploy.runtime.choose.candidates", lambda: ["onnxruntime"])
    with pytest.raises(BackendUnavailable, match=r"auto: .*onnxruntime does not run bf16"):
        load(bundles["bf16"].path)
    with load(bundles["int8"].path) as predictor:
        assert predictor.backend.name == "onnxruntime"


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory, steps: KeptSteps) -> tuple[Path, GraphProto]:
    """Network with a convolution whose results exceed float16; in float32 the next norm scales them back."""
    folder = tmp_path_factory.mktemp("overflow")
    model = network(SEMANTICS["paper"])
    model.cells[1].hidden_conv.weight.mul_(5e4)
    model.cells[1].hidden_conv.bias.mul_(5e4)
    checkpoint.save(model, folder / "model.safetensors")
    np.save(folder / "clips.npy", (255 * np.stack(clips(model.config, 4))).astype(np.uint8).transpose(0, 1, 3, 4, 2))
    return folder, steps(model, 1)


def test_a_layer_that_overflows_is_found_and_excluded(overflowing: tuple[Path, GraphProto]) -> None:
    folder, core = overflowing
    bundle = make(folder, core, "fp16.e3d", precision="fp16", budget=Budget(dssim=0.1))
    assert bundle.manifest.precision.exclude == ("cells.1.hidden_conv",)
    assert verify(bundle, open_backend(bundle, "emulated", threads=1)).passed


def test_auto_takes_the_cheapest_policy_within_budget(folder: Path, paper: Case, bundles: dict[str, Bundle]) -> None:
    """More expensive policies are not measured."""
    fp16, int8 = (measured(bundles[policy]) for policy in ("fp16", "int8"))
    assert 10 * fp16 < int8, "the policies must differ by more than rounding errors"
    budget = Budget(difference=2 * fp16)
    auto = make(folder, paper.exported, "auto.e3d", precision="auto", budget=budget)
    tried = [(one.policy, one.fits) for one in auto.manifest.precision.tried]
    assert tried == [("int8", False), ("fp16", True)]
    assert auto.precision == "fp16"
    assert all(one.step_ms is not None and one.step_ms > 0 for one in auto.manifest.precision.tried)
    other = make(folder, paper.exported, "bf16only.e3d", precision="auto", backend="openvino", budget=WIDE)
    assert other.precision == "int8"


def test_if_no_policy_stays_within_budget_the_nearest_is_named_and_nothing_written(folder: Path, paper: Case) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(
        QualityError,
        match=r"none of int8, fp16, tf32, fp32 stays within its budget, and nothing was written; the nearest is fp32",
    ):
        make(folder, paper.exported, "none.e3d", precision="auto", budget=Budget(difference=1e-12))
    with pytest.raises(QualityError, match=r"none of int8 stays within its budget.* is int8 with \d+ layers"):
        make(folder, paper.exported, "none.e3d", precision="int8", budget=Budget(difference=1e-12))
    assert sorted(folder.iterdir()) == before


def test_a_policy_that_the_backend_does_not_run_is_refused_before_the_work(folder: Path) -> None:
    with pytest.raises(
        BackendUnavailable,
        match=r"onnxruntime does not run bf16, only .*; use tensorrt or tensorrt-rtx or .*openvino, or export",
    ):
        export(folder / "no.safetensors", folder / "o.e3d", precision="bf16", backend="onnxruntime")
    for options, words in (
        ({"precision": "fp12"}, "got 'fp12', expected auto or one of int8, fp8"),
        ({"backend": "abacus"}, "got 'abacus', expected one of tensorrt, .*openvino"),
        ({"precision": "tf32", "exclude": ["x"]}, "tf32 has no low type"),
    ):
        with pytest.raises(ConfigError, match=words):
            export(folder / "no.safetensors", folder / "o.e3d", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp16", "auto"])
def test_excluding_more_than_half_of_the_products_is_refused(folder: Path, paper: Case, precision: str) -> None:
    with pytest.raises(ConfigError, match=r"exclude: leaves 0 of \d+ .*expected at least 50% of them"):
        make(folder, paper.exported, "all.e3d", precision=precision, budget=WIDE, exclude=list(products(paper.core)))


def test_below_7_pixels_only_differences_are_judged() -> None:
    small = Drift(difference=1e-6, dssim=math.nan, dpsnr=math.nan)
    assert small.share_of(Budget(difference=1e-5)) == pytest.approx(0.1)
    assert math.isinf(small.share_of(Budget(dssim=0.1)))
    assert math.isinf(Drift(difference=math.nan, dssim=0.0, dpsnr=0.0).share_of(Budget(dssim=0.1)))
    perfect = Drift(difference=1e-6, dssim=0.0, dpsnr=-math.inf)  # perfect frames, unlike PyTorch's
    assert perfect.share_of(Budget(dssim=0.1, dpsnr=0.1)) == 0


@pytest.mark.parametrize("policy", ["int8", "fp32"])
def test_a_budget_of_differences_limits_predictions_only(bundles: dict[str, Bundle], policy: str) -> None:
    """Export measures predictions only. In fp32 final states are judged too, by a limit of their own."""
    bundle = bundles["int8"]
    # Export measured steps; the rollout and the clip graph may round some values to the other neighbour.
    entry = replace(bundle.manifest.precision, policy=policy, budget={"difference": 2 * measured(bundle)})
    judged = changed(with_graph(bundle, "step", precision=policy), precision=entry)
    report = verify(judged, open_backend(bundle, "emulated", threads=1))
    assert report.worst <= report.budget
    assert report.passed == math.isinf(report.state_budget) == (policy == "int8")
    assert "of inf" not in judged_line(report)
    if policy == "fp32":
        assert report.state_budget < report.budget
        assert report.furthest.startswith("state ")


def test_the_backends_of_an_export_are_known() -> None:
    assert shared_policies(export_backends()) == ["int8", "fp16", "tf32", "fp32"]
    assert shared_policies(["tensorrt-rtx"]) == list(POLICIES)
    assert export_backends() == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime", "openvino"]
    check_runs("bf16", "torch")  # the reference backend runs a bundle of any policy
    with pytest.raises(BackendUnavailable, match=r"tensorrt does not run fp8, only int8, .*; use tensorrt-rtx, or"):
        check_runs("fp8", "tensorrt")


@pytest.mark.parametrize("text", ["dssim", "dssim=x", "ssim=0.1", "dssim=-1", "dssim=nan", "dpsnr=inf", ""])
def test_an_invalid_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected NAME=NUMBER, where NAME is one of difference, dssim, dpsnr"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "most"),
    [("dssim=2", "dssim=1"), ("dssim=0.01,dpsnr=1000", "dpsnr=48"), ("difference=1e9", "difference=1")],
)
def test_a_budget_that_is_too_large_is_refused(text: str, most: str) -> None:
    with pytest.raises(ConfigError, match=f"expected at most {most}$"):
        parse_budget(text)


def test_a_budget_is_read() -> None:
    assert parse_budget("dssim=0.001, dpsnr=0.05") == Budget(dssim=0.001, dpsnr=0.05)


def test_export_auto_prints_the_table(folder: Path, paper: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "export_core", lambda *_: paper.exported)
    output = folder / "printed.e3d"
    arguments = ["export", folder / "model.safetensors", "-o", output, "--context", CONTEXT, "--horizon", HORIZON]
    arguments += ["--reference", folder / "clips.npy", "--calibration", folder / "clips.npy"]
    arguments += ["--precision", "auto", "--budget", "dssim=0.5,dpsnr=20", "--batch", 1]
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines() if "chosen" in line] == ["int8"]
    assert "weights.safetensors" in {file.name for file in output.iterdir()}


@pytest.mark.parametrize("policy", ["fp16", "bf16", "int8"])
def test_openvino_reads_the_same_file(bundles: dict[str, Bundle], policy: str) -> None:
    """A processor without the type computes in float32 from weights of the type, and may be more exact."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra `openvino`)")
    bundle = bundles[policy]
    frame = bundle.reference()["frames"][:1]
    backend, emulation = (open_backend(bundle, name, threads=1) for name in ("openvino", "emulated"))
    found, _ = backend.step(frame, backend.initial_state())
    expected, _ = emulation.step(frame, emulation.initial_state())
    assert np.abs(found - expected).max() < OPENVINO[policy]


@pytest.mark.parametrize("graph", ["step", pytest.param("rollout", marks=pytest.mark.slow)])
@pytest.mark.parametrize("policy", LOW)
def test_every_policy_builds_with_tensorrt_rtx(rtx: Any, bundles: dict[str, Bundle], policy: str, graph: str) -> None:
    config = EngineConfig(compute_capabilities=("8.9",) if policy == "fp8" else ())
    assert len(build_plan(rtx, bundles[policy].graph(graph, "tensorrt-rtx"), config)) > 10_000


def test_fp8_is_for_compute_capability_8_9_and_later(rtx: Any, bundles: dict[str, Bundle]) -> None:
    with pytest.raises(EngineError, match="fp8"):
        build_plan(rtx, bundles["fp8"].graph("step"), EngineConfig(compute_capabilities=("8.0",)))
