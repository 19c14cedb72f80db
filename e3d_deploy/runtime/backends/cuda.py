"""CUDA functions for the runtime: one CUDA stream on one GPU, with memory, copies, captured graphs, and one kernel.

All work goes through `cuda.core` into the same CUDA stream, so it is done in the order of the calls. In this module,
*stream* means that CUDA stream. Memory comes from a separate pool if the GPU supports pools, and is freed when its
`Cuda` object is closed.
"""

import ctypes
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from cuda import bindings, core
from numpy.typing import NDArray

from e3d_deploy.errors import BackendUnavailable, E3DError, EngineError, ResourceLimit, ShapeError
from e3d_deploy.libraries import GPU, pip_install
from e3d_deploy.runtime.backends.lease import Lease

UPDATE = "pip install --upgrade 'cuda-core>=1.2'"


def _outdated(error: Exception) -> BackendUnavailable:
    """Return the error for a `cuda.core` that lacks functions used in this module; version 1.0 has all of them."""
    return BackendUnavailable(f"cuda-core {core.__version__} is too old ({first_line(error)}); {UPDATE}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


try:
    from cuda.core._utils import cuda_utils
except ImportError as error:  # The first releases only have `cuda.core.experimental`.
    raise _outdated(error) from error

CudaError: type[Exception] = cuda_utils.CUDAError
"""Exception that `cuda.core` raises, imported from a private module because it has no public name."""
Memory = Any
"""`cuda.core.Buffer`: `int(memory.handle)` is its address, `memory.size` its size (bytes)."""
Graph = Any
"""`cuda.core.graph.Graph`."""

REMEDY = f"the backend needs {GPU}; install its libraries with `{pip_install('gpu')}` or `{pip_install('rtx')}`"
KERNEL = r"""
extern "C" __global__ void to_frames(const unsigned char* pictures, float* frames, int channels, int pixels, int count)
{
    int place = blockIdx.x * blockDim.x + threadIdx.x;  // index into the frames, [B, C, H, W]
    if (place >= count) return;
    int pixel = place % pixels, channel = place / pixels % channels, stream = place / pixels / channels;
    frames[place] = pictures[(stream * pixels + pixel) * channels + channel] / 255.0f;
}
"""
"""Kernel that converts pictures, uint8 [B, H, W, C], to frames.

Its division gives the same values as NumPy's, because NVRTC rounds divisions correctly by default.
"""
THREADS = 256
"""Threads per block of the kernel."""
OUT_OF_MEMORY = "OUT_OF_MEMORY"
"""Part of CUDA's message when the GPU has no memory left."""
REFUSALS: tuple[tuple[str, type[E3DError], str], ...] = (
    (OUT_OF_MEMORY, ResourceLimit, "it has no memory left; close other programs that use it"),
    (
        "DEVICE_UNAVAILABLE",
        BackendUnavailable,
        "another program uses it exclusively; end that program, or let programs share the GPU: "
        "`nvidia-smi --compute-mode=DEFAULT`",
    ),
    ("SYSTEM_DRIVER_MISMATCH", BackendUnavailable, "its driver was updated while in use; restart the machine"),
)
"""Error names in CUDA's messages, each with the E3DError to raise and the advice to give, if a GPU cannot be used."""
SPARE = 8
"""Maximum number of unused pieces of memory kept for reuse, per size of the pieces."""
GPU_LOCK = threading.RLock()
"""Lock that lets only one thread of this process use a GPU at a time.

A capture by ONNX Runtime covers all threads, so calls from another thread, allocations in particular, may invalidate
the capture. PyTorch can make only one capture at a time. The lock is reentrant, because garbage collection may close
one backend during a call to another backend.
"""


class Cuda:
    """One GPU with one CUDA stream. Only one thread may use it at a time, after calling `make_current`.

    Args:
        number: index of the GPU.

    Raises:
        BackendUnavailable: the machine has no GPU or no driver; or the driver is too old; or `cuda.core` is too old; or
            another program uses the GPU exclusively.
        ResourceLimit: the GPU has no memory left.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self._owned: dict[int, Memory] = {}
        """Memory that this object allocated, by address."""
        self._spare: dict[int, list[Memory]] = {}
        """Returned memory that can be lent again, by size (bytes)."""
        self._returned: deque[Lease] = deque()
        """Leases of returned memory that `_take_back` has not yet moved to `_spare`."""
        self._lent: dict[int, Lease] = {}
        """Leases of lent memory by their `id`.

        They are referenced here because a lease that garbage collection frees together with its holder never runs its
        callback.
        """
        self._times = self._timed = False
        self._kernel: Any = None
        try:
            with GPU_LOCK:
                self.device = core.Device(number)
                self.device.set_current()
                pools = self.device.properties.memory_pools_supported
                self.pool = core.DeviceMemoryResource(number, core.DeviceMemoryResourceOptions()) if pools else None
                self._events = [self.device.create_event(core.EventOptions(timing_enabled=True)) for _ in range(2)]
                self.stream = self.device.create_stream(options=core.StreamOptions(nonblocking=True))
        except (TypeError, AttributeError) as error:
            raise _outdated(error) from error
        except (RuntimeError, ValueError, CudaError) as error:
            raise _refusal(number, error) from error
        self.handle = int(self.stream.handle)
        major, minor = self.device.compute_capability
        self.compute_capability = f"{major}.{minor}"

    def make_current(self) -> None:
        """Make this GPU current in the calling thread."""
        core.Device(self.number).set_current()

    def allocate(self, nbytes: int) -> Memory:
        """Allocate memory on the GPU; if the GPU has none left, free the spare memory and try again."""
        try:
            return self._new(nbytes)
        except CudaError as error:
            self._take_back()
            if OUT_OF_MEMORY not in str(error) or not any(self._spare.values()):
                raise
            self._trim(0)
            return self._new(nbytes)

    def _new(self, nbytes: int) -> Memory:
        source = self.pool if self.pool is not None else self.device
        return self._own(source.allocate(nbytes, stream=self.stream))

    def lend(self, nbytes: int) -> Memory:
        """Return GPU memory that can be lent to a holder with `lease`; its content is undefined."""
        self._take_back()
        self._trim(SPARE)
        spare = self._spare.setdefault(nbytes, [])
        return spare.pop() if spare else self.allocate(nbytes)

    def lease(self, holder: object, memory: Memory) -> Lease:
        """Lend memory until `holder` is freed, which may happen in any thread at any time."""
        lease = Lease.of(holder, memory, self._returned)
        self._lent[id(lease)] = lease
        return lease

    def _take_back(self) -> None:
        while self._returned:
            lease = self._returned.popleft()
            del self._lent[id(lease)]
            memory = lease.memory
            self._spare.setdefault(memory.size, []).append(memory)

    def _trim(self, most: int) -> None:
        """Free all but `most` spare pieces of each size.

        Work that still uses a freed piece is complete before the memory is reused, because it is earlier in the stream.
        """
        for spare in list(self._spare.values()):
            while len(spare) > most:
                memory = spare.pop()
                self._owned.pop(int(memory.handle)).close()

    def allocate_pinned(self, nbytes: int) -> tuple[Memory, NDArray[np.uint8]]:
        """Allocate page-locked host memory; return the memory and an array that shares it."""
        memory = self._own(core.LegacyPinnedMemoryResource().allocate(nbytes))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(memory.handle)))
        return memory, array

    def _own(self, memory: Memory) -> Memory:
        self._owned[int(memory.handle)] = memory
        return memory

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Free all memory that the `with` block allocated, if the block fails."""
        before = set(self._owned)
        try:
            yield
        except BaseException:
            for address in self._owned.keys() - before:
                self._owned.pop(address).close()
            raise

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Hold `GPU_LOCK` within the `with` block, and close this object if the block fails."""
        with GPU_LOCK:
            try:
                yield
            except CudaError as error:
                self.close()
                raise as_e3d_error(error) from error
            except BaseException:
                self.close()
                raise

    def part(self, memory: Memory, offset: int, nbytes: int) -> Memory:
        """Return the `nbytes` bytes of `memory` that begin at `offset` (bytes)."""
        return core.Buffer.from_handle(int(memory.handle) + offset, nbytes, owner=memory)

    def copy(self, to: Memory, source: Memory) -> None:
        """Enqueue a copy between two pieces of memory of the same size, each on the GPU or page-locked on the host."""
        source.copy_to(to, stream=self.stream)

    def fill(self, memory: Memory, value: int | bytes) -> None:
        """Enqueue filling memory with one repeated byte, or with 4 repeated bytes."""
        memory.fill(value, stream=self.stream)

    def synchronise(self) -> None:
        """Wait until all work in the stream is complete."""
        self.stream.sync()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time the work enqueued within the `with` block, if `measure(True)` was called."""
        self._timed = False
        if not self._times:
            yield
            return
        self.stream.record(self._events[0])
        yield
        self.stream.record(self._events[1])
        self._timed = True

    def forget_time(self) -> None:
        """Discard the last timing."""
        self._timed = False

    def measure(self, on: bool) -> None:
        """Switch the timing of `timed` blocks on or off, and discard the last timing."""
        self._times, self._timed = on, False

    @property
    def elapsed_ms(self) -> float | None:
        """Time of the last `timed` block on the GPU (ms); None if it was not timed.

        Read it only after the work of the block is complete.
        """
        return float(self._events[1] - self._events[0]) if self._timed else None

    def capture(self, work: Callable[[int], bool]) -> Graph | None:
        """Capture work as a CUDA graph without running it; return None if the capture fails.

        Args:
            work: function that receives the handle of a CUDA stream, enqueues the work there, and returns False if that
                fails. The same work must have run earlier, so that nothing is loaded or allocated during the capture.
        """
        builder = self.stream.create_graph_builder()
        try:
            builder.begin_building("thread_local")
            done = work(int(builder.stream.handle))
            builder.end_building()
            return builder.complete() if done else None
        except (CudaError, RuntimeError):  # cuda.core raises RuntimeError for an invalidated capture.
            return None
        finally:
            with suppress(CudaError, RuntimeError):  # Closing a failed capture raises too.
                builder.close()

    def launch(self, graph: Graph) -> None:
        """Enqueue a captured graph."""
        graph.launch(self.stream)

    def compile_kernel(self) -> None:
        """Compile the kernel that `to_frames` runs.

        Raises:
            BackendUnavailable: NVRTC is not installed, or does not support this GPU.
        """
        try:
            program = core.Program(KERNEL, "c++", core.ProgramOptions(arch=f"sm_{self.device.arch}"))
            self._kernel = program.compile("cubin").get_kernel("to_frames")
        except (RuntimeError, CudaError) as error:  # NVRTC is missing, or does not support this GPU.
            remedy = _old_driver() or REMEDY
            raise BackendUnavailable(
                f"NVRTC, the CUDA compiler library, does not work ({first_line(error)}); {remedy}"
            ) from error

    def to_frames(self, pictures: Memory, frames: Memory, channels: int, pixels: int) -> None:
        """Enqueue the conversion of pictures, uint8 [B, H, W, C], to frames, float32 [B, C, H, W] in [0, 1].

        Args:
            pixels: number of pixels per picture, H·W.
        """
        count = pictures.size
        config = core.LaunchConfig(grid=math.ceil(count / THREADS), block=THREADS)
        numbers = np.int32(channels), np.int32(pixels), np.int32(count)
        core.launch(self.stream, config, self._kernel, pictures, frames, *numbers)

    def borrow(self, array: Any) -> tuple[Memory, tuple[int, ...], np.dtype[Any]]:
        """Return the memory, shape and dtype of an array on this GPU, read through DLPack or the CUDA array interface.

        Raises:
            ShapeError: the array is on another GPU, or is not contiguous.
        """
        view = core.utils.StridedMemoryView.from_any_interface(array, stream_ptr=self.handle)
        shape, dtype = tuple(view.shape), np.dtype(view.dtype)
        if view.device_id != self.number:
            raise ShapeError(f"frame: got an array on GPU {view.device_id}, expected GPU {self.number}; copy it there")
        if view.strides is not None and not _in_one_piece(shape, view.strides):
            raise ShapeError(f"frame: got a non-contiguous array {list(shape)}; make a contiguous copy")
        nbytes = math.prod(shape) * dtype.itemsize
        return core.Buffer.from_handle(int(view.ptr), nbytes, owner=view), shape, dtype

    def view(self, memory: Memory, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object) -> Any:
        """Return a DLPack array over a piece of memory; the array keeps `owner` alive."""
        part = core.Buffer.from_handle(int(memory.handle), memory.size, owner=owner)
        return core.utils.StridedMemoryView.from_buffer(part, shape, dtype=dtype)

    def close(self) -> None:
        """Wait until all work is complete, then free all memory."""
        with suppress(CudaError):  # Waiting for a GPU that has failed raises again.
            self.stream.sync()
        for memory in self._owned.values():
            memory.close()
        self._owned.clear()
        self._returned.clear()
        self._lent.clear()
        self._spare.clear()
        if self.pool is not None:
            self.pool.close()
        self.stream.close()


def _refusal(number: int, error: Exception) -> E3DError:
    """Return the E3DError for a GPU that CUDA cannot use."""
    for name, kind, advice in REFUSALS:
        if name in str(error):
            return kind(f"GPU {number}: cannot be used ({first_line(error)}); {advice}")
    return BackendUnavailable(f"GPU {number}: cannot be used ({first_line(error)}); {_old_driver() or REMEDY}")


def _old_driver() -> str | None:
    """Return advice if the driver supports only a lower major version of CUDA than cuda-bindings needs, or None."""
    try:
        driver = core.system.get_user_mode_driver_version()
    except (AttributeError, RuntimeError, CudaError):  # cuda-core is too old for this query, or the driver is missing.
        return None
    if driver[0] >= int(bindings.__version__.partition(".")[0]):
        return None
    return (
        f"its driver supports CUDA {'.'.join(map(str, driver))}, but cuda-bindings {bindings.__version__} needs a "
        "newer driver; update the NVIDIA driver"
    )


def as_e3d_error(error: Exception) -> Exception:
    """Return the E3DError for a CUDA error."""
    if OUT_OF_MEMORY in str(error):
        return ResourceLimit(
            f"the GPU has no memory left ({first_line(error)}), and nothing was changed; close streams or other "
            "programs, or run fewer streams at once"
        )
    return EngineError(f"the GPU failed ({first_line(error)}), and all states on it are lost; load the bundle again")


def _in_one_piece(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return True if strides (elements) are those of a contiguous array; axes of length 1 may have any stride."""
    expected = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return all(size == 1 or one == other for size, one, other in zip(shape, strides, expected, strict=True))
