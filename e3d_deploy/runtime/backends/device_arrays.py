"""Frames on their way to a GPU and back, and predictions that stay there."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.runtime.backends.cuda import Cuda, Memory

ON_GPU = 2
"""DLPack's number for memory of a GPU of NVIDIA."""


class Port:
    """A tensor on the GPU, and page-locked memory of the host through which it comes and goes."""

    def __init__(self, cuda: Cuda, shape: Sequence[int], dtype: type[np.generic] = np.float32) -> None:
        self.cuda, self.shape, self.dtype = cuda, tuple(shape), np.dtype(dtype)
        nbytes = math.prod(shape) * self.dtype.itemsize
        self.memory = cuda.allocate(nbytes)
        self.address = int(self.memory.handle)
        self.staging, host = cuda.allocate_pinned(nbytes)
        self.host = host.view(dtype).reshape(self.shape)

    def write(self, array: NDArray[Any]) -> None:
        """Send an array of this shape; it may be changed afterwards."""
        np.copyto(self.host, array)
        self.cuda.copy(self.memory, self.staging)

    def read(self) -> NDArray[Any]:
        """A copy of the tensor, when all that was asked for before is done."""
        self.cuda.copy(self.staging, self.memory)
        self.cuda.synchronise()
        return self.host.copy()


class DeviceArray:
    """An array on the GPU, for whatever reads DLPack or the CUDA array interface, such as PyTorch and CuPy.

    It has been written when it is handed out. Its memory is used again when nothing holds it or a view of it any
    more: wait for your own work with it before you let it go. It ends with the backend, views of it too.
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
