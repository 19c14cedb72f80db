"""Fake, on host memory, of the part of `cuda.core` that the package uses. It computes results and counts its calls.

test_tensorrt.py compares its signatures with those of the real `cuda.core`. Work in the CUDA stream runs as late as
possible, at the next synchronisation, so that code that forgets to synchronise fails. Work that is enqueued during a
capture runs at each launch of the graph. Freed memory is filled with 0xFF, and any later use of it fails.
"""

import ctypes
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.core._utils.cuda_utils import CUDAError

SIZE_OF_KERNEL = 5
"""Number of arguments of the only kernel that is faked."""


class Machine:
    """Fake GPU of a test: its memory, its CUDA stream, and counts of its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.counts: Counter[str] = Counter()
        self.memory: dict[int, int] = {}
        """Size of each allocated piece of memory (bytes), by address."""
        self.freed: list[Any] = []
        """Freed memory that pending work may still write to; kept until the work is done."""
        self.limit: int | None = None
        """Size of the GPU memory (bytes); None if unlimited."""
        self.driver, self.compiler, self.captures, self.pools, self.fails = True, True, True, True, ""
        self.refusal = ""
        """CUDA's message for a GPU that cannot be used; empty if it can be used."""
        self.cuda = (13, 0)
        """Version of CUDA that the driver supports."""
        self.graphs = 0
        self.capturing: list[Callable[[], None]] | None = None
        self.pending: list[Callable[[], None]] = []
        self.current: set[int] = set()
        """Threads in which the GPU is current."""

    def did(self, what: str) -> None:
        """Record a call, and raise if the test has set `fails` to this call."""
        self.calls.append(what)
        self.counts[what] += 1
        assert threading.get_ident() in self.current, "the GPU is not current in this thread"
        if what == self.fails:
            raise CUDAError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered")

    def put(self, work: Callable[[], None]) -> None:
        """Enqueue work: it runs at the next `wait`, or at each launch of the graph that is being captured."""
        (self.pending if self.capturing is None else self.capturing).append(work)

    def wait(self) -> None:
        """Run all pending work."""
        pending, self.pending = self.pending, []
        for work in pending:
            work()
        self.freed.clear()

    @property
    def allocated(self) -> int:
        """Allocated memory, on the GPU and page-locked on the host (bytes)."""
        return sum(self.memory.values())

    def check(self, address: int, nbytes: int) -> None:
        """Assert that a range of memory is within one allocated piece."""
        inside = any(base <= address and address + nbytes <= base + size for base, size in self.memory.items())
        assert inside, "this memory was never allocated, or has been freed"


