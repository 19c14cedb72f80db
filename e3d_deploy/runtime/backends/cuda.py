"""CUDA as far as the runtime needs it: one stream of one GPU, its memory, copies, captured graphs, and one kernel.

Everything goes through `cuda.core` and into one stream, so that work is done in the order of the calls. Memory comes
from a pool of its own if the GPU supports pools, and is freed when its `Cuda` is closed.
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
    """Return the error for a `cuda.core` that lacks what is used here, all of which 1.0 has."""
    return BackendUnavailable(f"cuda-core {core.__version__} is too old ({first_line(error)}); {UPDATE}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


try:
    from cuda.core._utils import cuda_utils
except ImportError as error:  # the first releases have `cuda.core.experimental` alone
    raise _outdated(error) from error

CudaError: type[Exception] = cuda_utils.CUDAError
"""Exception that `cuda.core` raises; it has no public name."""
Memory = Any
"""A `cuda.core.Buffer`: `int(memory.handle)` is its address, `memory.size` its length in bytes."""
Graph = Any
"""A `cuda.core.graph.Graph`."""

REMEDY = f"this needs {GPU}, and `{pip_install('gpu')}` or `[rtx]`"
KERNEL = r"""
extern "C" __global__ void to_frames(const unsigned char* pictures, float* frames, int channels, int pixels, int count)
{
    int place = blockIdx.x * blockDim.x + threadIdx.x;  // in the frames, [B, C, H, W]
    if (place >= count) return;
    int pixel = place % pixels, channel = place / pixels % channels, stream = place / pixels / channels;
    frames[place] = pictures[(stream * pixels + pixel) * channels + channel] / 255.0f;
}
"""
"""Kernel that converts pictures, uint8 [B, H, W, C], to frames. It divides as NumPy does: NVRTC rounds correctly unless
told not to."""
THREADS = 256
OUT_OF_MEMORY = "OUT_OF_MEMORY"
"""Words in CUDA's message when the GPU has no memory left."""
REFUSALS: tuple[tuple[str, type[E3DError], str], ...] = (
    (OUT_OF_MEMORY, ResourceLimit, "it has no memory left; close other programs that use it"),
    (
        "DEVICE_UNAVAILABLE",
        BackendUnavailable,
        "another program has it to itself; end that program, or let programs share it: "
        "`nvidia-smi --compute-mode=DEFAULT`",
    ),
    ("SYSTEM_DRIVER_MISMATCH", BackendUnavailable, "its driver was updated while in use; restart the machine"),
)
"""Names in CUDA's messages for a GPU that cannot be used, each with our error and what to do."""
SPARE = 8
"""Returned pieces of lent memory, per length, that are kept for reuse."""
TURN = threading.RLock()
"""Lock of the one thread of this process that may use a GPU. Calls of another thread, allocations above all, may spoil
a capture of ONNX Runtime, which covers all threads; and PyTorch makes one capture at a time. Reentrant, because garbage
collection may close a backend during the turn of another."""


