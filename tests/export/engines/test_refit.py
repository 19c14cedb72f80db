"""Refitting of engines with a fake library: the real one needs the GPU that an engine is for."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from e3d_deploy import checkpoint
from e3d_deploy.bundle.plans import load_plan
from e3d_deploy.cli import main
from e3d_deploy.config import EngineConfig, ModelConfig
from e3d_deploy.errors import BackendUnavailable, BundleError, EngineError
from e3d_deploy.export.bundle import export
from e3d_deploy.export.engines import build as build_module
from e3d_deploy.export.engines import refit as refit_module
from e3d_deploy.export.engines.refit import difference, refit
from e3d_deploy.files import sha256
from e3d_deploy.model import E3DLSTM
from e3d_deploy.runtime import Bundle
from tests.fake_tensorrt import FakeTensorRT


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of two models with one architecture, and of one with a longer history; tests must not change them."""
    folder = tmp_path_factory.mktemp("refit")
    np.save(folder / "clip.npy", np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8))
    for name, seed, history_length in (("old", 0, 2), ("new", 1, 2), ("other", 0, 3)):
        torch.manual_seed(seed)
        config = ModelConfig(image_size=(8, 8), patch_size=4, hidden=(4,), kernel_size=3, history_length=history_length)
        model = E3DLSTM(config)
        with torch.no_grad():
            for parameter in model.parameters():  # as in a trained model, no weight is exactly 0 or 1
                parameter.add_(0.01 * torch.randn_like(parameter))
        checkpoint.save(model, folder / f"{name}.safetensors")
        export(
            folder / f"{name}.safetensors",
            folder / f"{name}.e3d",
            context_length=1,
            horizon=2,
            batch=1,
            reference=folder / "clip.npy",
        )
    return folder


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT()
    monkeypatch.setattr(build_module, "library", lambda _: fake)
    monkeypatch.setattr(refit_module, "library", lambda _: fake)
    return fake


@pytest.fixture
def bundles(exports: Path, tmp_path: Path, trt: FakeTensorRT) -> tuple[Bundle, Bundle]:
    """Bundle with refittable engines, and a bundle with different weights and without engines."""
    for name in ("old", "new"):
        shutil.copytree(exports / f"{name}.e3d", tmp_path / f"{name}.e3d")
    build_module.build(Bundle.open(tmp_path / "old.e3d"), "tensorrt", EngineConfig(refittable=True))
    trt.loads = True
    return Bundle.open(tmp_path / "old.e3d"), Bundle.open(tmp_path / "new.e3d")


def test_a_bundle_gets_the_engines_of_another_with_its_own_weights(
    bundles: tuple[Bundle, Bundle], trt: FakeTensorRT
) -> None:
    old, new = bundles
    sidecars = refit(new, old, "tensorrt")
    opened = Bundle.open(new.path)
    assert set(sidecars) == set(new.graphs)
    for graph, sidecar in sidecars.items():
        before = old.manifest.engines[f"{graph}.tensorrt"]
        assert sidecar.refitted_from == before.sha256 != sidecar.sha256
        assert sidecar.weights_sha256 == sha256(new.path / "model.safetensors") != before.weights_sha256
        assert sidecar.graph_sha256 == sha256(new.graph(graph, "tensorrt"))
        plan = load_plan(opened, graph, target="tensorrt", version="10.7.0")
        assert plan == b"plan with other weights refitted again"  # the engine stays refittable
    assert trt.calls["refitted from"] == str(new.graph(list(sidecars)[-1], "tensorrt"))
    assert Bundle.open(old.path).manifest == old.manifest


@pytest.mark.parametrize(("missing", "unmatched"), [(["cells.0.bias"], []), ([], ["ONNXTRT_scale"])])
def test_a_missing_weight_is_named_and_nothing_is_written(
    missing: list[str], unmatched: list[str], bundles: tuple[Bundle, Bundle], trt: FakeTensorRT
) -> None:
    old, new = bundles
    trt.missing, trt.unmatched = missing, unmatched
    with pytest.raises(EngineError, match=f"not every weight .* missing: {(missing + unmatched)[0]}.*build the engine"):
        refit(new, old, "tensorrt")
    assert Bundle.open(new.path).manifest.engines == {}
    assert sorted(file.name for file in new.path.iterdir()) == sorted([*new.manifest.files, "manifest.json"])


