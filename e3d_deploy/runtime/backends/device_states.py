"""States on a GPU, for backends whose steps run as captured graphs.

A captured graph reads and writes fixed addresses. So there are two sets of states, and two graphs: one reads the first
set and writes the second, the other the reverse. A stream that is stepped again and again goes to and fro between them
and nothing is copied. Yet a state is a value: when a step is about to write a set whose state is still held, as during
a forecast, that state moves to memory of its own first; and a state that is in neither set is copied into one. A step
never reads what it writes.
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
"""Alignment of each tensor (bytes), like that of memory from CUDA."""


class Layout:
    """Offsets of the tensors of a state in one piece of memory.

    Args:
        tensors: in their order in memory, each for `batch` streams.
    """

    def __init__(self, tensors: Sequence[contract.Tensor], batch: int) -> None:
        self.batch, self.tensors, self.offsets = batch, tensors, dict[str, int]()
        self.nbytes = 0
        for tensor in self.tensors:
            self.offsets[tensor.name] = self.nbytes
            self.nbytes += math.ceil(tensor.nbytes / ALIGNMENT) * ALIGNMENT

    def arrays(self, memory: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the tensors in a piece of host memory, as views of it."""
        return {
            tensor.name: memory[self.offsets[tensor.name] :][: tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
            for tensor in self.tensors
        }


class Block:
    """Memory of one state."""

    __slots__ = ("addresses", "layout", "memory")

    def __init__(self, layout: Layout, memory: Memory) -> None:
        self.layout, self.memory = layout, memory
        base = int(memory.handle)
        self.addresses = {name: base + offset for name, offset in layout.offsets.items()}


class DeviceState:
    """State of one or more streams on the GPU.

    Its value stays the same wherever it is moved; its memory is used again when it is no longer held.
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
        """Record that its content is now in a block of its own, which `lender` takes back at the end."""
        self.block, self._lease = block, lender.lease(self, block.memory)


class StateSets:
    """States of one number of streams, with the two sets that steps read and write.

    Args:
        layout: layout of a state in memory of its own.
        in_set: layout of a state in one of the two sets.
    """

    def __init__(self, cuda: Cuda, layout: Layout, in_set: Layout) -> None:
        self.cuda, self.layout = cuda, layout
        self.sets = tuple(Block(in_set, cuda.allocate(in_set.nbytes)) for _ in range(2))
        self.holders: list[weakref.ref[DeviceState] | None] = [None, None]
        """State whose content is in each set, as long as it is held."""

    def addresses(self, side: int) -> dict[str, int]:
        """Return the addresses of the states that a step reads from a set, and of those it writes into the other."""
        following = self.sets[1 - side].addresses
        return self.sets[side].addresses | {contract.NEXT + name: address for name, address in following.items()}

    def enter(self, state: DeviceState) -> int:
        """Bring a state into one of the sets, and free the other to be written.

        Returns:
            The set that it is in.

        Raises:
            CudaError: there is no memory for what has to move; all states are as before.
        """
        side = 1 if state.block is self.sets[1] else 0
        if state.block is not self.sets[side]:
            self._vacate(side)
            self.cuda.copy(self.sets[side].memory, state.block.memory)
        self._vacate(1 - side)
        return side

    def written(self, side: int) -> DeviceState:
        """Return the state that a step has written into a set."""
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
        """Copy the state in a set to memory of its own."""
        self.cuda.copy(to, self.sets[side].memory)

    def _block(self) -> Block:
        return Block(self.layout, self.cuda.lend(self.layout.nbytes))

    @cached_property
    def _staging(self) -> tuple[Memory, NDArray[np.uint8]]:
        """Page-locked host memory, allocated when a state first leaves or enters the GPU."""
        return self.cuda.allocate_pinned(self.layout.nbytes)

    def new(self) -> DeviceState:
        """Return a state in a block of its own, to be written."""
        return DeviceState(self._block(), self.cuda)

    def initial(self) -> DeviceState:
        """Return the state before the first frame, equal to `contract.States.initial`."""
        state = self.new()
        self.cuda.fill(state.block.memory, 0)
        for tensor in self.layout.tensors:
            if tensor.initial:
                memory = self.cuda.part(state.block.memory, self.layout.offsets[tensor.name], tensor.nbytes)
                self.cuda.fill(memory, np.array(tensor.initial, tensor.dtype).tobytes())
        return state

    def gather(self, rows: Sequence[tuple[DeviceState, int]]) -> DeviceState:
        """Return a state whose stream i is the stream `rows[i][1]` of the state `rows[i][0]`."""
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
        """Copy a state to the host."""
        staging, host = self._staging
        self.cuda.copy(staging, state.block.memory)
        self.cuda.synchronise()
        return {name: array.copy() for name, array in self.layout.arrays(host).items()}

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> DeviceState:
        """Return a new state with the content of these arrays."""
        state, (staging, host) = self.new(), self._staging
        for name, array in self.layout.arrays(host).items():
            array[:] = arrays[name]
        self.cuda.copy(state.block.memory, staging)
        self.cuda.synchronise()  # before the host's memory is used again
        return state


def _runs(rows: Sequence[tuple[DeviceState, int]]) -> Iterator[tuple[int, DeviceState, int, int]]:
    """Yield runs of adjacent rows: place of the first row, source state, first stream in the source, and count."""
    first = 0
    for end in range(1, len(rows) + 1):
        source, number = rows[first]
        if end == len(rows) or rows[end][0] is not source or rows[end][1] != number + end - first:
            yield first, source, number, end - first
            first = end
