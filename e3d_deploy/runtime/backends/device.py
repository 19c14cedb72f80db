"""Base class of backends on a GPU, which keep states and frames on the GPU and run graphs at given addresses."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import ConfigError, ShapeError
from e3d_deploy.frames import as_array, is_on_gpu
from e3d_deploy.runtime.backends.cuda import GPU_LOCK, Cuda, CudaError, as_e3d_error
from e3d_deploy.runtime.backends.device_arrays import DeviceArray, Port
from e3d_deploy.runtime.backends.device_states import DeviceState, Layout, StateSets
from e3d_deploy.runtime.backends.lifetime import Lifetime, exclusive
from e3d_deploy.runtime.backends.protocol import Frame

Addresses = dict[str, int]
"""GPU addresses of the inputs and outputs of a graph, by name."""


class Size:
    """GPU memory at fixed addresses, which a step of `batch` streams reads and writes."""

    def __init__(self, cuda: Cuda, bundle: Bundle, batch: int, states: StateSets) -> None:
        config = bundle.config
        self.states = states
        self.frame = Port(cuda, contract.frame(config, batch).shape)
        self.pictures = Port(cuda, (batch, *config.image_size, config.channels), np.uint8)
        self.prediction = Port(cuda, self.frame.shape)
        frames = {contract.FRAME: self.frame.address, contract.PREDICTION: self.prediction.address}
        self.addresses = [frames | states.addresses(side) for side in (0, 1)]
        """Addresses for a step that reads set 0 and writes set 1 of the states, and for the reverse."""


class DeviceBackend(Lifetime):
    """Base class of backends on a GPU. A subclass runs its library's graphs with inputs and outputs at given addresses.

    Only one thread of the process calls a GPU at a time, and all work goes to one CUDA stream. A step uses no CPU
    threads, so subclasses accept `threads` and ignore it.
    """

    name: str
    pads = True
    captures = True
    """True if steps run as captured CUDA graphs; False after a capture failed."""
    compiles: bool | None = None
    """True if steps run compiled; False after compilation failed; None for a backend that compiles nothing."""

    def __init__(self, bundle: Bundle, cuda: Cuda, sizes: tuple[int, ...]) -> None:
        super().__init__(GPU_LOCK)
        self.bundle, self.cuda, self.sizes = bundle, cuda, sizes
        self._sizes: dict[int, Size] = {}
        self._ports: dict[tuple[str, int], tuple[Port, Port]] = {}

    def run_step(self, batch: int, side: int, addresses: Addresses) -> None:
        """Enqueue a step of `batch` streams that reads set `side` of the states and writes the other set."""
        raise NotImplementedError

    def run_graph(self, graph: str, batch: int, addresses: Addresses) -> None:
        """Enqueue a run of the graph `clip` or `rollout`."""
        raise NotImplementedError

    def release(self) -> None:
        """Free the objects of the library."""
        raise NotImplementedError

    def new_states(self, batch: int) -> StateSets:
        """Allocate the two sets of states for `batch` streams."""
        layout = Layout(self.bundle.states.of(batch), batch)
        return StateSets(self.cuda, layout, layout)

    def prepare(self, batch: int, size: Size) -> None:
        """Prepare the first step of `batch` streams. The default does nothing."""

    @property
    def device(self) -> Self:
        """The backend itself, which has the methods of `protocol.Device`."""
        return self

    @property
    def device_ms(self) -> float | None:
        """Time of the last call's graph on the GPU (ms); None if that call was not timed, as before `measure(True)`."""
        return self.cuda.elapsed_ms

    @exclusive
    def measure(self, on: bool) -> None:
        """Switch the timing of calls on the GPU on or off."""
        with self._current():
            self.cuda.measure(on)

    @exclusive
    def initial_state(self, batch: int | None = None) -> DeviceState:
        with self._current():
            return self._size(batch or self.bundle.batch).states.initial()

    @exclusive
    def gather(self, rows: Sequence[tuple[DeviceState, int]]) -> DeviceState:
        with self._current():
            return self._size(len(rows)).states.gather(rows)

    @exclusive
    def step(self, frame: Frame, state: DeviceState) -> tuple[NDArray[np.float32], DeviceState]:
        with self._current():
            size, following = self._step(frame, state)
            return size.prediction.read(), following

    @exclusive
    def step_on_device(self, frame: Any, state: DeviceState) -> tuple[DeviceArray, DeviceState]:
        """Step like `step`, but leave the prediction on the GPU; it can be passed as the next frame."""
        with self._current():
            size, following = self._step(frame, state)
            memory = self.cuda.lend(size.prediction.memory.size)
            prediction = DeviceArray(self.cuda, memory, size.prediction.shape)
            self.cuda.copy(memory, size.prediction.memory)
            self.cuda.synchronise()  # After this, readers need not synchronise with the CUDA stream.
            return prediction, following

    @exclusive
    def keep(self, picture: Any) -> DeviceArray:
        """Copy pictures on the GPU, uint8 [B, H, W, C], to memory of the backend."""
        with self._current():
            memory, shape, _ = self.cuda.borrow(picture)
            own = self.cuda.lend(memory.size)
            self.cuda.copy(own, memory)
            self.cuda.synchronise()  # The caller may overwrite its pictures after this returns.
            return DeviceArray(self.cuda, own, shape, np.uint8)

    @exclusive
    def fetch(self, picture: DeviceArray) -> NDArray[Any]:
        """Return a host copy of a picture that `keep` returned, uint8 [1, H, W, C]."""
        with self._current():
            port = self._size(1).pictures
            self.cuda.copy(port.memory, picture.memory)
            return port.read()

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], DeviceState]:
        return self._run("clip", contract.CONTEXT, as_array(np.asanyarray(context), name=contract.CONTEXT), None)

    def rollout(self, prediction: NDArray[np.float32], state: DeviceState) -> tuple[NDArray[np.float32], DeviceState]:
        given = as_array(np.asanyarray(prediction), name=contract.PREDICTION)
        return self._run("rollout", contract.PREDICTION, given, state)

    @exclusive
    def to_arrays(self, state: DeviceState) -> dict[str, NDArray[Any]]:
        with self._current():
            return self._size(state.batch).states.read(state)

    @exclusive
    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> DeviceState:
        with self._current():
            states = self.bundle.states
            return self._size(states.count(arrays)).states.write(states.with_empty_slots_zeroed(arrays))

    def free(self) -> None:
        """Free all GPU memory; states that are still referenced become invalid."""
        self.cuda.make_current()
        with suppress(CudaError):  # Waiting for a GPU that has failed raises again.
            self.cuda.synchronise()
        self.release()
        self._sizes.clear()
        self._ports.clear()
        self.cuda.close()

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Make the GPU current within the `with` block, and raise CUDA errors as E3DError."""
        try:
            self.cuda.make_current()
            yield
        except CudaError as error:
            raise as_e3d_error(error) from error

    def _step(self, frame: Any, state: DeviceState) -> tuple[Size, DeviceState]:
        size = self._size(state.batch)
        self._copy_in(frame, size)
        side = size.states.enter(state)
        with self.cuda.timed():
            self.run_step(state.batch, side, size.addresses[side])
        return size, size.states.written(1 - side)

    def _copy_in(self, frame: Any, size: Size) -> None:
        """Copy frames or pictures from the host or the GPU to the memory that the step reads.

        A single frame or picture on the GPU is repeated for all streams; on the host, there must be one per stream.
        """
        memory = None
        if is_on_gpu(frame):
            memory, shape, dtype = self.cuda.borrow(frame)
        else:
            frame = as_array(np.asanyarray(frame), name="frame")
            shape, dtype = frame.shape, frame.dtype
        port = size.pictures if dtype == np.uint8 else size.frame
        shared = memory is not None and shape == (1, *port.shape[1:])
        odd = dtype != port.dtype and (memory is not None or dtype.kind != "f")
        if odd or not (shape == port.shape or shared):
            raise ShapeError(f"frame: got {list(shape)} {dtype}, expected {list(port.shape)} {port.dtype}")
        if memory is None:
            port.write(frame)
        elif shared:
            for row in range(port.shape[0]):
                self.cuda.copy(self.cuda.part(port.memory, row * memory.size, memory.size), memory)
        else:
            self.cuda.copy(port.memory, memory)
        if port is size.pictures:
            *_, height, width, channels = port.shape
            self.cuda.to_frames(port.memory, size.frame.memory, channels, height * width)

    @exclusive
    def _run(
        self, graph: str, name: str, given: NDArray[np.float32], state: DeviceState | None
    ) -> tuple[NDArray[np.float32], DeviceState]:
        lengths = {"clip": (self.bundle.context_length,), "rollout": ()}[graph]
        expected = (len(given), *lengths, *contract.frame(self.bundle.config).shape[1:])
        if given.shape != expected or (state is not None and state.batch != len(given)):
            raise ShapeError(
                f"{name}: got {list(given.shape)}, expected {list(expected)} and a state of {len(given)} streams"
            )
        with self._current():
            states = self._size(len(given)).states
            source, result = self._ports_of(graph, given.shape)
            following = states.new()
            source.write(given)
            addresses = {name: source.address, contract.FORECAST: result.address}
            addresses |= state.block.addresses if state is not None else {}
            addresses |= {contract.NEXT + one: address for one, address in following.block.addresses.items()}
            with self.cuda.timed():
                self.run_graph(graph, len(given), addresses)
            return result.read(), following

    def _size(self, batch: int) -> Size:
        if batch not in self.sizes:
            raise ConfigError(
                f"{self.name}: got {batch} streams, expected one of {', '.join(map(str, self.sizes))} at once; "
                "export the model with `--batch any`, and build its engines with `--batch-bucket`"
            )
        if batch not in self._sizes:
            with self.cuda.all_or_nothing():
                size = Size(self.cuda, self.bundle, batch, self.new_states(batch))
                self.prepare(batch, size)
            self._sizes[batch] = size
        return self._sizes[batch]

    def _ports_of(self, graph: str, shape: tuple[int, ...]) -> tuple[Port, Port]:
        """Return the input port and the output port of the graph `clip` or `rollout`, allocated at the first call."""
        key = graph, shape[0]
        if key not in self._ports:
            forecast = (shape[0], self.bundle.horizon, *shape[-3:])
            with self.cuda.all_or_nothing():
                self._ports[key] = Port(self.cuda, shape), Port(self.cuda, forecast)
        return self._ports[key]
