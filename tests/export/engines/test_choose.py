"""Defaults of a build, and the estimate that is shown before it begins."""

import re
from pathlib import Path

import pytest

from e3d_deploy.bundle.folder import WEIGHTS
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.export.engines import build as build_module
from e3d_deploy.export.engines import choose
from e3d_deploy.export.engines.build import build
from e3d_deploy.export.engines.choose import default_target, estimate
from e3d_deploy.runtime import Bundle
from tests.fake_tensorrt import FakeTensorRT
from tests.manifests import changed
from tests.tools import e3d


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    made = FakeTensorRT()
    monkeypatch.setattr(build_module, "library", lambda _: made)
    return made


@pytest.mark.parametrize(
    ("installed", "driver", "target"),
    [
        ({"tensorrt_rtx"}, False, "tensorrt-rtx"),
        ({"tensorrt"}, True, "tensorrt"),
        ({"tensorrt", "tensorrt_rtx"}, False, "tensorrt-rtx"),
    ],
)
def test_the_library_of_this_machine_is_the_target(
    installed: set[str], driver: bool, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "has_library", installed.__contains__)
    monkeypatch.setattr(choose, "has_nvidia_driver", lambda: driver)
    assert default_target() == target


def test_two_libraries_or_none_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(choose, "has_library", lambda _: True)
    with pytest.raises(
        ConfigError, match="tensorrt and tensorrt-rtx are both installed here; choose one with --target"
    ):
        default_target()
    monkeypatch.setattr(choose, "has_library", lambda _: False)
    with pytest.raises(BackendUnavailable, match=r"no library here can build engines; pip install .*rtx"):
        default_target()


def test_only_the_step_is_built_and_the_engines_of_other_graphs_stay(trt: FakeTensorRT, bundle_path: Path) -> None:
    assert set(build(Bundle.open(bundle_path), "tensorrt-rtx", graphs=("step",))) == {"step"}
    assert trt.built == 1
    assert set(Bundle.open(bundle_path).manifest.engines) == {"step.tensorrt-rtx"}
    build(Bundle.open(bundle_path), "tensorrt-rtx", graphs=("rollout", "clip"))
    assert trt.built == 3
    opened = Bundle.open(bundle_path)
    assert set(opened.manifest.engines) == {f"{graph}.tensorrt-rtx" for graph in ("step", "rollout", "clip")}
    for graph in ("step", "rollout", "clip"):
        assert f"engines/{graph}.tensorrt-rtx.plan" in opened.manifest.files
        assert (bundle_path / "engines" / f"{graph}.tensorrt-rtx.plan").exists()


def test_a_graph_that_a_bundle_lacks_is_refused(trt: FakeTensorRT, bundle_path: Path) -> None:
    with pytest.raises(ConfigError, match="graphs: got 'stpe', expected some of step, rollout, clip"):
        build(Bundle.open(bundle_path), "tensorrt-rtx", graphs=("step", "stpe"))
    assert trt.built == 0


def test_time_and_size_are_shown_before_the_build(
    trt: FakeTensorRT, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "has_library", {"tensorrt_rtx"}.__contains__)
    said = e3d("build", bundle_path, "--graphs", "step", "--cache", "none").stderr.splitlines()
    assert said[0] == "target: tensorrt-rtx, the installed library"
    assert re.fullmatch(r"step: about \d+ s on an idle machine, and \d+ MB", said[1])
    assert said[2] == "building tensorrt-rtx"


def test_a_larger_graph_costs_more(exported: Path) -> None:
    bundle = Bundle.open(exported / "tiny.e3d")
    costs = [estimate(bundle, graph, "tensorrt-rtx") for graph in ("step", "rollout", "clip")]
    assert costs == sorted(costs)
    assert costs[0][0] > 0
    assert costs[0][1] > (exported / "tiny.e3d" / "model.safetensors").stat().st_size


def test_weights_that_a_graph_does_not_read_are_not_counted(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    (bundle_path / WEIGHTS).write_bytes(bytes(10_000_000))
    larger = changed(bundle, files={**bundle.manifest.files, WEIGHTS: "0" * 64})
    assert estimate(larger, "step", "tensorrt-rtx") == estimate(bundle, "step", "tensorrt-rtx")
