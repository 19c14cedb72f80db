"""OpenVINO on CPUs with and without bfloat16."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.export import bundle as bundle_module
from e3d_deploy.export.bundle import export
from e3d_deploy.export.precision.drift import Drift, GraphComparison
from e3d_deploy.policies import Budget
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.specs import find
from e3d_deploy.runtime.verify import _drift, verify
from tests.kept_steps import KeptSteps
from tests.tools import e3d

pytest.importorskip("openvino")
from e3d_deploy.runtime.backends import openvino as module

WIDE = Budget(dssim=0.5, dpsnr=20)
"""Budget wide enough for a network with random weights, whose loss says nothing about trained networks."""


def has_bfloat16() -> bool:
    return "BF16" in module.CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Core:
    """Fake OpenVINO core for a CPU with the given types."""

    def __init__(self, types: list[str]) -> None:
        self.types = types

    def get_property(self, device: str, name: str) -> Any:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return self.types


def in_bfloat16(exported: Path, path: Path, steps: KeptSteps, **options: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "export_core", steps)
        return export(
            exported / "tiny.safetensors",
            path,
            context_length=4,
            horizon=3,
            batch=1,
            precision="bf16",
            budget=WIDE,
            reference=exported / "clip.npy",
            **options,
        )


@pytest.fixture(scope="module")
def low(exported: Path, tmp_path_factory: pytest.TempPathFactory, steps: KeptSteps) -> Path:
    """Export the tiny bundle in bfloat16 and return its path."""
    return in_bfloat16(exported, tmp_path_factory.mktemp("low") / "bf16.e3d", steps)


def test_a_float32_graph_with_a_hint_for_bfloat16_is_recorded_in_the_manifest(low: Path) -> None:
    bundle = Bundle.open(low)
    entry = bundle.entry("step", "openvino")
    assert (entry.precision, entry.by, entry.weights) == ("bf16", "hint", ("model.safetensors",))
    assert entry.drift is not None
    assert 0 < (entry.drift["difference"] or 0) < 0.2
    other = bundle.entry("step", "tensorrt")
    assert (other.precision, other.by, other.weights) == ("bf16", "types", ("model.safetensors", "weights.safetensors"))
    shown = json.loads(e3d("inspect", low, "--json").stdout)["graph"]
    assert (shown["step.openvino-direct"]["by"], shown["step"]["by"]) == ("hint", "types")


def test_excluded_layers_rule_out_the_hint(
    exported: Path, tmp_path: Path, steps: KeptSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hint would apply to all layers."""
    bundle = Bundle.open(in_bfloat16(exported, tmp_path / "m.e3d", steps, exclude=["cells.0.hidden_conv"]))
    assert bundle.entry("step", "openvino") == bundle.entry("step")
    monkeypatch.setattr(module, "bfloat16_settings", lambda: {"INFERENCE_PRECISION_HINT": "bf16"})
    with open_backend(bundle, "openvino", threads=1) as backend:
        assert backend.settings["INFERENCE_PRECISION_HINT"] == "f32"  # type: ignore[attr-defined]


