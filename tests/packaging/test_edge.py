"""The wheel on a device: an environment with the extras `cpu`, `video` and `plot`, and without PyTorch."""

import json
from pathlib import Path

from tests.packaging.environments import run


def test_the_package_is_imported_from_the_wheel(edge_python: Path, tmp_path: Path) -> None:
    code = "import e3d_deploy.runtime as e3d, importlib.util as u; print(e3d.__file__, u.find_spec('torch'))"
    file, torch = run(edge_python, "-c", code, cwd=tmp_path).stdout.split()
    assert Path(file).is_relative_to(edge_python.parents[1])
    assert torch == "None"


def test_doctor_names_the_backend_of_the_device(edge_python: Path, tmp_path: Path) -> None:
    done = run(edge_python, "e3d", "doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ready = [name for name, there in json.loads(done.stdout)["backends"].items() if there]
    assert ready == ["onnxruntime"]


def test_a_bundle_is_verified(edge_python: Path, exported: Path, tmp_path: Path) -> None:
    done = run(edge_python, "e3d", "verify", exported / "tiny.e3d", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"]
