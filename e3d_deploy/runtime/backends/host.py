"""Base class of backends on the CPU, which run graphs directly on the memory of states, and reuse that memory."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract, frames
from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.config import ModelConfig
from e3d_deploy.runtime.backends.lease import Lease
from e3d_deploy.runtime.backends.lifetime import Lifetime, exclusive
from e3d_deploy.runtime.backends.protocol import Frame

Arrays = dict[str, NDArray[Any]]
Tensors = dict[str, Any]
"""Arrays by name, in the form that a library takes, sharing the memory of the NumPy arrays."""

SPARE = 8
"""Maximum number of rows in unused states that are kept for reuse, per batch size; two states may have more rows."""


class HostState:
    """State as NumPy arrays, with the tensors of `contract.States`; the memory of an unreferenced state is reused."""

    __slots__ = ("__weakref__", "_lease", "arrays", "tensors")

    def __init__(self, arrays: Arrays, tensors: Tensors, free: deque[Lease]) -> None:
        self.arrays, self.tensors = arrays, tensors
        self._lease = Lease.of(self, (arrays, tensors), free)


class HostBackend(Lifetime):
    """Base class of backends on the CPU. A subclass wraps arrays for its library (`tensor`) and runs graphs (`run`)."""

    name: str
    pads = False
    device = None

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.bundle, self.sizes = bundle, bundle.sizes
        self._free: dict[int, deque[Lease]] = {}

    def tensor(self, array: NDArray[Any]) -> Any:
        """Return an array in the form that the library takes, sharing its memory."""
        raise NotImplementedError

    def run(self, graph: str, batch: int, inputs: Tensors, outputs: Tensors) -> None:
        """Run a graph for `batch` streams and write its results to `outputs`.

        Only one thread calls this at a time.
        """
        raise NotImplementedError

    def initial_state(self, batch: int | None = None) -> HostState:
        return self.from_arrays(self.bundle.states.initial(batch or self.bundle.batch))

    def gather(self, rows: Sequence[tuple[HostState, int]]) -> HostState:
        state = self._empty(len(rows))
        for name, array in state.arrays.items():
            for row, (source, number) in enumerate(rows):
                array[row] = source.arrays[name][number]
        return state

    def step(self, frame: Frame, state: HostState) -> tuple[NDArray[np.float32], HostState]:
        seen = as_frames(frame, self.bundle.config)
        return self._run("step", {contract.FRAME: seen}, state, contract.PREDICTION, seen.shape)

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], HostState]:
        shape = (len(context), self.bundle.horizon, *context.shape[-3:])
        return self._run("clip", {contract.CONTEXT: context}, None, contract.FORECAST, shape)

    def rollout(self, prediction: NDArray[np.float32], state: HostState) -> tuple[NDArray[np.float32], HostState]:
        shape = (len(prediction), self.bundle.horizon, *prediction.shape[-3:])
        return self._run("rollout", {contract.PREDICTION: prediction}, state, contract.FORECAST, shape)

    def _run(
        self, graph: str, given: Arrays, state: HostState | None, result: str, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.float32], HostState]:
        output, following = np.empty(shape, np.float32), self._empty(shape[0])
        inputs = {name: self.tensor(frames.to_input(array, name=name)) for name, array in given.items()}
        outputs = {contract.NEXT + name: tensor for name, tensor in following.tensors.items()}
        inputs |= state.tensors if state else {}
        outputs[result] = self.tensor(output)
        self._run_alone(graph, shape[0], inputs, outputs)
        return output, following

    @exclusive
    def _run_alone(self, graph: str, batch: int, inputs: Tensors, outputs: Tensors) -> None:
        self.run(graph, batch, inputs, outputs)

    def to_arrays(self, state: HostState) -> Arrays:
        self.check_open()
        return {name: array.copy() for name, array in state.arrays.items()}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> HostState:
        state, clean = self._empty(self.bundle.states.count(arrays)), self.bundle.states.with_empty_slots_zeroed(arrays)
        for name, array in state.arrays.items():
            array[:] = clean[name]
        return state

    def _empty(self, batch: int) -> HostState:
        """Return a state of `batch` streams with undefined content, to write into.

        Every method that creates a state calls this method, which checks that the backend is open.
        """
        self.check_open()
        free = self._free.setdefault(batch, deque(maxlen=max(2, SPARE // batch)))
        try:
            arrays, tensors = free.pop().memory
            return HostState(arrays, tensors, free)
        except IndexError:
            arrays = self.bundle.states.initial(batch)
            return HostState(arrays, {name: self.tensor(array) for name, array in arrays.items()}, free)


def as_frames(seen: Frame, config: ModelConfig) -> NDArray[Any]:
    """Convert pictures to frames; frames are returned unchanged."""
    if seen.dtype == np.uint8:
        return frames.to_frames(seen, image_size=config.image_size, channels=config.channels)
    return frames.as_array(seen, name="frame")
