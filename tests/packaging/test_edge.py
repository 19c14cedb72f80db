"""The wheel on a device: an environment with the extras `cpu`, `video` and `plot`, and without PyTorch."""

import json
from pathlib import Path

import numpy as np

from e3d_deploy.data.clips import PEDESTRIANS
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


def test_a_clip_is_forecast(edge_python: Path, exported: Path, tmp_path: Path) -> None:
    arguments = (exported / "tiny.e3d", exported / "clip.npy", "--context", "4", "--horizon", "3", "-o", "out.npz")
    done = run(edge_python, "e3d", "predict", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "out.npz")["frames"].shape == (1, 3, 16, 24, 1)


def test_a_video_is_streamed(edge_python: Path, exported: Path, tmp_path: Path) -> None:
    arguments = (exported / "tiny.e3d", str(PEDESTRIANS), "--horizon", "2", "--jsonl", "-", "-o", "beside.mp4")
    done = run(edge_python, "e3d", "stream", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == list(range(150))
    assert (tmp_path / "beside.mp4").stat().st_size > 0


def test_what_a_device_lacks_is_named_with_its_extra(edge_python: Path, exported: Path, tmp_path: Path) -> None:
    done = run(edge_python, "e3d", "export", exported / "tiny.safetensors", "-o", "out.e3d", cwd=tmp_path)
    assert done.returncode == 4
    assert "pip install 'e3d_deploy[train]'" in done.stderr
    assert list(tmp_path.iterdir()) == []
