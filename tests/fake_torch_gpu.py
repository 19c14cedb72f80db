"""Fake of PyTorch on a GPU: it captures and launches on `fake_cuda`, whose GPU memory is host memory."""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from e3d_deploy import contract
from e3d_deploy.runtime.backends import torch_cuda_graph
from e3d_deploy.runtime.backends.torch_ring import RingStep
from tests.fake_cuda import Machine


class HostGpu:
    """`TorchGpu` on host memory, in the CUDA stream of `fake_cuda`; captured work is stored and run at each launch."""

    machine: Machine
    captures = True
    compiler: Callable[[RingStep], Callable[..., Tensor]] = staticmethod(lambda ring: ring)
    error: Exception | None = None
    """Error that the next step raises when it is enqueued."""

    def __init__(self, cuda: Any) -> None:
        self.cuda = cuda

    @staticmethod
    def check() -> None:
        pass

    def put(self, module: nn.Module) -> nn.Module:
        return module

    def compile(self, ring: RingStep) -> Callable[..., Tensor]:
        return self.compiler(ring)

    def over(self, address: int, tensor: contract.Tensor) -> Tensor:
        self.machine.check(address, tensor.nbytes)
        memory = (ctypes.c_uint8 * tensor.nbytes).from_address(address)
        return torch.frombuffer(memory, dtype=getattr(torch, tensor.dtype)).view(tensor.shape)

    def run(self, work: Callable[[], None]) -> None:
        self.machine.did("eager")
        self.enqueue(work)

    def enqueue(self, work: Callable[[], None]) -> None:
        error, HostGpu.error = HostGpu.error, None
        if error:
            raise error
        self.machine.put(work)

    def release(self) -> None:
        self.machine.did("release")

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.machine.did("capture")
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing\nand so on")

        def replay() -> None:
            self.machine.did("replay")
            self.enqueue(work)

        return replay


def put_in_place(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the backend `torch-cuda-graph` run on a fake machine."""
    monkeypatch.setattr(HostGpu, "machine", machine, raising=False)
    monkeypatch.setattr(HostGpu, "error", None)  # With this, pytest restores the value that a test sets.
    monkeypatch.setattr(torch_cuda_graph, "TorchGpu", HostGpu)