def test_graphs_that_lose_too_much_with_the_hint_are_not_written(
    exported: Path, tmp_path: Path, steps: KeptSteps, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(GraphComparison, "hinted_drift", lambda *_: Drift(difference=0.5, dssim=0.6, dpsnr=1.0))
    with caplog.at_level(logging.WARNING):
        bundle = Bundle.open(in_bfloat16(exported, tmp_path / "m.e3d", steps))
    text = "openvino: backend-specific graphs exceed the budget, so the shared graphs are used; give a larger"
    assert text in caplog.text
    assert bundle.entry("step", "openvino") == bundle.entry("step")


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU does not support bfloat16")
def test_the_loss_of_a_hint_is_measured_with_the_library(
    exported: Path, low: Path, tmp_path: Path, steps: KeptSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU without bfloat16 the loss is estimated."""
    monkeypatch.setattr("e3d_deploy.export.precision.hinted.CORE", Core(["FP32"]))
    monkeypatch.setattr(module, "CORE", Core(["FP32"]))
    estimated = Bundle.open(in_bfloat16(exported, tmp_path / "m.e3d", steps)).entry("step", "openvino").drift
    monkeypatch.undo()
    bundle = Bundle.open(low)
    measured = bundle.entry("step", "openvino").drift
    assert measured is not None
    assert estimated is not None
    assert 0 < (measured["difference"] or 0) != estimated["difference"]
    with open_backend(bundle, "openvino", threads=1) as backend:
        # The reference clip is among the measured clips. Another number of threads may sum in another order.
        assert verify(bundle, backend).worst <= 2 * (measured["difference"] or 0)


def test_opening_allows_the_drift_of_the_graph_that_runs(low: Path) -> None:
    bundle = Bundle.open(low)
    entry, shared = bundle.entry("step", "openvino"), bundle.manifest.precision
    assert entry.drift is not None
    assert shared.drift is not None
    assert _drift(bundle, "openvino") == entry.drift["difference"] != shared.drift["difference"]
    assert _drift(bundle, "emulated") == shared.drift["difference"]


def test_a_cpu_without_bfloat16_is_refused_with_its_precisions(low: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CORE", Core(["WINOGRAD", "FP32", "INT8", "EXPORT_IMPORT"]))
    line = "openvino: this CPU does not support bfloat16, only fp32, int8; export the model again with"
    with pytest.raises(BackendUnavailable, match=line):
        open_backend(Bundle.open(low), "openvino")
    assert line in e3d("verify", low, "--backend", "openvino", code=4).stderr


@pytest.mark.parametrize(
    ("flags", "several"),
    [({"avx512_bf16"}, True), ({"avx512_bf16", "amx_bf16"}, False), (set(), False)],
)
def test_attention_in_bfloat16_is_fused_only_with_amx(
    flags: set[str], several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the CPU's flags are unknown, OpenVINO decides."""
    monkeypatch.setattr(module, "CORE", Core(["FP32", "BF16"]))
    monkeypatch.setattr(module, "cpu_flags", lambda: frozenset(flags))
    assert (module.SNIPPETS in module.bfloat16_settings()) == several


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU does not support bfloat16")
def test_the_number_of_products_in_bfloat16_is_reported(low: Path) -> None:
    bundle = Bundle.open(low)
    with open_backend(bundle, "openvino", threads=1) as backend:
        counted = find("openvino").count_products
        assert counted is not None
        found = counted(backend)
        assert found["bf16"] > 0.5 * sum(found.values())
        assert verify(bundle, backend).passed
    shown = e3d("verify", low, "--backend", "openvino").stdout
    assert "matrix products and convolutions of a step on openvino: " in shown
    assert json.loads(e3d("verify", low, "--backend", "openvino", "--json").stdout)["computed"] == found


def test_a_float32_bundle_computes_all_products_in_float32(bundle_path: Path) -> None:
    shown = json.loads(e3d("verify", bundle_path, "--backend", "openvino", "--json").stdout)
    assert set(shown["computed"]) == {"fp32"}
    assert json.loads(e3d("verify", bundle_path, "--backend", "onnxruntime", "--json").stdout)["computed"] is None


def test_unfused_attention_is_logged(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(bundle_path)
    layers = module._layers
    monkeypatch.setattr(module, "_layers", lambda request: [*layers(request), ("Softmax", "f32")])
    with caplog.at_level(logging.WARNING):
        open_backend(bundle, "openvino").close()
    assert "openvino: attention runs as several kernels, which is slower" in caplog.text


def test_products_in_another_precision_are_logged(
    low: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "bfloat16_settings", lambda: {})
    with caplog.at_level(logging.WARNING), open_backend(Bundle.open(low), "openvino") as backend:
        count = sum(module.count_products(backend).values())  # type: ignore[arg-type]
    assert f"only 0 of {count} convolutions and matrix products run in bf16" in caplog.text
