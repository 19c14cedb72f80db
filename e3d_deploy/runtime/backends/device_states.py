"""States on a GPU, for backends whose steps run as captured graphs.

A captured graph reads and writes fixed addresses. There are therefore two sets of state tensors, A and B, and two
graphs: one reads A and writes B, the other reads B and writes A. A stream that is stepped repeatedly alternates between
the sets, and nothing is copied. States are still immutable values: if the set that a step is about to write contains a
state that is still referenced, as during a forecast, that state is first copied to separate memory. A state that is in
neither set is first copied into one of them. A step never writes the set that it reads.
"""

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.runtime.backends.cuda import Cuda, Memory

ALIGNMENT = 256
"""Alignment of each tensor (bytes), the same as that of memory allocated by CUDA."""


class Layout:
    """Offsets of the tensors of a state within one contiguous piece of memory.

    Args:
        tensors: tensors of `batch` streams, in their order in memory.
    """

    def __init__(self, tensors: Sequence[contract.Tensor], batch: int) -> None:
        self.batch, self.tensors, self.offsets = batch, tensors, dict[str, int]()
        self.nbytes = 0
        for tensor in self.tensors:
            self.offsets[tensor.name] = self.nbytes
            self.nbytes += math.ceil(tensor.nbytes / ALIGNMENT) * ALIGNMENT

    def arrays(self, memory: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the tensors in a piece of host memory, as views of that memory."""
        return {
            tensor.name: memory[self.offsets[tensor.name] :][: tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
            for tensor in self.tensors
        }


class Block:
    """GPU memory of one state, and the addresses of its tensors."""

    __slots__ = ("addresses", "layout", "memory")

    def __init__(self, layout: Layout, memory: Memory) -> None:
        self.layout, self.memory = layout, memory
        base = int(memory.handle)
        self.addresses = {name: base + offset for name, offset in layout.offsets.items()}


class DeviceState:
    """State of one or more streams on the GPU.

    The state may be moved to other memory, which does not change its value. Its memory is reused once the state is
    unreferenced.
    """

    __slots__ = ("__weakref__", "_lease", "block")

    def __init__(self, block: Block, lender: Cuda | None) -> None:
        self.block = block
        self._lease = None if lender is None else lender.lease(self, block.memory)

    @property
    def batch(self) -> int:
        """Number of streams."""
        return self.block.layout.batch

    def move(self, block: Block, lender: Cuda) -> None:
        """Record that the state is now in `block`, whose memory returns to `lender` when the state is freed."""
        self.block, self._lease = block, lender.lease(self, block.memory)


class StateSets:
    """States of one batch size, with the two sets that steps read and write.

    Args:
        layout: layout of a state outside the two sets.
        in_set: layout of a state in one of the two sets.
    """

    def __init__(self, cuda: Cuda, layout: Layout, in_set: Layout) -> None:
        self.cuda, self.layout = cuda, layout
        self.sets = tuple(Block(in_set, cuda.allocate(in_set.nbytes)) for _ in range(2))
        self.holders: list[weakref.ref[DeviceState] | None] = [None, None]
        """Weak reference to the state that each set contains; None if a set contains no state."""

    def addresses(self, side: int) -> dict[str, int]:
        """Return the addresses of the tensors that a step reads from set `side` and writes to the other set."""
        following = self.sets[1 - side].addresses
        return self.sets[side].addresses | {contract.NEXT + name: address for name, address in following.items()}

    def enter(self, state: DeviceState) -> int:
        """Make sure that a state is in one of the sets and that the other set may be overwritten.

        Returns:
            The set that contains the state, 0 or 1.

        Raises:
            CudaError: the GPU has no memory for a state that has to be moved out of a set; no state has changed.
        """
        side = 1 if state.block is self.sets[1] else 0
        if state.block is not self.sets[side]:
            self._vacate(side)
            self.cuda.copy(self.sets[side].memory, state.block.memory)
        self._vacate(1 - side)
        return side

    def written(self, side: int) -> DeviceState:
        """Return the state that a step has written to set `side`."""
        state = DeviceState(self.sets[side], None)
        self.holders[side] = weakref.ref(state)
        return state

    def _vacate(self, side: int) -> None:
        holder = self.holders[side]
        state = holder() if holder is not None else None
        if state is not None:
            block = self._block()
            self._copy_out(side, state, block.memory)
            state.move(block, self.cuda)
        self.holders[side] = None

    def _copy_out(self, side: int, state: DeviceState, to: Memory) -> None:
        """Copy the state in set `side` to memory outside the sets."""
        self.cuda.copy(to, self.sets[side].memory)

    def _block(self) -> Block:
        return Block(self.layout, self.cuda.lend(self.layout.nbytes))

    @cached_property
    def _staging(self) -> tuple[Memory, NDArray[np.uint8]]:
        """Page-locked host memory, allocated when a state is first copied to or from the host."""
        return self.cuda.allocate_pinned(self.layout.nbytes)

    def new(self) -> DeviceState:
        """Return an uninitialised state outside the sets."""
        return DeviceState(self._block(), self.cuda)

    def initial(self) -> DeviceState:
        """Return the state before the first frame, with the values of `contract.States.initial`."""
        state = self.new()
        self.cuda.fill(state.block.memory, 0)
        for tensor in self.layout.tensors:
            if tensor.initial:
                memory = self.cuda.part(state.block.memory, self.layout.offsets[tensor.name], tensor.nbytes)
                self.cuda.fill(memory, np.array(tensor.initial, tensor.dtype).tobytes())
        return state

    def gather(self, rows: Sequence[tuple[DeviceState, int]]) -> DeviceState:
        """Return a new state whose row i is a copy of row `rows[i][1]` of the state `rows[i][0]`."""
        state = self.new()
        for first, source, number, count in _runs(rows):
            for tensor in self.layout.tensors:
                nbytes, layout = tensor.nbytes // self.layout.batch, source.block.layout
                there, here = layout.offsets[tensor.name], self.layout.offsets[tensor.name]
                self.cuda.copy(
                    self.cuda.part(state.block.memory, here + first * nbytes, count * nbytes),
                    self.cuda.part(source.block.memory, there + number * nbytes, count * nbytes),
                )
        return state

    def read(self, state: DeviceState) -> dict[str, NDArray[Any]]:
        """Return a copy of a state on the host, by tensor name."""
        staging, host = self._staging
        self.cuda.copy(staging, state.block.memory)
        self.cuda.synchronise()
        return {name: array.copy() for name, array in self.layout.arrays(host).items()}

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> DeviceState:
        """Return a new state with the values of these arrays."""
        state, (staging, host) = self.new(), self._staging
        for name, array in self.layout.arrays(host).items():
            array[:] = arrays[name]
        self.cuda.copy(state.block.memory, staging)
        self.cuda.synchronise()  # The copy must be complete before the staging memory is reused.
        return state


def _runs(rows: Sequence[tuple[DeviceState, int]]) -> Iterator[tuple[int, DeviceState, int, int]]:
    """Group `rows` into runs that can be copied at once.

    Yields:
        For each run: its first row in the result, its source state, its first row in the source, its number of rows.
    """
    first = 0
    for end in range(1, len(rows) + 1):
        source, number = rows[first]
        if end == len(rows) or rows[end][0] is not source or rows[end][1] != number + end - first:
            yield first, source, number, end - first
            first = end
