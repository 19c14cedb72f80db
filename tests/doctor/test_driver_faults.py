"""Faults of the NVIDIA driver. No test needs a driver: its answers and its device files are fakes."""

import os
from pathlib import Path

import pytest

from e3d_deploy.doctor import driver_faults as module
from e3d_deploy.doctor import gpu_builds as builds_module
from e3d_deploy.doctor.driver_faults import Driver, driver_faults
from e3d_deploy.doctor.gpu_builds import GpuBuild, gpu_builds, has_nvidia_gpu, missing_driver_faults
from tests.doctor.fakes import BUILD, GPU_BUILD, install, only

TORCH = GpuBuild("torch", "2.15.0", 13, "torch-cuda-graph")
GOOD = Driver((13, 0), 0, 1)


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the system's files of the driver, and leave the container, if any."""
    monkeypatch.setattr(module, "DEVICES", tmp_path)
    monkeypatch.setattr(module, "VERSION", tmp_path / "version")
    monkeypatch.setattr(builds_module, "CONTAINER", ())
    monkeypatch.setattr(builds_module, "BUS", tmp_path / "no bus")


def test_the_needs_of_libraries_are_read_from_their_files(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime-gpu", "1.24.4", {BUILD: GPU_BUILD.replace("13.0", "12.8")})
    install(tmp_path, "torch", "2.15.0", {"torch/version.py": "debug = False\ncuda: Optional[str] = '13.0'\n"})
    install(tmp_path, "tensorrt-cu12-bindings", "10.16.0.72")
    site = install(tmp_path, "tensorrt-rtx-cu13-bindings", "1.7.1.116")
    assert gpu_builds(site) == [
        GpuBuild("onnxruntime-gpu", "1.24.4", 12, "onnxruntime-cuda"),
        TORCH,
        GpuBuild("tensorrt", "10.16.0.72", 12, "tensorrt"),
        GpuBuild("tensorrt-rtx", "1.7.1.116", 13, "tensorrt-rtx", needs_driver=False),
    ]


def test_a_pytorch_for_cpus_needs_no_driver(tmp_path: Path) -> None:
    site = install(tmp_path, "torch", "2.13.0+cpu", {"torch/version.py": "cuda: Optional[str] = None\n"})
    assert gpu_builds(site) == []


def test_a_library_for_a_gpu_without_a_driver_is_a_fault_that_stops_nothing() -> None:
    fault = only(missing_driver_faults([TORCH]), "driver-missing")
    assert "torch 2.15.0 (CUDA 13) is built for a GPU" in fault.what
    assert fault.command == "sudo apt install nvidia-driver-580"
    assert fault.stops == ()
    builds_without = GpuBuild("tensorrt-rtx", "1.7.1.116", 13, "tensorrt-rtx", needs_driver=False)
    assert missing_driver_faults([builds_without]) == missing_driver_faults([]) == []


def test_in_a_container_the_gpu_is_passed_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds_module, "CONTAINER", (tmp_path,))
    assert missing_driver_faults([TORCH])[0].command == "docker run --gpus all IMAGE"


def test_an_old_driver_stops_the_libraries_of_a_newer_cuda(tmp_path: Path) -> None:
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n")
    tensorrt = GpuBuild("tensorrt", "10.16.0.72", 12, "tensorrt")
    fault = only(driver_faults(Driver((12, 2), 0, 1), [TORCH, tensorrt], {}), "driver-old")
    assert fault.what == (
        "the NVIDIA driver 535.104.05 supports CUDA 12.2, but torch 2.15.0 needs CUDA 13, and therefore driver 580 or "
        "newer"
    )
    assert fault.command == "sudo apt install nvidia-driver-580"
    assert fault.stops == ("torch-cuda-graph",)
    assert driver_faults(GOOD, [TORCH, tensorrt], {}) == []


def test_a_driver_without_a_gpu_is_a_fault() -> None:
    fault = only(driver_faults(Driver((13, 0), 100, 0), [TORCH], {}), "gpu-missing")
    assert "(CUDA error 100)" in fault.what
    assert fault.stops == ("torch-cuda-graph",)
    hidden = only(driver_faults(Driver((13, 0), 100, 0), [TORCH], {"CUDA_VISIBLE_DEVICES": ""}), "gpu-missing")
    assert hidden.command == "unset CUDA_VISIBLE_DEVICES"


def test_a_kernel_module_of_another_version_needs_a_reboot() -> None:
    fault = only(driver_faults(Driver((13, 0), 803, 0), [TORCH], {}), "driver-mismatch")
    assert fault.command == "sudo reboot"


def test_a_device_file_that_the_user_may_not_open_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "nvidia0"
    device.write_bytes(b"")
    device.chmod(0o660)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may open every file
    fault = only(driver_faults(Driver((13, 0), 100, 0), [TORCH], {}), "gpu-permission")
    assert str(device) in fault.what
    assert fault.command == f'sudo usermod -aG {device.group()} "$USER" && newgrp {device.group()}'


def pci(folder: Path, vendor: str, kind: str) -> None:
    """Add a device to a fake PCI bus."""
    device = folder / f"{vendor}{kind}"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")


def test_without_a_gpu_the_libraries_for_cpus_are_installed_except_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds_module, "BUS", tmp_path / "bus")
    (tmp_path / "bus").mkdir()  # a board or a virtual machine without devices on the bus
    assert not has_nvidia_gpu()
    pci(tmp_path / "bus", "0x8086", "0x030000")  # a GPU of another vendor
    pci(tmp_path / "bus", "0x10de", "0x020000")  # a network card by NVIDIA
    assert not has_nvidia_gpu()
    onnxruntime = GpuBuild("onnxruntime-gpu", "1.31.1", 13, "onnxruntime-cuda")
    tensorrt = GpuBuild("tensorrt", "11.4.0.106", 13, "tensorrt")
    faults = missing_driver_faults([TORCH, onnxruntime, tensorrt])
    assert {fault.code for fault in faults} == {"driver-missing"}
    assert [fault.command for fault in faults] == [
        "pip uninstall -y onnxruntime-gpu && pip install onnxruntime",
        "pip uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs",
    ]
    pci(tmp_path / "bus", "0x10de", "0x030200")
    assert has_nvidia_gpu()
    assert missing_driver_faults([TORCH])[0].command == "sudo apt install nvidia-driver-580"


def test_a_driver_that_no_library_uses_is_not_a_fault() -> None:
    assert driver_faults(Driver((12, 2), 100, 0), [], {}) == []
