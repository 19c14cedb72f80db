"""JSON keys of `e3d inspect`, which scripts of users read."""

import json
from pathlib import Path
from typing import Any

from tests.manifests import sidecar
from tests.tools import e3d

COST = (
    "steps flop_per_step bytes_moved_per_step flop bytes_moved input_bytes output_bytes read_weight_bytes "
    "intermediate_bytes weights weight_bytes unknown_nodes"
)


def inspected(path: Path) -> Any:
    return json.loads(e3d("inspect", path, "--json").stdout)


def test_keys_of_a_bundle_are_stable(bundle_path: Path) -> None:
    e3d("verify", bundle_path, "--backend", "onnxruntime")
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    engine = sidecar(builder="1.0", bytes=5).to_json()
    (bundle_path / "manifest.json").write_text(json.dumps({**manifest, "engines": {"step.tensorrt": engine}}))
    found = inspected(bundle_path)
    sections = "bundle decay config graph cost cost_missing counted nodes step_inputs engine verified"
    assert " ".join(found) == sections
    about = "name digest created context horizon batch slow_young_ring bytes history producer state_bytes_per_stream"
    assert " ".join(found["bundle"]) == about
    assert " ".join(found["graph"]["step"]) == "file backends nodes opset precision by"
    assert " ".join(found["cost"]) == COST
    assert (
        set(found["cost"]["flop"]) == set(found["nodes"]["Conv"]) == {"step", "rollout", "clip"} < set(found["graph"])
    )
    shown = ["builder", "compute_capability", "bytes", "build_seconds", "created"]
    assert found["engine"]["step.tensorrt"] == {name: engine[name] for name in shown}
    assert " ".join(found["verified"]["onnxruntime"]) == "against largest_difference passed"


def test_keys_of_a_model_are_stable(exported: Path) -> None:
    found = inspected(exported / "tiny.safetensors")
    assert " ".join(found) == "model decay config"
    assert " ".join(found["model"]) == "file parameters bytes state_bytes_per_stream"
    assert found["model"]["state_bytes_per_stream"] > 0


def test_labels_are_only_in_the_table(exported: Path) -> None:
    shown = e3d("inspect", exported / "tiny.e3d").stdout
    assert "state of a stream, bytes" in shown
    assert "state_bytes_per_stream" not in shown
    assert "FLOP per step" in shown
