"""`e3d diff`: differences between bundles and model files, and fields that are not compared."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from e3d_deploy import checkpoint
from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.bundle.manifest import Verification
from e3d_deploy.cli import main
from e3d_deploy.config import ModelConfig
from e3d_deploy.diff import _weights, diff
from e3d_deploy.errors import BundleError, CheckpointError
from e3d_deploy.export import bundle as bundle_module
from e3d_deploy.export.bundle import export
from e3d_deploy.model import E3DLSTM
from e3d_deploy.tensors import read_tensors
from tests.kept_steps import KeptSteps
from tests.manifests import rewrite, sidecar


def model(path: Path, change: Any = lambda _: None, **fields: Any) -> Path:
    """Return the tiny model with changed weights."""
    torch.manual_seed(0)
    config = {"image_size": (16, 24), "patch_size": 4, "hidden": (4, 6), "kernel_size": 3, "history_length": 4}
    network = E3DLSTM(ModelConfig(**{**config, **fields})).requires_grad_(False)
    change(network)
    checkpoint.save(network, path)
    return path


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(main, ["diff", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_a_copy_is_the_same_despite_another_name_and_date(exported: Path, bundle_path: Path) -> None:
    rewrite(bundle_path, name="other", created="1999-12-31T23:59:59+00:00")
    found = diff(exported / "tiny.e3d", bundle_path)
    assert found["differs_in"] == []
    assert found["not_compared"] == {}
    assert found["a"]["name"] == "tiny"
    assert found["b"]["created"].startswith("1999")
    assert found["weights"]["same"] == found["weights"]["tensors"][0] > 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_low_type_model_equals_its_conversion_to_float32(
    exported: Path, tmp_path: Path, dtype: torch.dtype, steps: KeptSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = checkpoint.load(exported / "tiny.safetensors")
    monkeypatch.setattr(bundle_module, "export_core", lambda _, *options: steps(tiny, *options))  # not compared here
    low, wide, bundle = tmp_path / "low.safetensors", tmp_path / "wide.safetensors", tmp_path / "low.e3d"
    checkpoint.save(tiny, low, dtype=dtype)
    checkpoint.save(checkpoint.load(low), wide)
    export(low, bundle, context_length=4, horizon=3, batch=1, reference=exported / "clip.npy")
    for other in (wide, bundle):
        run(low, other)
        found = diff(low, other)
        assert found["differs_in"] == []
        assert found["weights"]["same"] == found["weights"]["tensors"][0] > 10
    assert diff(low, exported / "tiny.safetensors")["differs_in"] == ["weights"]


@pytest.mark.usefixtures("kept_steps")
def test_lengths_graphs_nodes_and_files_of_another_export(exported: Path, tmp_path: Path) -> None:
    lengths = {"context_length": 5, "horizon": 3, "batch": 1, "reference": exported / "clip.npy"}
    found = diff(exported / "tiny.e3d", export(exported / "tiny.safetensors", tmp_path / "other.e3d", **lengths))
    assert found["settings"] == {"context_length": [4, 5]}
    assert found["graphs"]["clip.inputs.context"] == ["float32 [1, 4, 1, 16, 24]", "float32 [1, 5, 1, 16, 24]"]
    assert found["nodes"]["MatMul.clip"] == [24, 28]  # two per layer and step
    clips = {f"clip{own}.onnx" for own in ("", ".openvino", ".tensorrt")}
    assert set(found["files"]) == {*clips, "reference.npz"}
    assert found["config"] == {}
    assert found["differs_in"] == ["settings", "graphs", "rounding", "files", "nodes"]


def test_changed_weights_are_sorted_by_their_difference(tmp_path: Path) -> None:
    def change(network: E3DLSTM) -> None:
        for number, weight in enumerate(network.parameters()):
            if number < 12:
                weight[0] += 2.0**-number

    found = diff(model(tmp_path / "a.safetensors"), model(tmp_path / "b.safetensors", change))["weights"]
    assert (found["changed"], len(found["largest"])) == (12, 10)
    assert [round(np.log2(one["max_abs"])) for one in found["largest"]] == list(range(0, -10, -1))
    one = found["largest"][0]
    a, b = (load_file(tmp_path / f"{name}.safetensors")[one["name"]].astype(np.float64) for name in "ab")
    assert one["relative"] == pytest.approx(np.sqrt(((a - b) ** 2).sum() / (a**2).sum()), rel=1e-6)
    assert one["shape"] == list(a.shape)


def test_a_weight_with_nan_is_listed_first(tmp_path: Path) -> None:
    def change(network: E3DLSTM) -> None:
        network.to_patch.weight[0, 0] += 1000
        network.to_patch.bias[0] = torch.nan

    found = diff(model(tmp_path / "a.safetensors"), model(tmp_path / "b.safetensors", change))
    names = [(one["name"], one["max_abs"]) for one in found["weights"]["largest"]]
    assert names == [("to_patch.bias", None), ("to_patch.weight", pytest.approx(1000, rel=1e-3))]
    json.dumps(found, allow_nan=False)


def test_shapes_names_and_config_of_another_network(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a.safetensors"), model(tmp_path / "b.safetensors", hidden=(4, 6, 8), kernel_size=5)
    found = diff(a, b)
    assert found["config"] == {"hidden": [[4, 6], [4, 6, 8]], "kernel_size": [3, 5]}
    assert found["weights"]["shapes"]["cells.0.hidden_conv.weight"] == [[16, 4, 2, 3, 3], [16, 4, 2, 5, 5]]
    assert found["weights"]["only_a"] == []
    assert "cells.2.merge.weight" in found["weights"]["only_b"]
    assert found["differs_in"] == ["config", "weights"]


def test_a_bundle_and_a_model_file_are_compared_in_common_sections(exported: Path) -> None:
    found = diff(exported / "tiny.e3d", exported / "tiny.safetensors")
    assert found["differs_in"] == []
    assert {"graphs", "files", "nodes"} <= set(found["not_compared"])


def test_every_field_of_a_manifest_counts(exported: Path, bundle_path: Path) -> None:
    manifest = Bundle.open(bundle_path).manifest
    changes = {
        "producer": replace(manifest.producer, torch="1.0"),
        "preprocessing": replace(manifest.preprocessing, output="clipped"),
        "rounding": replace(manifest.rounding, states=1.0),
        "states": tuple(replace(one, initial=1) for one in manifest.states),
        "verification": {"onnxruntime": Verification(worst=1e-7, passed=True)},
        "engines": {"step.tensorrt": sidecar()},
    }
    rewrite(bundle_path, **changes)
    found = diff(exported / "tiny.e3d", bundle_path)
    assert set(found["differs_in"]) == set(changes)
    assert found["producer"] == {"torch": [manifest.producer.torch, "1.0"]}
    assert found["verification"]["onnxruntime.worst"] == [None, 1e-7]
    assert found["engines"]["step.tensorrt.precision.requested"] == [None, "fp32"]
    again = shutil.copytree(bundle_path, bundle_path.with_name("again.e3d"))
    rewrite(again, engines={"step.tensorrt": sidecar(created="later", build_seconds=2.0)})
    assert diff(bundle_path, again)["differs_in"] == []


def test_a_missing_engine_is_shown(exported: Path, bundle_path: Path) -> None:
    files = Bundle.open(bundle_path).manifest.files
    rewrite(bundle_path, files={**files, "engines/step.tensorrt.plan": "0" * 64}, engines={"step.tensorrt": sidecar()})
    found = diff(exported / "tiny.e3d", bundle_path)
    assert found["files"] == {"engines/step.tensorrt.plan": [None, "missing, 000000000000"]}
    assert CliRunner().invoke(main, ["inspect", str(bundle_path)]).exit_code == 0


def test_the_command_ends_with_a_verdict(exported: Path, tmp_path: Path) -> None:
    def change(network: E3DLSTM) -> None:
        network.to_patch.bias[0] += 0.5

    a, b = exported / "tiny.safetensors", model(tmp_path / "b.safetensors", change, norm_eps=1e-3)
    result = run(a, b)
    assert "norm_eps" in result.stdout
    assert "5.0e-01" in result.stdout
    assert result.stdout.splitlines()[-1] == f"{a} and {b} differ in config, weights"
    assert run(a, b, "--exit-code", code=3).stderr.splitlines()[-1] == f"FAIL {a} and {b} differ in config, weights"
    assert run(a, a, "--exit-code").stdout.splitlines()[-1].endswith("are the same")
    assert json.loads(run(a, b, "--json").stdout)["differs_in"] == ["config", "weights"]
    assert "not compared, only one of the two has this section: engines" in run(exported / "tiny.e3d", a).stdout


def test_a_diff_needs_only_numpy_and_click(exported: Path) -> None:
    code = f"""