class Cuda:
    """One GPU and a stream on it. For one thread at a time, each after `make_current`.

    Raises:
        BackendUnavailable: there is no GPU, or no driver for it, or a driver or `cuda.core` that is too old, or another
            program has the GPU to itself.
        ResourceLimit: the GPU has no memory left.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self._owned: dict[int, Memory] = {}
        """Memory allocated here, by address."""
        self._spare: dict[int, list[Memory]] = {}
        """Returned memory to lend again, by length (bytes)."""
        self._returned: deque[Lease] = deque()
        """Returned memory that is not among the spare yet."""
        self._lent: dict[int, Lease] = {}
        """Leases by their `id`. Kept here, as one that goes in a cycle of garbage with its holder calls nobody."""
        self._times = self._timed = False
        self._kernel: Any = None
        try:
            with TURN:
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
        """Make this GPU the current one of the calling thread."""
        core.Device(self.number).set_current()

    def allocate(self, nbytes: int) -> Memory:
        """Allocate memory on the GPU; if none is left, free spare memory first."""
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
        """Return memory on the GPU to lend to a holder by `lease`; it may have been lent before."""
        self._take_back()
        self._trim(SPARE)
        spare = self._spare.setdefault(nbytes, [])
        return spare.pop() if spare else self.allocate(nbytes)

    def lease(self, holder: object, memory: Memory) -> Lease:
        """Lend memory until nobody holds the holder. Any thread may let it go at any time."""
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
        """Free all but `most` spare pieces of each length; work that still uses them is earlier in the stream."""
        for spare in list(self._spare.values()):
            while len(spare) > most:
                memory = spare.pop()
                self._owned.pop(int(memory.handle)).close()

    def allocate_pinned(self, nbytes: int) -> tuple[Memory, NDArray[np.uint8]]:
        """Allocate page-locked memory on the host; return it, and an array over it."""
        memory = self._own(core.LegacyPinnedMemoryResource().allocate(nbytes))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(memory.handle)))
        return memory, array

    def _own(self, memory: Memory) -> Memory:
        self._owned[int(memory.handle)] = memory
        return memory

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Free everything allocated within the block if the block fails."""
        before = set(self._owned)
        try:
            yield
        except BaseException:
            for address in self._owned.keys() - before:
                self._owned.pop(address).close()
            raise

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Hold `TURN` while something is opened, and close this if that fails."""
        with TURN:
            try:
                yield
            except CudaError as error:
                self.close()
                raise said_plainly(error) from error
            except BaseException:
                self.close()
                raise

    def part(self, memory: Memory, offset: int, nbytes: int) -> Memory:
        """Return a piece of memory that begins at `offset` (bytes)."""
        return core.Buffer.from_handle(int(memory.handle) + offset, nbytes, owner=memory)

    def copy(self, to: Memory, source: Memory) -> None:
        """Copy memory of one length, from or to the GPU or within it."""
        source.copy_to(to, stream=self.stream)

    def fill(self, memory: Memory, value: int | bytes) -> None:
        """Fill memory with a byte, or with 4 bytes repeated."""
        memory.fill(value, stream=self.stream)

    def synchronise(self) -> None:
        """Wait until all work in the stream is done."""
        self.stream.sync()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time the work put into the stream within the block, after `measure(True)`."""
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
        """Switch the timing of `timed` blocks on or off; the last timing is discarded."""
        self._times, self._timed = on, False

    @property
    def elapsed_ms(self) -> float | None:
        """Time of the last `timed` block on the GPU (ms), to be read once its work is done; None if it was not."""
        return float(self._events[1] - self._events[0]) if self._timed else None

    def capture(self, work: Callable[[int], bool]) -> Graph | None:
        """Capture work as a graph without running it; return None if that is refused.

        Args:
            work: puts work into the stream whose handle it is given, and returns False if that is refused. It must have
                run before, so that it loads and allocates nothing now.
        """
        builder = self.stream.create_graph_builder()
        try:
            builder.begin_building("thread_local")
            done = work(int(builder.stream.handle))
            builder.end_building()
            return builder.complete() if done else None
        except (CudaError, RuntimeError):  # the latter is cuda.core's own word for a capture that was spoiled
            return None
        finally:
            with suppress(CudaError, RuntimeError):  # what was refused is not ended in order
                builder.close()

    def launch(self, graph: Graph) -> None:
        """Put a captured graph into the stream."""
        graph.launch(self.stream)

    def compile_kernel(self) -> None:
        """Compile the kernel that `to_frames` runs.

        Raises:
            BackendUnavailable: the compiler is not installed.
        """
        try:
            program = core.Program(KERNEL, "c++", core.ProgramOptions(arch=f"sm_{self.device.arch}"))
            self._kernel = program.compile("cubin").get_kernel("to_frames")
        except (RuntimeError, CudaError) as error:  # there is no such library, or it does not know this GPU
            remedy = _old_driver() or REMEDY
            raise BackendUnavailable(
                f"NVRTC, which compiles for the GPU, does not work ({first_line(error)}); {remedy}"
            ) from error

    def to_frames(self, pictures: Memory, frames: Memory, channels: int, pixels: int) -> None:
        """Convert pictures, uint8 [B, H, W, C], to frames, float32 [B, C, H, W] in [0, 1]."""
        count = pictures.size
        config = core.LaunchConfig(grid=math.ceil(count / THREADS), block=THREADS)
        numbers = np.int32(channels), np.int32(pixels), np.int32(count)
        core.launch(self.stream, config, self._kernel, pictures, frames, *numbers)

    def borrow(self, array: Any) -> tuple[Memory, tuple[int, ...], np.dtype[Any]]:
        """Return memory, shape and type of an array on this GPU, by DLPack or the CUDA array interface.

        Raises:
            ShapeError: it lies on another GPU, or not in one piece.
        """
        view = core.utils.StridedMemoryView.from_any_interface(array, stream_ptr=self.handle)
        shape, dtype = tuple(view.shape), np.dtype(view.dtype)
        if view.device_id != self.number:
            raise ShapeError(f"frame: lies on GPU {view.device_id}, expected GPU {self.number}; copy it there")
        if view.strides is not None and not _in_one_piece(shape, view.strides):
            raise ShapeError(f"frame: its {list(shape)} do not lie in one piece; give a contiguous array")
        nbytes = math.prod(shape) * dtype.itemsize
        return core.Buffer.from_handle(int(view.ptr), nbytes, owner=view), shape, dtype

    def view(self, memory: Memory, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object) -> Any:
        """Return memory as an array for DLPack, which keeps `owner` alive."""
        part = core.Buffer.from_handle(int(memory.handle), memory.size, owner=owner)
        return core.utils.StridedMemoryView.from_buffer(part, shape, dtype=dtype)

    def close(self) -> None:
        """Wait for the last work, then free everything."""
        with suppress(CudaError):  # a GPU that failed cannot be waited for
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
    """Return the error for a GPU that CUDA refuses to use."""
    for name, kind, advice in REFUSALS:
        if name in str(error):
            return kind(f"GPU {number}: cannot be used ({first_line(error)}); {advice}")
    return BackendUnavailable(f"GPU {number}: cannot be used ({first_line(error)}); {_old_driver() or REMEDY}")


def _old_driver() -> str | None:
    """Return advice if the driver is of an earlier major version than CUDA's libraries; else None."""
    try:
        driver = core.system.get_user_mode_driver_version()
    except (AttributeError, RuntimeError, CudaError):  # an old cuda-core cannot say; or there is no driver
        return None
    if driver[0] >= int(bindings.__version__.partition(".")[0]):
        return None
    return (
        f"its driver is for CUDA {'.'.join(map(str, driver))}, and cuda-bindings {bindings.__version__} needs a newer "
        "one; update the NVIDIA driver"
    )


def said_plainly(error: Exception) -> Exception:
    """Return an error of CUDA as one of our own."""
    if OUT_OF_MEMORY in str(error):
        return ResourceLimit(
            f"the GPU has no memory left ({first_line(error)}); nothing was changed: close streams or other programs, "
            "or run fewer streams at once"
        )
    return EngineError(f"the GPU failed ({first_line(error)}); what it computed is lost, open the bundle again")


def _in_one_piece(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return True if strides (elements) are those of a contiguous array; an axis of length 1 may have any."""
    expected = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return all(size == 1 or one == other for size, one, other in zip(shape, strides, expected, strict=True))
