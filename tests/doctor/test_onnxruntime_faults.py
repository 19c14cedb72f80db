"""Faults of ONNX Runtime, in fake installations."""

from pathlib import Path

import pytest

from e3d_deploy.doctor.onnxruntime_faults import is_gpu_build, provider_faults, twice_faults
from tests.doctor.fakes import BUILD, CPU_BUILD, GPU_BUILD, install, only


@pytest.mark.parametrize(("build", "owner"), [(GPU_BUILD, "onnxruntime-gpu"), (CPU_BUILD, "onnxruntime")])
def test_two_packages_of_onnxruntime_name_the_owner_of_the_files(tmp_path: Path, build: str, owner: str) -> None:
    install(tmp_path, "onnxruntime", "1.32.0")
    site = install(tmp_path, "onnxruntime-gpu", "1.31.1", {BUILD: build})
    fault = only(twice_faults(site, {}, driver=False), "onnxruntime-twice")
    assert fault.what.endswith(f"the files are those of {owner}")
    assert fault.command == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime==1.32.0"
    assert fault.stops == ()


def test_with_a_driver_the_package_for_the_gpu_is_kept(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime", "1.32.0")
    site = install(tmp_path, "onnxruntime-gpu", "1.31.1", {BUILD: CPU_BUILD})
    fault = only(twice_faults(site, {}, driver=True), "onnxruntime-twice")
    assert fault.command == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu==1.31.1"
    assert fault.stops == ("onnxruntime-cuda",)
    broken = only(twice_faults(site, {"onnxruntime": "ImportError"}, driver=True), "onnxruntime-twice")
    assert set(broken.stops) == {"onnxruntime", "onnxruntime-cuda", "emulated"}


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu"])
def test_one_package_of_onnxruntime_is_no_fault(tmp_path: Path, name: str) -> None:
    assert twice_faults(install(tmp_path, name, "1.32.0"), {}, driver=True) == []


def test_missing_libraries_of_cuda_are_named_with_their_packages(tmp_path: Path) -> None:
    site = install(tmp_path, "onnxruntime-gpu", "1.31.1", {BUILD: GPU_BUILD})
    gpu = site.find("onnxruntime-gpu")
    assert gpu is not None
    assert is_gpu_build(gpu)
    fault = only(provider_faults(gpu, ["libcublas.so.13", "libcudnn.so.9"]), "cuda-library-missing")
    assert "libcublas.so.13 (nvidia-cublas), libcudnn.so.9 (nvidia-cudnn-cu13)" in fault.what
    assert fault.command == "pip install 'onnxruntime-gpu[cuda,cudnn]==1.31.1'"
    assert fault.stops == ("onnxruntime-cuda",)
    assert provider_faults(gpu, []) == []


def test_packages_of_cuda_12_have_its_version_in_their_names(tmp_path: Path) -> None:
    site = install(tmp_path, "onnxruntime-gpu", "1.24.4", {BUILD: GPU_BUILD.replace("13.0", "12.8")})
    gpu = site.find("onnxruntime-gpu")
    assert gpu is not None
    assert "libcudart.so.12 (nvidia-cuda-runtime-cu12)" in provider_faults(gpu, ["libcudart.so.12"])[0].what
