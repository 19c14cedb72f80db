"""Size, drift and step time of each precision policy on a CPU.

    python -m benchmarks.precision [--size demo|full|google] [--threads 1]

Drift is measured over whole rollouts on real clips. The full-size network has random weights, whose drift says nothing
about a policy, so only its times are measured. `google` is a small network whose memory stays zero, trained here for a
few optimizer steps. OpenVINO is measured if it is installed. Writes benchmarks/results/precision.json for the demo
model, precision_SIZE.json otherwise.

Prediction, written before the first run: fp16 and bf16 lose at most 0.001 of SSIM with all layers in the low type; int8
and fp8 lose at most 0.01 with the attention in float32; int8 is 1.5 times as fast as float32 in ONNX Runtime.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from onnx import GraphProto, ModelProto

from benchmarks.common import compare, save
from e3d_deploy import checkpoint, contract
from e3d_deploy.card import Card
from e3d_deploy.config import ModelConfig, TrainConfig
from e3d_deploy.data.form import Form
from e3d_deploy.demo.exhibits import CONTEXT, HORIZON, MODEL
from e3d_deploy.export.graph.compose import step_graph
from e3d_deploy.export.graph.to_onnx import export_core
from e3d_deploy.export.graph.variants import PLAIN, VARIANTS, expand
from e3d_deploy.export.precision import types
from e3d_deploy.export.precision.choose import Chooser
from e3d_deploy.export.precision.drift import GraphComparison, real_clips
from e3d_deploy.export.precision.quantize import calibrate
from e3d_deploy.export.precision.types import LARGEST, LOW, stamp, typed
from e3d_deploy.export.settings import reference_clip
from e3d_deploy.model import E3DLSTM
from e3d_deploy.policies import BUDGETS, POLICIES
from e3d_deploy.runtime.backends.emulated import Steps, session
from e3d_deploy.runtime.backends.protocol import State, initial_arrays
from e3d_deploy.runtime.backends.specs import find
from e3d_deploy.runtime.verify import quality_lost
from e3d_deploy.training.train import Machine, train

Graphs = dict[str, ModelProto]


def drifts(model: E3DLSTM, core: GraphProto, threads: int) -> tuple[dict[str, Any], Graphs]:
    """Measure the drift of every policy; return the results and the step graph of each policy.

    Layers stay in float32 only as far as the policy's budget requires. All policies are emulated; some are also
    measured in the libraries that run them on this processor.
    """
    config = model.config
    form = Form.of(config, Card())
    reference = reference_clip(form, CONTEXT + HORIZON, None)
    clips = real_clips(form, CONTEXT, None, reference)
    ranges = calibrate(core, config, 1, clips.calibrate, context_length=CONTEXT, threads=threads)
    comparison = GraphComparison(model, clips.measure, batch=1, context_length=CONTEXT, threads=threads)
    chooser = Chooser(core, 1, comparison, lambda: ranges, lambda text: click.echo(text, err=True))
    rows: dict[str, Any] = {}
    graphs: Graphs = {}
    for policy in POLICIES:
        fit = chooser.fit(policy, BUDGETS[policy])
        graphs[policy] = stamp(step_graph(fit.core, config, 1), policy)
        whole = stamp(step_graph(typed(core, policy, ranges=ranges), config, 1), policy)
        rows[policy] = {
            "bytes": fit.bytes,
            "exclude": fit.exclude,
            "fits": fit.fits,
            "drift": asdict(fit.drift),
            "drift_without_exclusion": asdict(comparison.drift(whole, policy)) if fit.exclude else asdict(fit.drift),
        }
    weights = types.LARGEST_WEIGHT
    try:
        types.LARGEST_WEIGHT = {**weights, "int8": LARGEST["int8"]}
        eight = step_graph(typed(core, "int8", ranges=ranges), config, 1)
    finally:
        types.LARGEST_WEIGHT = weights

    def onnxruntime(graph: ModelProto) -> dict[str, float]:
        return native_drift(comparison, Steps(session(graph, threads=threads, integers=True), config, 1))

    native: dict[str, Any] = {
        "onnxruntime": {
            "fp16": onnxruntime(graphs["fp16"]),
            "int8": onnxruntime(graphs["int8"]),
            "int8, weights of 8 bits": onnxruntime(eight),
            "int8, weights of 8 bits, emulated": asdict(comparison.drift(eight, "int8")),
        }
    }
    if requests := openvino_requests(graphs, threads):
        native["openvino"] = {
            policy: native_drift(comparison, OpenVinoSteps(request, config)) for policy, request in requests.items()
        }
    about = {"measured": clips.describe_measured(), "calibration": clips.describe_calibration()}
    return {"policies": rows, "as it runs here": native, "clips": about}, graphs


def native_drift(comparison: GraphComparison, steps: Steps) -> dict[str, float]:
    """Return the drift of a graph that a library runs on this processor, the largest over the clips."""
    found = []
    for clip, theirs in zip(comparison.clips, comparison.expected, strict=True):
        mine = np.concatenate(list(steps.predictions(clip, CONTEXT)))
        lost = quality_lost(theirs[CONTEXT - 1 :], mine[CONTEXT - 1 :], clip[CONTEXT:])
        found.append((float(np.abs(mine - theirs).max()), lost["ssim"], lost["psnr"]))
    worst = np.max(np.array(found, float), axis=0)
    return dict(zip(("difference", "dssim", "dpsnr"), map(float, worst), strict=True))


class OpenVinoSteps(Steps):
    """Steps that an OpenVINO inference request runs."""

    def __init__(self, request: Any, config: ModelConfig) -> None:
        self.request, self.config, self.batch = request, config, 1

    def run(self, frame: Any, state: State) -> dict[str, Any]:
        results = self.request.infer({contract.FRAME: frame, **state})
        return {name: value.copy() for port, value in results.items() for name in port.get_names()}


def openvino_requests(graphs: Mapping[str, ModelProto], threads: int) -> dict[str, Any]:
    """Open the graphs that OpenVINO can run; return an inference request for each policy, none without OpenVINO."""
    try:
        import openvino
    except ImportError:
        return {}
    core, requests = openvino.Core(), {}
    for policy in ("fp32", "fp16", "bf16", "int8"):
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            Path(file.name).write_bytes(graphs[policy].SerializeToString())
            # Without the hint, OpenVINO computes in bfloat16 on a processor with AMX. Our backend sets the hint too.
            hint = "bf16" if policy == "bf16" else "f32"
            options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint}
            requests[policy] = core.compile_model(file.name, "CPU", options).create_infer_request()
    return requests


def feed(config: ModelConfig) -> dict[str, Any]:
    """Return a random frame and random states whose rings are full."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {contract.FRAME: rng.random(contract.frame(config).shape, np.float32)}
    for name, value in initial_arrays(config, 1).items():
        full = np.full(1, config.history_length, np.int32)
        arrays[name] = full if name == "written" else rng.standard_normal(value.shape, np.float32)
    return arrays


