"""Imports allowed in each part of the package."""

import subprocess
import sys

import pytest

from e3d_deploy.runtime.backends.specs import BACKENDS

INFERENCE = ["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda"]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize(
    "absent", ["torch", "click", "rich", "onnx", "lightning", "av", "PIL", "matplotlib", "tensorflow", *INFERENCE]
)
def test_runtime_imports_without(absent: str) -> None:
    modules = (
        "e3d_deploy.runtime, e3d_deploy.runtime.predictor, e3d_deploy.runtime.choose, "
        "e3d_deploy.runtime.streams.streams, e3d_deploy.runtime.verify, e3d_deploy.bundle.pack, "
        "e3d_deploy.inspect, e3d_deploy.diff, e3d_deploy.triton.repository, "
        "e3d_deploy.measure.benchmark, e3d_deploy.measure.stream_curve, e3d_deploy.measure.profile"
    )
    python(f"import sys; sys.modules[{absent!r}] = None; import {modules}")


def test_runtime_imports_only_numpy() -> None:
    code = "import sys; from e3d_deploy.runtime import load; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = python(code).split()
    foreign = {
        "torch",
        "click",
        "rich",
        "onnx",
        "lightning",
        "av",
        "PIL",
        "matplotlib",
        "tensorflow",
        *INFERENCE,
    } & set(loaded)
    assert "numpy" in loaded
    assert not foreign


def test_runtime_does_not_query_installed_packages() -> None:
    """The query takes a third of the import time, and only `auto` needs it."""
    assert (
        python("import sys; from e3d_deploy.runtime import load; print('importlib.metadata' in sys.modules)").strip()
        == "False"
    )


def test_every_error_can_be_imported_from_the_runtime() -> None:
    from e3d_deploy import errors, runtime

    names = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert names < set(runtime.__all__)
    for name in runtime.__all__:
        assert getattr(runtime, name).__name__ == name
    for name in names:
        assert getattr(runtime, name) is getattr(errors, name)


def test_the_list_of_backends_is_read_without_numpy_and_without_any_backend() -> None:
    code = """
import sys
sys.modules["numpy"] = None
from e3d_deploy.runtime.backends.specs import BACKENDS, installed
installed()
print(len(BACKENDS), sorted(name for name in sys.modules if name.startswith("e3d_deploy.runtime.backends.")))
"""
    count, loaded = python(code).strip().split(" ", 1)
    assert int(count) == len(BACKENDS)
    assert loaded == str([f"e3d_deploy.runtime.backends.{name}" for name in ("entries", "spec", "specs")])


def test_a_plain_stream_imports_no_scheduler(exported: object) -> None:
    code = f"""
import sys
import e3d_deploy.runtime as e3d
with e3d.load({str(exported)!r} + "/tiny.e3d", "onnxruntime") as predictor:
    predictor.stream()
    print([name for name in sys.modules if name.startswith("e3d_deploy.runtime.streams")])
    predictor.streams().close()
    print(e3d.Streams.__module__ in sys.modules, e3d.SlotStream.__name__)
"""
    assert python(code).splitlines() == ["[]", "True SlotStream"]


@pytest.mark.parametrize("absent", ["numpy", "torch", "onnx", "onnxruntime", "lightning"])
def test_help_and_doctor_need_only_click_and_rich(absent: str) -> None:
    """`e3d doctor` must work if a library is broken or missing."""
    code = f"""
import sys
sys.modules[{absent!r}] = None
from e3d_deploy.cli import main
from e3d_deploy.doctor import probe
probe.import_errors = lambda modules: {{}}  # other processes, which have the library
main(sys.argv[1:])
"""
    for arguments in (["--help"], ["doctor"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ("E3D-LSTM" if arguments == ["--help"] else "Python") in done.stdout


def test_without_a_driver_no_library_of_nvidia_is_imported(exported: object) -> None:
    """Each library takes seconds and memory, and neither `auto` nor `e3d doctor` uses it without a driver."""
    code = f"""
import sys
import e3d_deploy.runtime as e3d
from e3d_deploy import doctor, inventory
inventory.has_nvidia_driver = lambda: False
doctor.examine()
e3d.load({str(exported)!r} + "/tiny.e3d", "auto").close()
print({{name.split(".")[0] for name in sys.modules}} & {{"tensorrt", "tensorrt_rtx", "cuda"}})
"""
    assert python(code).strip() == "set()"


def test_a_backend_whose_library_is_absent_names_the_extra(exported: object) -> None:
    code = f"""
import sys
sys.modules["onnxruntime"] = None
from e3d_deploy.errors import BackendUnavailable
import e3d_deploy.runtime as e3d
try:
    e3d.load({str(exported)!r} + "/tiny.e3d", "onnxruntime")
except BackendUnavailable as error:
    print(error.exit_code, error)
"""
    assert python(code).startswith("4 onnxruntime: onnxruntime is not installed; pip install 'e3d_deploy[cpu]'")


def test_onnxruntime_streams_and_verifies_without_pytorch(exported: object) -> None:
    code = f"""
import sys
for name in ("torch", "onnx", "click", "safetensors"):
    sys.modules[name] = None
import numpy as np
import e3d_deploy.runtime as e3d
from e3d_deploy.runtime.verify import verify
path = {str(exported)!r} + "/tiny.e3d"
with e3d.load(path) as predictor:
    stream = predictor.stream()
    stream.push(np.zeros((16, 24, 1), np.uint8))
    print(stream.predict(horizon=3).shape, verify(e3d.Bundle.open(path), predictor.backend).passed)
"""
    assert python(code).strip() == "(3, 16, 24, 1) True"
