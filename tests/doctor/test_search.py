"""`e3d doctor` on fake installations, from the command line to the exit code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from e3d_deploy.doctor import Fault, examine, find_faults, probe, search
from e3d_deploy.doctor.fault import CODES
from tests.doctor.fakes import BUILD, GPU_BUILD, compile_driver, install

ROOT = Path(__file__).parents[2]


def doctor(folder: Path, code: int, *options: str, **variables: str) -> tuple[dict[str, Any], str]:
    """Run `e3d doctor --json` with a folder of fake libraries; return its report and stderr."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(folder))),
        "XDG_CACHE_HOME": str(folder / "cache"),
        **variables,
    }
    command = [sys.executable, "-m", "e3d_deploy", "doctor", "--json", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout), done.stderr


def codes(report: dict[str, Any]) -> set[str]:
    """Return the codes of the faults; a checkout that hides the installed package is left out."""
    return {one["code"] for one in report["faults"]} - {"e3d-shadowed"}


def test_a_fault_that_stops_nothing_is_a_warning_and_nothing_is_written(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime-gpu", "1.31.1", {BUILD: GPU_BUILD})
    (tmp_path / "home").mkdir()
    report, stderr = doctor(tmp_path, 0, ORT_DISABLE_TELEMETRY="0", HOME=str(tmp_path / "home"))
    assert list((tmp_path / "home").iterdir()) == []
    assert not (tmp_path / "cache").exists()
    assert {"onnxruntime-twice", "telemetry-on"} <= codes(report)
    assert report["contacts"].startswith("ONNX Runtime may report to Microsoft")
    assert "WARN " in stderr
    assert any("overwrite each other's files" in words for words in report["warnings"])
    assert "\nonnxruntime-twice: onnxruntime " in stderr
    assert "\n    pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime==" in stderr


def test_a_library_that_crashes_stops_its_backend_but_not_the_doctor(tmp_path: Path) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"
    install(tmp_path, "openvino", "2026.4.1", {"openvino/__init__.py": code})
    report, stderr = doctor(tmp_path, 4)
    (fault,) = (one for one in report["faults"] if one["code"] == "library-broken")
    assert "it crashes with SIGSEGV" in fault["what"]
    assert fault["stops"] == ["openvino"]
    assert report["backends"]["openvino"] is False
    assert report["backends"]["onnxruntime"] is True
    assert stderr.endswith("FAIL faults stop openvino; run the command below each fault\n")


def test_a_fault_stops_only_installed_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = install(tmp_path, "numpy", "2.4.6")
    monkeypatch.setattr(probe, "import_errors", lambda modules: {"numpy": "ImportError: x"})
    monkeypatch.setattr(search, "has_libraries", lambda spec: spec.name == "openvino")
    (fault,) = (one for one in find_faults(site) if one.code == "library-broken")
    assert fault.stops == ("openvino",)


@pytest.mark.parametrize(
    ("driver", "code"),
    [
        ({"cuda": 12020}, "driver-old"),
        ({"cuda": 13000, "code": 100, "gpus": 0}, "gpu-missing"),
        ({"cuda": 13000, "code": 803}, "driver-mismatch"),
        ({"cuda": 13000, "crash": True}, "gpu-missing"),
    ],
    ids=lambda one: one if isinstance(one, str) else " ".join(one),
)
def test_the_driver_is_asked(driver: dict[str, Any], code: str, tmp_path: Path) -> None:
    install(
        tmp_path, "torch", "2.15.0", {"torch/version.py": "cuda: Optional[str] = '13.0'\n", "torch/__init__.py": ""}
    )
    compile_driver(tmp_path, **driver)
    report, _ = doctor(tmp_path, 4, LD_LIBRARY_PATH=str(tmp_path))
    assert code in codes(report)
    assert report["machine"]["nvidia_driver"] is True
    assert report["backends"]["torch-cuda-graph"] is False


def test_the_cuda_provider_is_tried_if_there_is_a_gpu(tmp_path: Path) -> None:
    fake = "def preload_dlls(): print('not found')\n"
    provider = "ELF libcudart.so.91 libcudnn.so.99 libc.so.6"
    files = {
        "onnxruntime/__init__.py": fake,
        BUILD: GPU_BUILD,
        "onnxruntime/capi/libonnxruntime_providers_cuda.so": provider,
    }
    install(tmp_path, "onnxruntime-gpu", "1.31.1", files)
    compile_driver(tmp_path, cuda=13000)
    report, _ = doctor(tmp_path, 4, LD_LIBRARY_PATH=str(tmp_path))
    (fault,) = (one for one in report["faults"] if one["code"] == "cuda-library-missing")
    assert "cannot load libcudart.so.91 (nvidia-cuda-runtime), libcudnn.so.99 (nvidia-cudnn-cu13)" in fault["what"]


def test_backends_that_a_fault_stops_are_not_usable() -> None:
    fault = Fault("library-broken", "openvino is broken", "pip install openvino", ("openvino",))
    report = examine([fault])
    assert report["backends"]["openvino"] is False
    assert report["faults"] == [{"code": "library-broken", "what": "openvino is broken", "command": fault.command,
                                 "stops": ("openvino",)}]  # fmt: skip
    assert report["warnings"][-1] == "openvino is broken; pip install openvino"
    assert examine()["backends"]["openvino"] is True


def test_the_docs_list_every_fault() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text().replace("\n  ", " ")
    listed = dict(re.findall(r"^- `([a-z0-9-]+)`: (.*)$", page, re.MULTILINE))
    assert list(listed) == list(CODES)
    assert [code for code, text in CODES.items() if not listed[code].startswith(f"{text} ")] == []
