"""`e3d pack --triton`: results on stdout, clear errors, and nothing half written."""

from pathlib import Path

import pytest

from e3d_deploy.bundle.manifest import Verification
from e3d_deploy.files import sha256
from e3d_deploy.runtime import Bundle
from tests.fake_backend import AGELESS
from tests.manifests import rewrite, sidecar
from tests.tools import contents, e3d
from tests.triton.configs import config_of


def refused(*arguments: object, code: int = 2) -> str:
    """Return the error of a refused command."""
    return e3d(*arguments, code=code).stderr.splitlines()[-1]


def test_the_command_prints_the_repository_its_models_and_the_next_command(exported: Path, tmp_path: Path) -> None:
    output = tmp_path / "my models"
    options = ["--flavour", "python", "--flavour", "onnxruntime", "--name", "clips", "--threads", 1, "--idle", 0.5]
    result = e3d("pack", exported / "tiny.e3d", "--triton", output, *options)
    path, title, *rows = result.stdout.splitlines()
    assert (path, title.split()[:3]) == (str(output), ["model", "flavour", "backend"])
    assert [row.split() for row in rows] == [
        ["clips", "python", "auto", "cpu", "8", "refresh:2"],
        ["clips_onnxruntime", "onnxruntime", "onnxruntime", "cpu", "1", "none"],
    ]
    assert f"next, in a container of Triton: tritonserver --model-repository='{output}'\n" in result.stderr
    assert "deploy/triton/serve" not in result.stderr, "that server has no backend for onnxruntime, and would not start"
    warning = "WARN clips_onnxruntime: keeps one state from the first frame on (renewal none), but the default of the"
    assert warning in result.stderr
    assert config_of(output / "clips").sequence_batching.max_sequence_idle_microseconds == 500_000


def test_no_warning_is_printed_if_the_bundle_needs_no_renewal(bundle_path: Path, tmp_path: Path) -> None:
    rewrite(bundle_path, card=AGELESS.to_dict())
    result = e3d("pack", bundle_path, "--triton", tmp_path / "models", "--flavour", "onnxruntime")
    assert "WARN" not in result.stderr


def test_the_flavour_python_is_served_by_the_script(bundle_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "my models"
    assert f"next: deploy/triton/serve '{output}'\n" in e3d("pack", bundle_path, "--triton", output).stderr


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], "no output is given; give -o NAME.e3d.zip for an archive, or --triton DIR for Triton"),
        (["-o", "a.zip", "--triton", "models"], "-o and --triton write two different outputs"),
        (["-o", "a.zip", "--flavour", "python"], "--flavour requires --triton DIR"),
        (["-o", "a.zip", "--idle", 5], "--idle requires --triton DIR"),
        (["-o", "a.zip", "--max-streams", 5], "--max-streams requires --triton DIR"),
        (["-o", "a.zip", "again.e3d"], "an archive holds one bundle, got 2"),
        (["--triton", "models", "again.e3d", "--name", "a"], "--name names the model of one bundle, got 2 bundles"),
        (["--triton", "models", "--flavour", "onnxruntime", "--backend", "torch"], "--backend has no effect without"),
        (["--triton", "models", "--flavour", "onnxruntime", "--with-engines"], "--with-engines has no effect without"),
        (["--triton", "models", "--flavour", "tensorrt", "--max-batch", 4], "--max-batch has no effect without"),
        (["--triton", "models", "--flavour", "tensorrt", "--threads", 1], "--threads has no effect without"),
        (["--triton", "models", "--flavour", "tensorrt", "--device", "cpu"], "the flavour tensorrt runs on the GPU"),
        (["--triton", "models", "--backend", "tensorrt", "--device", "cpu"], "the backend tensorrt runs on the GPU"),
        (["--triton", "models", "--backend", "tensorrt", "--threads", 1], "has no setting for threads"),
        (["--triton", "models", "--backend", "nope"], "backend: got 'nope', expected one of auto"),
        (["--triton", "models", "--name", "a/b"], "name: got 'a/b', expected letters, digits"),
        (["--triton", "models", "--idle", 0], "0.0 is not in the range"),
        (["--triton", "absent/models"], "its folder does not exist; create it first"),
        (["--triton", "tiny.e3d/models"], "is inside the bundle tiny.e3d"),
        (["--triton", "tiny.e3d", "--overwrite"], "is inside the bundle tiny.e3d"),
        (["--triton", ".", "--overwrite"], "contains the bundle tiny.e3d"),
        (["--triton", "models", "tiny.e3d"], "tiny.e3d: is given twice; give it once"),
    ],
)
def test_options_that_do_not_fit_are_refused_and_nothing_is_written(
    options: list[object], error: str, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    assert error in refused("pack", bundle_path.name, *options)
    assert contents(tmp_path) == before
    assert [one.name for one in tmp_path.iterdir()] == ["tiny.e3d"]


def test_a_damaged_second_bundle_leaves_nothing(bundle_path: Path, exported: Path, tmp_path: Path) -> None:
    (bundle_path / "step.onnx").write_bytes(b"")
    assert "altered or truncated" in refused(
        "pack", exported / "tiny.e3d", bundle_path, "--triton", tmp_path / "models", code=5
    )
    assert [one.name for one in tmp_path.iterdir()] == ["tiny.e3d"]


def test_a_backend_of_engines_requires_them_in_the_repository(bundle_path: Path, tmp_path: Path) -> None:
    command = ["pack", bundle_path, "--triton", tmp_path / "models", "--backend", "tensorrt"]
    assert "has no engine step.tensorrt, its manifest lists no engines; build it" in refused(*command, code=5)
    (bundle_path / "engines").mkdir()
    (bundle_path / "engines" / "step.tensorrt.plan").write_bytes(b"native code")
    files = {"engines/step.tensorrt.plan": sha256(bundle_path / "engines" / "step.tensorrt.plan")}
    files |= Bundle.open(bundle_path).manifest.files
    rewrite(bundle_path, engines={"step.tensorrt": sidecar()}, verification={"torch": Verification()}, files=files)
    assert "backend: tensorrt runs the engines of the bundle; give --with-engines" in refused(*command)
    e3d(*command, "--with-engines")
    assert (tmp_path / "models" / "tiny" / "1" / "bundle.e3d" / "engines" / "step.tensorrt.plan").exists()
    assert "omitted: the engines step.tensorrt" in e3d(*command[:4], "--overwrite").stderr