def at(address: int, nbytes: int) -> Any:
    """Return memory as an array of bytes."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def fake_core(machine: Machine) -> Any:
    """Return a fake module `cuda.core` for a machine."""

    class Buffer:
        def __init__(self, handle: int, size: int, owner: Any = None) -> None:
            self.handle, self.size, self.owner = handle, size, owner

        @classmethod
        def allocated(cls, size: int, limit: int | None) -> "Buffer":
            machine.did("allocate")
            if limit is not None and machine.allocated + size > limit:
                raise CUDAError("CUDA_ERROR_OUT_OF_MEMORY: the API call failed because it was unable to allocate")
            array = np.full(size + 255, 0xAA, np.uint8)
            handle = (array.ctypes.data + 255) // 256 * 256
            machine.memory[handle] = size
            return cls(handle, size, array)

        @staticmethod
        def from_handle(ptr: int, size: int, mr: Any = None, owner: Any = None, *, stream: Any = None) -> "Buffer":
            return Buffer(ptr, size, owner)

        def copy_to(self, dst: "Buffer", *, stream: Any, options: Any = None) -> "Buffer":
            assert dst.size == self.size
            machine.did("copy")
            for one in (self, dst):
                machine.check(one.handle, one.size)

            def work(to: int = dst.handle, source: int = self.handle, size: int = self.size) -> None:
                at(to, size)[:] = at(source, size)

            machine.put(work)
            return dst

        def fill(self, value: int | bytes, *, stream: Any) -> None:
            machine.did("fill")
            machine.check(self.handle, self.size)
            pattern = np.frombuffer(bytes([value]) if isinstance(value, int) else value, np.uint8)

            def work(to: int = self.handle, size: int = self.size) -> None:
                at(to, size)[:] = np.tile(pattern, size // len(pattern))

            machine.put(work)

        def close(self, stream: Any = None) -> None:
            def work(to: int = self.handle, size: int = self.size) -> None:
                at(to, size)[:] = 0xFF

            machine.put(work)  # Earlier work in the stream may still use the memory.
            assert machine.memory.pop(self.handle) == self.size
            machine.freed.append(self.owner)  # Keeps the host memory until the pending work is done.

    class LegacyPinnedMemoryResource:
        def allocate(self, size: int, *, stream: Any = None) -> Buffer:
            return Buffer.allocated(size, None)

    class DeviceMemoryResourceOptions:
        def __init__(self, ipc_enabled: bool = False, max_size: int = 0) -> None:
            assert not ipc_enabled

    class DeviceMemoryResource:
        def __init__(self, device_id: int, options: DeviceMemoryResourceOptions | None = None) -> None:
            assert options is not None, "without options, the pool would be shared with other code"
            assert machine.pools

        def allocate(self, size: int, *, stream: Any) -> Buffer:
            return Buffer.allocated(size, machine.limit)

        def close(self) -> None:
            machine.counts["pool closed"] += 1

    class Graph:
        def __init__(self, work: list[Callable[[], None]]) -> None:
            self.work = work

        def launch(self, stream: Any) -> None:
            machine.did("launch")
            assert machine.capturing is None
            machine.pending += self.work

        def close(self) -> None:
            machine.graphs -= 1

    class GraphBuilder:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def begin_building(self, mode: str = "relaxed") -> "GraphBuilder":
            assert mode == "thread_local"
            machine.did("begin")
            machine.capturing = []
            return self

        def end_building(self) -> "GraphBuilder":
            machine.did("end")
            self.work, machine.capturing = machine.capturing or [], None
            if not machine.captures:
                raise RuntimeError("Build process encountered an error and has been invalidated")
            return self

        def complete(self, options: Any = None) -> Graph:
            machine.did("instantiate")
            machine.graphs += 1
            return Graph(self.work)

        def close(self) -> None:
            if machine.capturing is not None:
                machine.capturing = None

    class EventOptions:
        def __init__(self, timing_enabled: bool = False) -> None:
            assert timing_enabled

    class Event:
        _done: Any = None

        def __sub__(self, other: "Event") -> float:
            assert None not in (self._done, other._done), "an event was read before its work was done"
            return 1000 * (self._done - other._done)

    class Stream:
        handle = 77

        def record(self, event: Event | None = None, options: EventOptions | None = None) -> Event:
            assert event is not None
            assert machine.capturing is None
            machine.did("record")
            event._done = None

            def work() -> None:
                event._done = time.perf_counter()

            machine.put(work)
            return event

        def sync(self) -> None:
            assert machine.capturing is None
            machine.did("synchronise")
            machine.wait()

        def create_graph_builder(self) -> GraphBuilder:
            return GraphBuilder(self)

        def close(self) -> None:
            machine.did("stream closed")

    class StreamOptions:
        def __init__(self, nonblocking: bool = True, priority: int | None = None) -> None:
            assert nonblocking

    class Device:
        arch, compute_capability = "120", (12, 0)

        def __init__(self, device_id: Any = None) -> None:
            if machine.refusal:
                raise CUDAError(machine.refusal)
            if not machine.driver:
                raise RuntimeError('"cuda" is an NVIDIA driver library and can only be found via system search.')

        def set_current(self, ctx: Any = None) -> None:
            machine.current.add(threading.get_ident())

        def create_stream(self, obj: Any = None, options: StreamOptions | None = None) -> Stream:
            return Stream()

        def create_event(self, options: EventOptions | None = None) -> Event:
            assert options is not None
            return Event()

        def allocate(self, size: int, *, stream: Any) -> Buffer:
            machine.did("without a pool")
            return Buffer.allocated(size, machine.limit)

        @property
        def properties(self) -> Any:
            return SimpleNamespace(memory_pools_supported=machine.pools)

    class ProgramOptions:
        def __init__(self, name: str = "default_program", arch: str | None = None) -> None:
            assert arch == "sm_120"

    class ObjectCode:
        def get_kernel(self, name: str) -> str:
            return name

    class Program:
        def __init__(self, code: str, code_type: str, options: ProgramOptions | None = None) -> None:
            if not machine.compiler:
                raise RuntimeError('Failure finding "libnvrtc.so.13"')

        def compile(self, target_type: str, name_expressions: Any = (), logs: Any = None) -> ObjectCode:
            return ObjectCode()

    class LaunchConfig:
        def __init__(self, grid: Any = None, cluster: Any = None, block: Any = None) -> None:
            self.threads = grid * block

    def launch(stream: Any, config: LaunchConfig, kernel: str, *kernel_args: Any) -> None:
        assert kernel == "to_frames"
        assert len(kernel_args) == SIZE_OF_KERNEL
        machine.did("kernel")
        pictures, frames, channels, pixels, count = kernel_args
        assert config.threads >= count
        assert (pictures.size, frames.size) == (count, 4 * count)

        def work() -> None:
            shown = at(pictures.handle, pictures.size).reshape(-1, pixels, channels)
            at(frames.handle, frames.size).view(np.float32)[:] = (shown.transpose(0, 2, 1) / np.float32(255)).ravel()

        machine.put(work)

    class StridedMemoryView:
        """View of an array that has the CUDA array interface; DLPack input is not supported."""

        def __init__(self, ptr: int, shape: tuple[int, ...], strides: Any, dtype: Any) -> None:
            self.ptr, self.shape, self.strides, self.dtype, self.device_id = ptr, shape, strides, dtype, 0

        @classmethod
        def from_any_interface(cls, obj: Any, stream_ptr: int | None = None) -> "StridedMemoryView":
            assert stream_ptr == Stream.handle
            shown = obj.__cuda_array_interface__
            dtype = np.dtype(shown["typestr"])
            strides = shown["strides"] and tuple(one // dtype.itemsize for one in shown["strides"])
            view = cls(shown["data"][0], tuple(shown["shape"]), strides, dtype)
            view.device_id = getattr(obj, "device", 0)
            return view

        @classmethod
        def from_buffer(
            cls, buffer: Buffer, shape: tuple[int, ...], strides: Any = None, *, itemsize: Any = None, dtype: Any = None
        ) -> "StridedMemoryView":
            view = cls(buffer.handle, shape, strides, dtype)
            view.owner = buffer
            return view

        def __dlpack__(
            self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
        ) -> Any:
            return self

    classes = (Device, Stream, StreamOptions, Event, EventOptions, Buffer, LegacyPinnedMemoryResource)
    classes += (DeviceMemoryResource, DeviceMemoryResourceOptions, Program, ProgramOptions, LaunchConfig, ObjectCode)
    return SimpleNamespace(
        **{one.__name__: one for one in classes},
        launch=launch,
        graph=SimpleNamespace(GraphBuilder=GraphBuilder, Graph=Graph),
        utils=SimpleNamespace(StridedMemoryView=StridedMemoryView),
        system=SimpleNamespace(get_user_mode_driver_version=lambda: machine.cuda),
        __version__="1.2.2",
    )


class OnGpu:
    """Array of the application on the GPU, with the CUDA array interface."""

    def __init__(self, machine: Machine, array: Any, device: int = 0) -> None:
        self.array, self.device = array, device
        machine.memory[array.ctypes.data] = array.nbytes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        array = self.array
        strides = None if array.flags.c_contiguous else array.strides
        data = (array.ctypes.data, False)
        return {"shape": array.shape, "typestr": array.dtype.str, "data": data, "strides": strides, "version": 3}
