"""Explanations of a failed verification: the first inaccurate layer, the cause and the remedy."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import GraphProto, numpy_helper

from e3d_deploy import checkpoint
from e3d_deploy.bundle.folder import write_manifest
from e3d_deploy.cli import main
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import ConfigError
from e3d_deploy.export import bundle as bundle_module
from e3d_deploy.export.bundle import export
from e3d_deploy.export.graph.compose import step_graph
from e3d_deploy.export.graph.variants import PLAIN, VARIANTS, expand
from e3d_deploy.export.precision.diagnosis import _chunks, explain
from e3d_deploy.export.precision.types import products, stamp, typed
from e3d_deploy.files import sha256
from e3d_deploy.model import E3DLSTM
from e3d_deploy.policies import Budget
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.verify import verify
from tests.kept_steps import KeptSteps

CONFIG = ModelConfig(image_size=(16, 24), hidden=(4, 6), kernel_size=3, history_length=4)
WIDE = Budget(dssim=0.5, dpsnr=20)


class Made:
    """A tiny network, its exported step, and bundles of it."""

    def __init__(self, folder: Path, steps: KeptSteps, *, large: float = 1.0) -> None:
        torch.manual_seed(1)
        self.folder, model = folder, E3DLSTM(CONFIG).eval().requires_grad_(False)
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
        model.cells[1].hidden_conv.weight.mul_(large)
        model.cells[1].hidden_conv.bias.mul_(large)
        checkpoint.save(model, folder / "model.safetensors")
        frames = np.random.default_rng(0).integers(0, 256, (16, 24, 1), np.uint8)
        np.save(folder / "clip.npy", np.stack([np.roll(frames, t, axis=1) for t in range(6)]))
        self.exported = steps(model, 1)
        self.core = expand(self.exported, VARIANTS[PLAIN])

    def bundle(self, policy: str, **options: Any) -> Bundle:
        clip = self.folder / "clip.npy"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bundle_module, "export_core", lambda *_: self.exported)
            path = export(
                self.folder / "model.safetensors",
                self.folder / f"{policy}.e3d",
                context_length=3,
                batch=1,
                horizon=3,
                precision=policy,
                reference=clip,
                calibration=clip if policy != "fp32" else None,
                overwrite=True,
                budget=WIDE if policy != "fp32" else None,
                **options,
            )
        return Bundle.open(path)


def replace_step(bundle: Bundle, core: GraphProto) -> Bundle:
    """Replace the step graph of a bundle; return the bundle opened again."""
    for backend in (None, "onnxruntime"):
        onnx.save(stamp(step_graph(core, bundle.config, 1), bundle.precision), bundle.graph("step", backend))
    return listed(bundle)


def listed(bundle: Bundle) -> Bundle:
    """Update the hash of the step graph in the manifest; return the bundle opened again."""
    files = {**bundle.manifest.files, "step.onnx": sha256(bundle.graph("step"))}
    write_manifest(bundle.path, replace(bundle.manifest, files=files))
    return Bundle.open(bundle.path)


@pytest.fixture(scope="module")
def sane(tmp_path_factory: pytest.TempPathFactory, steps: KeptSteps) -> Made:
    return Made(tmp_path_factory.mktemp("sane"), steps)


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory, steps: KeptSteps) -> Bundle:
    """Bundle in which one layer is computed in float16 although its results exceed the range of float16."""
    made = Made(tmp_path_factory.mktemp("overflow"), steps, large=5e4)
    bundle = made.bundle("fp16")
    assert bundle.manifest.precision.exclude == ("cells.1.hidden_conv",)
    return replace_step(bundle, typed(made.core, "fp16"))


@pytest.mark.parametrize("most_bytes", [20_000, 64_000_000])
def test_a_planted_overflow_is_found(overflowing: Bundle, most_bytes: int) -> None:
    report = verify(overflowing, open_backend(overflowing, "emulated", threads=1))
    assert not report.passed
    first = explain(overflowing, native=False, threads=1, most_bytes=most_bytes)[0]
    assert (first.layer, first.cause) == ("cells.1.hidden_conv", "overflow")
    assert "hidden_conv" in first.node
    assert first.step > 1  # at the first step hidden states are zero
    assert first.largest > 65504
    assert first.advice == "--precision bf16, or --exclude cells.1.hidden_conv"


def test_a_float32_graph_that_the_manifest_does_not_list_is_not_read(bundle_path: Path) -> None:
    (bundle_path / "float32.onnx").write_bytes(b"anything")
    assert explain(Bundle.open(bundle_path), native=False, threads=1) == []


def test_verify_names_the_overflow_and_the_remedy(overflowing: Bundle) -> None:
    arguments = ["verify", str(overflowing.path), "--backend", "emulated", "--threads", "1", "--against", "reference"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3
    last = result.stderr.splitlines()[-1]
    assert (
        "the first error is in cells.1.hidden_conv (overflow); export again with --precision bf16, or --exclude" in last
    )
    assert "overflow" in result.stdout
    printed = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert printed["why"][0]["layer"] == "cells.1.hidden_conv"
    assert printed["why"][0]["error"] is None  # infinite


def test_wrong_weights_of_one_layer_have_the_cause_convolution(sane: Made) -> None:
    bundle = sane.bundle("bf16")
    core = typed(sane.core, "bf16")
    weight = next(one for one in core.initializer if one.name == "cells.0.cell_to_output.weight/bf16")
    wrong = numpy_helper.to_array(weight) * 3
    weight.CopyFrom(numpy_helper.from_array(wrong, weight.name))
    broken = replace_step(bundle, core)
    first = explain(broken, native=False, threads=1)[0]
    assert (first.layer, first.cause) == ("cells.0.cell_to_output", "convolution")
    assert first.advice == "--exclude cells.0.cell_to_output"


def test_values_beyond_the_calibrated_range_have_the_cause_overflow(sane: Made) -> None:
    bundle = sane.bundle("int8")
    model = onnx.load(bundle.graph("step"))
    (node, _) = products(sane.core)["cells.0.input_conv"]
    scale = next(one for one in model.graph.initializer if one.name == f"{node.input[0]}/int8/scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / 8, scale.name))
    onnx.save(model, bundle.graph("step"))
    first = explain(listed(bundle), native=False, threads=1)[0]
    assert (first.layer, first.cause) == ("cells.0.input_conv", "overflow")
    assert first.advice == "--calibration with clips like these, or --exclude cells.0.input_conv"


def test_errors_that_add_up_over_steps_have_the_cause_state(sane: Made) -> None:
    (only,) = explain(sane.bundle("bf16"), native=False, threads=1)
    assert only.cause == "state"
    assert only.advice == "--precision fp16"
    assert only.error < 0.02


def test_a_graph_that_agrees_with_itself_has_nothing_to_explain(sane: Made) -> None:
    assert explain(sane.bundle("fp32"), native=True, threads=1) == []


def test_values_are_compared_within_the_given_memory(sane: Made) -> None:
    graph = step_graph(typed(sane.core, "bf16"), CONFIG, 1)
    twin = step_graph(sane.core, CONFIG, 1)
    together, apart = list(_chunks(twin, graph, 64_000_000)), list(_chunks(twin, graph, 20_000))
    assert len(together) == 1
    assert len(apart) > 5
    assert [name for names in apart for name in names] == together[0]


def test_verify_continues_for_the_given_number_of_steps(sane: Made, tmp_path: Path) -> None:
    bundle = sane.bundle("fp16")
    backend, in_pytorch = open_backend(bundle, "onnxruntime", threads=1), open_backend(bundle, "torch")
    report = verify(bundle, backend, in_pytorch, steps=40)
    assert (report.steps, len(report.predictions), len(report.states)) == (5, 40, 40)
    usual = verify(bundle, backend, in_pytorch)
    assert report.predictions[:5] == usual.predictions
    assert report.final_states == usual.final_states
    assert (report.worst, report.dssim) == (usual.worst, usual.dssim)
    with pytest.raises(ConfigError, match="steps: got 4, expected 5, the steps of the bundle's rollout"):
        verify(bundle, backend, in_pytorch, steps=4)
    with pytest.raises(ConfigError, match="or more with PyTorch to compare"):
        verify(bundle, backend, steps=6)
    picture = tmp_path / "growth.png"
    result = CliRunner().invoke(main, ["verify", str(bundle.path), "--steps", "40", "--picture", str(picture)])
    assert result.exit_code == 0, result.stderr
    shown = [line.split()[0] for line in result.stdout.splitlines() if line.split()[1:2] == ["prediction"]]
    assert shown == ["4", "5", "6", "16", "26", "36", "40"]
    assert picture.stat().st_size > 1000


def test_nan_after_the_rollout_fails(sane: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = sane.bundle("fp16")
    backend = open_backend(bundle, "onnxruntime", threads=1)
    step, count = backend.step, []

    def lost(*arguments: Any) -> Any:
        prediction, state = step(*arguments)
        count.append(1)
        return (prediction * np.nan if len(count) > 9 else prediction), state

    monkeypatch.setattr(backend, "step", lost)
    report = verify(bundle, backend, open_backend(bundle, "torch"), steps=12)
    assert np.isfinite(report.worst)
    assert not report.passed
