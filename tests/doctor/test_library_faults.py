"""Faults of libraries that are installed but do not load."""

from pathlib import Path

import pytest

from e3d_deploy.doctor import probe
from e3d_deploy.doctor.library_faults import library_faults, present
from e3d_deploy.doctor.probe import NO_H264, import_errors
from e3d_deploy.runtime.backends.specs import BACKENDS
from tests.doctor.fakes import install, only

BROKEN = {
    "raises": ("raise KeyError('half installed')", "KeyError: 'half installed'"),
    "misses a module": ("import module_that_is_not_there", "No module named 'module_that_is_not_there'"),
    "crashes": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "it crashes with SIGSEGV"),
    "ends Python": ("import os\nos._exit(9)", "it ends Python with exit code 9"),
    "hangs": ("import time\ntime.sleep(60)", "it does not load within 3 s"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_library_that_does_not_load_does_not_stop_the_others(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, words = BROKEN[kind]
    (tmp_path / "broken_library.py").write_text(code)
    (tmp_path / "another_library.py").write_text("raise OSError('another')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(probe.os, "cpu_count", lambda: 1)  # all in one process
    if kind == "hangs":
        monkeypatch.setattr(probe, "DEADLINE_S", 3)
    errors = import_errors(["broken_library", "json", "another_library"])
    assert words in errors["broken_library"]
    assert errors["another_library"] == "OSError: another"
    assert set(errors) == {"broken_library", "another_library"}


def test_a_folder_in_the_working_directory_is_not_taken_for_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "colorsys.py").write_text("raise OSError('not the library')")
    monkeypatch.chdir(tmp_path)
    assert import_errors(["colorsys"]) == {}


def test_a_broken_library_is_installed_again_in_the_same_version(tmp_path: Path) -> None:
    installed = present(install(tmp_path, "openvino", "2026.4.1"), driver=False)
    fault = only(library_faults(installed, {"openvino": "ImportError: undefined symbol"}), "library-broken")
    assert fault.what == "openvino 2026.4.1 is installed but cannot be imported (ImportError: undefined symbol)"
    assert fault.command == "pip install --force-reinstall --no-deps openvino==2026.4.1"
    assert fault.stops == ("openvino",)


def test_a_build_of_pytorch_is_installed_from_its_own_index(tmp_path: Path) -> None:
    installed = present(install(tmp_path, "torch", "2.13.0+cpu"), driver=False)
    fault = only(library_faults(installed, {"torch": "OSError: x"}), "library-broken")
    assert fault.command.endswith("torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu")


def test_a_python_that_cannot_be_started_is_not_taken_for_broken_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.sys, "executable", "")
    assert import_errors(["json", "module_that_is_not_there"]) == {}


def test_a_broken_numpy_stops_every_backend(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime", "1.32.0")
    installed = present(install(tmp_path, "numpy", "2.4.6"), driver=False)
    errors = {"numpy": "ImportError: x", "onnxruntime": "ImportError: import numpy failed"}
    assert only(library_faults(installed, errors), "library-broken").stops == tuple(BACKENDS)


@pytest.mark.parametrize(
    "error",
    [
        "ImportError: numpy.core.multiarray failed to import",
        "ValueError: numpy.dtype size changed, may indicate binary incompatibility",
        "RuntimeError: module was compiled against NumPy C-API version 0x10 (NumPy 1.23) but the running NumPy has ABI "
        "version 0x2000000",
    ],
)
def test_a_library_for_another_numpy_is_upgraded_with_numpy(tmp_path: Path, error: str) -> None:
    installed = present(install(tmp_path, "onnxruntime", "1.16.0"), driver=False)
    fault = only(library_faults(installed, {"onnxruntime": error}), "numpy-mismatch")
    assert fault.command == "pip install --upgrade --force-reinstall onnxruntime numpy"


def test_a_missing_library_of_the_system_names_its_package(tmp_path: Path) -> None:
    installed = present(install(tmp_path, "onnxruntime", "1.32.0"), driver=False)
    error = "ImportError: libgomp.so.1: cannot open shared object file: No such file or directory"
    fault = only(library_faults(installed, {"onnxruntime": error}), "system-library-missing")
    assert fault.command == "sudo apt install libgomp1"


def test_pyav_without_h264_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = install(tmp_path, "av", "18.1.0", {"av/__init__.py": "codecs_available = {'h264', 'mpeg4'}"})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    errors = import_errors(["av"])
    assert errors == {"av": NO_H264}
    fault = only(library_faults(present(site, driver=False), errors), "h264-missing")
    assert fault.command == "pip install --force-reinstall --no-deps av==18.1.0 --only-binary av"
    assert fault.stops == ()


def test_libraries_for_a_gpu_are_imported_only_with_a_driver(tmp_path: Path) -> None:
    install(tmp_path, "cuda-core", "1.2.2")
    site = install(tmp_path, "tensorrt-cu13-bindings", "11.4.0.106")
    assert present(site, driver=False) == {}
    assert set(present(site, driver=True)) == {"cuda.core", "tensorrt_bindings"}


def test_damaged_metadata_hide_only_their_own_library(tmp_path: Path) -> None:
    site = install(tmp_path, "av", "18.1.0")
    (tmp_path / "openvino-1.0.dist-info").mkdir()
    (tmp_path / "openvino-1.0.dist-info" / "METADATA").write_bytes(b"\xff\xfe no version")
    assert list(present(site, driver=False)) == ["av"]
