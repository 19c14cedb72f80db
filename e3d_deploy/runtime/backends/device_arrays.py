"""Transfers of frames between the host and a GPU, and predictions that stay on the GPU."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.runtime.backends.cuda import Cuda, Memory

ON_GPU = 2
"""DLPack's device type for memory of an NVIDIA GPU."""


class Port:
    """Tensor on the GPU with page-locked host memory through which it is written and read."""

    def __init__(self, cuda: Cuda, shape: Sequence[int], dtype: type[np.generic] = np.float32) -> None:
        self.cuda, self.shape, self.dtype = cuda, tuple(shape), np.dtype(dtype)
        nbytes = math.prod(shape) * self.dtype.itemsize
        self.memory = cuda.allocate(nbytes)
        self.address = int(self.memory.handle)
        self.staging, host = cuda.allocate_pinned(nbytes)
        self.host = host.view(dtype).reshape(self.shape)

    def write(self, array: NDArray[Any]) -> None:
        """Copy an array of the port's shape to the GPU; the array may be changed as soon as this returns."""
        np.copyto(self.host, array)
        self.cuda.copy(self.memory, self.staging)

    def read(self) -> NDArray[Any]:
        """Return a host copy of the tensor, after all earlier work in the CUDA stream is done."""
        self.cuda.copy(self.staging, self.memory)
        self.cuda.synchronise()
        return self.host.copy()


class DeviceArray:
    """Array on the GPU that libraries such as PyTorch and CuPy can read by DLPack or the CUDA array interface.

    The values are complete when the caller receives the array. The memory is reused once the array and all its views
    are unreferenced, so wait for your own GPU work that reads the memory before you drop the last reference. The array
    and its views are invalid once the backend is closed.
    """

    def __init__(
        self, cuda: Cuda, memory: Memory, shape: tuple[int, ...], dtype: "type[np.generic]" = np.float32
    ) -> None:
        self._cuda, self.memory, self.shape, self.dtype = cuda, memory, shape, np.dtype(dtype)
        self._lease = cuda.lease(self, memory)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        address = int(self.memory.handle)
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (address, False), "strides": None, "version": 3}

    def __dlpack_device__(self) -> tuple[int, int]:
        return ON_GPU, self._cuda.number

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        view = self._cuda.view(self.memory, self.shape, self.dtype, owner=self)
        return view.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)