def test_without_its_gpu_an_engine_is_not_refitted(bundles: tuple[Bundle, Bundle], trt: FakeTensorRT) -> None:
    old, new = bundles
    trt.loads = False
    with pytest.raises(BackendUnavailable, match=r"cannot load the engine to refit it .*or build a new engine"):
        refit(new, old, "tensorrt")


def test_a_refit_that_fails_is_an_error(bundles: tuple[Bundle, Bundle], trt: FakeTensorRT) -> None:
    old, new = bundles
    trt.refits = False
    with pytest.raises(EngineError, match="could not refit the engine"):
        refit(new, old, "tensorrt")


def test_a_bundle_that_changes_while_it_is_refitted_gets_no_engine(
    bundles: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT reads graph and weights from their paths, where another process may replace them."""
    old, new = bundles
    before = (new.path / "manifest.json").read_bytes()

    def other_weights(_trt: object, plan: bytes, graph: Path) -> bytes:
        with (graph.parent / "model.safetensors").open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"else")
        return plan + b"other"

    monkeypatch.setattr(refit_module, "_refitted", other_weights)
    with pytest.raises(
        BundleError, match=r"model\.safetensors: changed while an engine was built from it; build the engine again"
    ):
        refit(new, old, "tensorrt")
    assert (new.path / "manifest.json").read_bytes() == before
    assert not list((new.path / "engines").glob("*.plan"))


def test_a_refit_that_changed_nothing_is_an_error(
    bundles: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = bundles
    monkeypatch.setattr(refit_module, "_refitted", lambda _trt, plan, _graph: plan)
    with pytest.raises(EngineError, match="the refitted engine equals the old one although the weights differ"):
        refit(new, old, "tensorrt")


def test_engines_built_without_refit_are_refused(bundles: tuple[Bundle, Bundle]) -> None:
    old, new = bundles
    build_module.build(old, "tensorrt")
    with pytest.raises(EngineError, match=r"its engine step\.tensorrt was built without --refit"):
        refit(new, Bundle.open(old.path), "tensorrt")
    with pytest.raises(
        EngineError, match=r"has no engine for tensorrt-rtx; run `e3d build .* --target tensorrt-rtx --refit`"
    ):
        refit(new, old, "tensorrt-rtx")


def test_an_altered_engine_is_not_loaded(bundles: tuple[Bundle, Bundle]) -> None:
    old, new = bundles
    (old.path / "engines" / "step.tensorrt.plan").write_bytes(b"code")
    with pytest.raises(BundleError, match="do not run it"):
        refit(new, old, "tensorrt")


def test_graphs_may_differ_in_weights_only(exports: Path, tmp_path: Path) -> None:
    old, new, other = (exports / f"{name}.e3d" for name in ("old", "new", "other"))
    for graph in Bundle.open(old).graphs:
        assert difference((old / f"{graph}.onnx").read_bytes(), (new / f"{graph}.onnx").read_bytes()) is None
    assert "history.0" in str(difference((old / "step.onnx").read_bytes(), (other / "step.onnx").read_bytes()))
    model = onnx.load(old / "step.onnx", load_external_data=False)
    model.graph.node[3].op_type = "Neg"
    onnx.save(model, tmp_path / "changed.onnx")
    assert (
        difference((old / "step.onnx").read_bytes(), (tmp_path / "changed.onnx").read_bytes())
        == model.graph.node[3].name
    )


def test_the_command(bundles: tuple[Bundle, Bundle]) -> None:
    old, new = bundles
    arguments: list[Any] = ["refit", new.path, "--from", old.path, "--target", "tensorrt"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "engines/step.tensorrt.plan" in result.stdout
    sheet = json.loads((new.path / "engines" / "step.tensorrt.json").read_text())
    assert sheet["refitted_from"]