def onnxruntime_steps(graphs: Mapping[str, ModelProto], arrays: dict[str, Any], threads: int) -> dict[str, Any]:
    """Return, for each policy that ONNX Runtime runs, a function that makes one step."""
    running = {
        policy: session(graph, threads=threads, integers=True)
        for policy, graph in graphs.items()
        if policy in find("onnxruntime").policies and policy != "tf32"
    }
    return {policy: lambda one=one: one.run(None, arrays) for policy, one in running.items()}


def openvino_steps(graphs: Mapping[str, ModelProto], arrays: dict[str, Any], threads: int) -> dict[str, Any]:
    """Return, for each policy that OpenVINO runs, a function that makes one step."""
    requests = openvino_requests(graphs, threads)
    return {policy: lambda one=one: one.infer(arrays) for policy, one in requests.items()}


def timed(sides: Mapping[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, Any]:
    """Time the policies in turn and compare them with `fp32`; empty without sides."""
    first = {"fp32": sides["fp32"]} if sides else {}
    return compare({**first, **sides}, rounds=rounds, calls=calls) if sides else {}


def trained_briefly(steps: int = 60) -> E3DLSTM:
    """Train a small model with `google` semantics for a few optimizer steps, after which its forecasts are blurred."""
    config = ModelConfig(patch_size=8, hidden=(24, 24), kernel_size=3, semantics="google")
    settings = TrainConfig.of_recipe("modern", steps=steps, validate_every=steps, validation_clips=4)
    with tempfile.TemporaryDirectory() as folder:
        return checkpoint.load(train(config, settings, Path(folder) / "run", machine=Machine(progress=False)))


@click.command()
@click.option(
    "--size",
    type=click.Choice(["demo", "full", "google"]),
    default="demo",
    show_default=True,
    help="Network to measure.",
)
@click.option("--threads", default=1, show_default=True, help="Number of threads.")
@click.option("--rounds", default=7, show_default=True, help="Number of rounds; each side is timed once per round.")
def main(size: str, threads: int, rounds: int) -> None:
    """Measure size, drift and step time of each precision policy."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if size == "google":
        model = trained_briefly()
    else:
        model = checkpoint.load(MODEL) if size == "demo" else E3DLSTM(ModelConfig()).eval()
    core = expand(export_core(model, 1), VARIANTS[PLAIN])
    result: dict[str, Any] = {"size": size}
    if size != "full":
        found, graphs = drifts(model, core, threads)
        result |= found
    else:
        ranges = dict.fromkeys((value for node in core.node for value in (*node.input, *node.output)), 4.0)
        graphs = {
            policy: stamp(step_graph(typed(core, policy, ranges=ranges), model.config, 1), policy)
            for policy in ("fp32", *LOW)
        }
    arrays, calls = feed(model.config), 3 if size == "full" else 10
    if find_spec("openvino"):
        result["openvino"] = version("openvino")
    result["step_ms"] = {
        "onnxruntime": timed(onnxruntime_steps(graphs, arrays, threads), rounds, calls),
        "openvino": timed(openvino_steps(graphs, arrays, threads), rounds, calls),
    }
    save("precision" if size == "demo" else f"precision_{size}", result, threads=threads)


if __name__ == "__main__":
    main()
