"""Faults of the packages of TensorRT, in fake installations; the real packages need a GPU."""

from pathlib import Path

import pytest

from e3d_deploy.doctor import tensorrt_faults as module
from e3d_deploy.doctor.site import Site
from e3d_deploy.doctor.tensorrt_faults import tensorrt_faults
from tests.doctor.fakes import install, only


@pytest.fixture(autouse=True)
def _no_tensorrt_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SYSTEM_FOLDERS", ())


@pytest.fixture
def complete(tmp_path: Path) -> Site:
    """Return a complete installation of TensorRT 11."""
    for name in ("tensorrt", "tensorrt-cu13", "tensorrt-cu13-bindings"):
        install(tmp_path, name, "11.4.0.106")
    return install(tmp_path, "tensorrt-cu13-libs", "11.4.0.106")


def test_a_complete_tensorrt_has_no_fault(complete: Site) -> None:
    assert tensorrt_faults(complete, {}) == []


def test_a_library_in_the_search_path_is_no_fault_because_that_of_pip_is_loaded_by_its_path(
    complete: Site, tmp_path: Path
) -> None:
    (tmp_path / "libnvinfer.so.10").write_bytes(b"")
    assert tensorrt_faults(complete, {"LD_LIBRARY_PATH": str(tmp_path)}) == []


def test_packages_for_two_versions_of_cuda_replace_each_other(complete: Site, tmp_path: Path) -> None:
    install(tmp_path, "tensorrt-cu12-bindings", "10.16.0.72")
    fault = only(tensorrt_faults(complete, {}), "tensorrt-twice")
    assert "tensorrt-cu13-bindings 11.4.0.106 and tensorrt-cu12-bindings 10.16.0.72" in fault.what
    assert fault.command == (
        "pip uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs tensorrt-cu12-bindings "
        "&& pip install tensorrt-cu13==11.4.0.106"
    )
    assert fault.stops == ("tensorrt",)


def test_the_tensorrt_of_the_system_and_that_of_pip_are_a_fault(complete: Site, tmp_path: Path) -> None:
    system = tmp_path / "dist-packages"
    install(system, "tensorrt", "10.7.0")
    fault = only(tensorrt_faults(Site((*complete.path, str(system))), {}), "tensorrt-twice")
    assert "10.7.0 of the system" in fault.what
    assert fault.command == "sudo apt remove python3-libnvinfer"
    assert tensorrt_faults(Site((str(system),)), {}) == []


@pytest.mark.parametrize(
    ("product", "version", "library", "backend"),
    [
        ("tensorrt-cu13", "11.4.0.106", "libnvinfer.so.11", "tensorrt"),
        ("tensorrt-rtx-cu13", "1.7.1.116", "libtensorrt_rtx.so.1", "tensorrt-rtx"),
    ],
)
def test_bindings_need_their_libraries(tmp_path: Path, product: str, version: str, library: str, backend: str) -> None:
    site = install(tmp_path, f"{product}-bindings", version)
    fault = only(tensorrt_faults(site, {}), "tensorrt-libs-missing")
    assert library in fault.what
    assert fault.command == f"pip install --force-reinstall --no-deps {product}-libs=={version}"
    assert fault.stops == (backend,)
    (tmp_path / library).write_bytes(b"")  # the libraries of the system are as good
    assert tensorrt_faults(site, {"LD_LIBRARY_PATH": str(tmp_path)}) == []


def test_without_a_gpu_tensorrt_is_only_uninstalled(tmp_path: Path) -> None:
    install(tmp_path, "tensorrt-rtx-cu13-bindings", "1.7.1.116")
    site = install(tmp_path, "tensorrt-cu13-bindings", "11.4.0.106")
    assert only(tensorrt_faults(site, {}, gpu=False), "tensorrt-libs-missing").stops == ("tensorrt-rtx",)


def test_libraries_of_another_major_version_are_a_fault(tmp_path: Path) -> None:
    site = install(tmp_path, "tensorrt-cu13-bindings", "11.4.0.106")
    (tmp_path / "libnvinfer.so.10").write_bytes(b"")
    fault = only(tensorrt_faults(site, {"LD_LIBRARY_PATH": str(tmp_path)}), "tensorrt-version")
    assert "needs libnvinfer.so.11, but the system has libnvinfer.so.10" in fault.what
    assert fault.stops == ("tensorrt",)


@pytest.mark.parametrize(("version", "stops"), [("10.16.0.72", ("tensorrt",)), ("11.1.0.106", ())])
def test_pip_libraries_of_another_version_are_a_fault(tmp_path: Path, version: str, stops: tuple[str, ...]) -> None:
    install(tmp_path, "tensorrt-cu13-bindings", "11.4.0.106")
    site = install(tmp_path, "tensorrt-cu13-libs", version)
    fault = only(tensorrt_faults(site, {}), "tensorrt-version")
    assert fault.command == "pip install --force-reinstall --no-deps tensorrt-cu13-libs==11.4.0.106"
    assert fault.stops == stops
