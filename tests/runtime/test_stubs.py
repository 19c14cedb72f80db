"""Tests that a stub or a broken installation of a library disables only the backends of that library."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from e3d_deploy import inventory
from e3d_deploy.doctor import examine
from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.runtime import Bundle, load
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.specs import BACKENDS, candidates, has_libraries, installed
from e3d_deploy.tensorrt_library import library


class Angry(ModuleType):
    """Module that raises an error for every attribute."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"do not touch {name}")


def with_spec(spec: Any) -> ModuleType:
    module = ModuleType("stub")
    module.__spec__ = spec
    return module


STUBS = {
    "no spec": ModuleType("stub"),
    "no loader": with_spec(ModuleSpec("stub", None)),
    "a package without folders": with_spec(ModuleSpec("stub", None, is_package=True)),
    "a mock": MagicMock(),
    "a spec that is a mock": with_spec(MagicMock()),
    "no module": SimpleNamespace(),
    "raises": Angry("stub"),
}
LIBRARIES = ("torch", "safetensors", "onnx", "onnxruntime", "openvino", "cuda", "tensorrt")


@pytest.mark.parametrize("kind", STUBS)
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_stub_takes_only_its_own_backends_away(
    name: str, kind: str, any_batch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(installed())
    theirs = {spec.name for spec in BACKENDS.values() if name in {one.partition(".")[0] for one in spec.modules}}
    monkeypatch.setitem(sys.modules, name, STUBS[kind])
    if name == "cuda":  # In a program that installed the stub first, the real submodule cannot have been imported.
        monkeypatch.delitem(sys.modules, "cuda.core", raising=False)
    assert not inventory.has_library(name)
    assert set(installed()) == before - theirs
    assert set(candidates()) <= before - theirs
    assert not any(has_libraries(BACKENDS[one]) for one in theirs)
    assert {one for one, there in examine()["backends"].items() if there} == before - theirs
    bundle = Bundle.open(any_batch)
    for one in theirs:
        with pytest.raises(BackendUnavailable, match=f"{one}: {name}.* in sys.modules is a stub|an engine"):
            open_backend(bundle, one)
    if name == "torch":
        with load(any_batch, threads=1) as predictor:
            assert predictor.backend.name in before - theirs


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_a_stub_of_tensorrt_is_not_taken_for_it(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (target.replace("-", "_"), f"{target.replace('-', '_')}_bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    with pytest.raises(BackendUnavailable, match=r"in sys\.modules is a stub"):
        library(target)


BROKEN = {
    "a library of the system that is missing": "raise OSError('libgomp.so.1: cannot open shared object file')",
    "another exception": "raise KeyError('half installed')",
    "an attribute that is missing": "__version__ = '1.0'",
    "a module that is missing": "import module_that_is_not_there",
}
OPEN = """
import sys
sys.path.insert(0, sys.argv[2])
import e3d_deploy.runtime as e3d
from e3d_deploy.errors import BackendUnavailable
try:
    e3d.load(sys.argv[1], "openvino")
except BackendUnavailable as error:
    print(error)
with e3d.load(sys.argv[1], threads=1) as predictor:
    print(predictor.backend.name)
"""


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_installation_takes_only_its_own_backend_away(kind: str, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text(BROKEN[kind])
    (tmp_path / "openvino-1.0.dist-info").mkdir()
    (tmp_path / "openvino-1.0.dist-info" / "METADATA").write_bytes(b"\xff\xfe no version")
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(exported / "tiny.e3d"), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    refused, taken = done.stdout.splitlines()
    assert refused.startswith("openvino: ")
    assert "pip install" in refused
    assert taken == "onnxruntime"