import sys
for name in ("torch", "onnx", "onnxruntime", "safetensors"):
    sys.modules[name] = None
from pathlib import Path
from e3d_deploy.diff import diff
folder = Path({str(exported)!r})
print(diff(folder / "tiny.e3d", folder / "tiny.e3d")["not_compared"])
print(diff(folder / "tiny.e3d", folder / "tiny.safetensors")["differs_in"])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["{'nodes': 'onnx is not installed'}", "[]"]


def test_paths_that_cannot_be_compared_are_refused(exported: Path, bundle_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(BundleError, match="no such bundle"):
        diff(exported / "tiny.e3d", tmp_path / "absent")
    save_file({"a": np.zeros(2, np.float32)}, path)
    with pytest.raises(CheckpointError, match="not made by e3d_deploy; convert files"):
        diff(path, path)
    (bundle_path / "step.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="altered or truncated"):
        diff(bundle_path, exported / "tiny.e3d")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}x"[:1],
        (12).to_bytes(8, "little") + b'{"a": "b"}  ',
        *(
            len(text).to_bytes(8, "little") + text + bytes(8)
            for text in (
                b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',  # beyond the end of the file
                b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}',
                b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}',
                b'{"a": {"dtype": "F3", "shape": [2], "data_offsets": [0, 8]}}',
                b'{"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}',
                b"[" * 5000,
            )
        ),
    ],
    ids=range(11),
)
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        diff(path, path)


def test_tensors_are_read_as_safetensors_reads_them(exported: Path, tmp_path: Path) -> None:
    tensors, _ = read_tensors(exported / "tiny.safetensors")
    expected = load_file(exported / "tiny.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert all(np.array_equal(tensors[name], expected[name]) for name in expected)
    import safetensors.torch

    kinds = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64]
    others = {str(kind): torch.arange(-3, 3).to(kind).view(2, 3) for kind in kinds} | {"none": torch.zeros(0, 4)}
    safetensors.torch.save_file(others, tmp_path / "o.safetensors")
    read, _ = read_tensors(tmp_path / "o.safetensors")
    for name, tensor in others.items():
        np.testing.assert_array_equal(read[name], tensor.float().numpy())


def test_a_weight_with_nan_equals_itself() -> None:
    weights = {"w": np.array([np.nan, 1], np.float32)}
    assert _weights(weights, dict(weights))["changed"] == 0
    assert _weights(weights, {"w": np.array([np.nan, 2], np.float32)})["changed"] == 1
