"""Installation keeps the engines of one target runnable together."""

import logging
from pathlib import Path
from typing import Any

import pytest

from e3d_deploy.bundle.plans import sources
from e3d_deploy.bundle.sidecar import EngineOptions
from e3d_deploy.export.engines.install import move_in, staging
from e3d_deploy.export.engines.plan import default_buckets, profile
from e3d_deploy.runtime import Bundle
from tests.manifests import sidecar


def install(path: Path, graph: str, **fields: Any) -> Bundle:
    """Install an engine of a graph with the given fields of its sidecar; return the bundle opened again."""
    bundle, target = Bundle.open(path), fields.get("target", "tensorrt")
    with staging(bundle) as stage:
        (stage / f"{graph}.{target}.plan").write_bytes(b"plan")
        made = {**sources(bundle, graph, target), "parts": {"profile": profile(default_buckets(graph))}}
        move_in(bundle, target, stage, {graph: sidecar(graph=graph, **{**made, **fields})})
    return Bundle.open(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"builder": "10.8"},
        {"parts": {"profile": "4 4 4"}},
        {"compute_capability": "8.9 NVIDIA L4"},
        {"options": EngineOptions(version_compatible=True, hardware_compatibility="none", refittable=False)},
    ],
)
def test_an_engine_that_cannot_run_together_with_a_new_one_is_removed(
    fields: dict[str, Any], bundle_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(bundle_path, "rollout")
    install(bundle_path, "rollout", target="tensorrt-rtx")
    with caplog.at_level(logging.WARNING):
        bundle = install(bundle_path, "step", **fields)
    assert set(bundle.manifest.engines) == {"step.tensorrt", "rollout.tensorrt-rtx"}
    assert {path.stem for path in (bundle_path / "engines").iterdir()} == {"step.tensorrt", "rollout.tensorrt-rtx"}
    assert "its engine rollout.tensorrt was removed" in caplog.text


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"parts": {"profile": "1 1 1"}},
        {"parts": None, "refitted_from": "0" * 64},
        {"options": EngineOptions(version_compatible=False, hardware_compatibility="none", refittable=True)},
    ],
)
def test_an_engine_that_runs_together_with_a_new_one_stays(
    fields: dict[str, Any], bundle_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(bundle_path, "rollout")
    with caplog.at_level(logging.WARNING):
        bundle = install(bundle_path, "step", **fields)
    assert set(bundle.manifest.engines) == {"step.tensorrt", "rollout.tensorrt"}
    assert not caplog.text
