"""States on a GPU whose two sets share their rings of past cell states.

In `device_states` each set has its own rings, so a step copies all K slots of a ring to change one. Here, a step
overwrites the oldest slot of the shared rings, after the former content of that slot has been saved in the set that the
step reads. The shared rings are therefore those of the latest state. The rings of the state before it differ only in
that slot, which can be restored.
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import StreamError
from e3d_deploy.runtime.backends.cuda import Cuda, Memory
from e3d_deploy.runtime.backends.device_states import Block, DeviceState, Layout, StateSets
from e3d_deploy.runtime.backends.torch_settings import OwnSettings


class RingState(DeviceState):
    """State of one or more streams, with a host copy of its counters."""

    __slots__ = ("owner", "written")

    def __init__(self, block: Block, lender: Cuda | None, owner: "RingStates", written: NDArray[np.int32]) -> None:
        super().__init__(block, lender)
        self.owner = owner
        """Object whose sets may contain this state."""
        self.written = written
        """Counters of the rings, [B]: a host copy of the tensor `written` of `contract.states`."""


class RingStates(StateSets):
    """States of `batch` streams, in two sets that share their rings.

    Args:
        dtype: type of the rings, equal to the type of the matrix products that read the rings. Host copies of the rings
            are always float32.
    """

    def __init__(self, cuda: Cuda, config: ModelConfig, batch: int, dtype: contract.DType = "float32") -> None:
        tensors = contract.states(config, batch)
        rings = [replace(tensor, dtype=dtype) for tensor in tensors if tensor.ring is not None]
        others = [tensor for tensor in tensors if tensor.ring is None]
        slots = [replace(ring, shape=(batch, *ring.shape[2:])) for ring in rings]
        self.in_set = Layout([*others, *slots], batch)
        """Layout of a set: instead of each ring it has one slot, saved before a step overwrites that slot."""
        # The rings come last, so that they are contiguous.
        super().__init__(cuda, Layout([*others, *rings], batch), self.in_set)
        self.history_length, self.others_nbytes = config.history_length, self.layout.offsets[rings[0].name]
        self.rings = Block(Layout(rings, batch), cuda.allocate(self.layout.nbytes - self.others_nbytes))
        """Memory of the shared rings."""
        self.latest = 0
        """Set that contains the latest state, 0 or 1: the shared rings are the rings of this state."""
        self.entered = np.ones(batch, np.int32)
        """Counters `written` of the state that was passed to `enter` last, [B]."""

    @property
    def full(self) -> bool:
        """True if every ring of the state that was passed to `enter` last is full."""
        return bool((self.entered >= self.history_length).all())

    def addresses(self, side: int) -> dict[str, int]:
        """Return addresses as the base class does, with the shared rings.

        For a ring, the `next_` address is that of the saved slot in set `side`.
        """
        read = self.sets[side].addresses | self.rings.addresses
        slots = {name: self.sets[side].addresses[name] for name in self.rings.addresses}
        written = self.sets[1 - side].addresses | slots
        return read | {contract.NEXT + name: address for name, address in written.items()}

    def enter(self, state: DeviceState) -> int:
        assert isinstance(state, RingState)
        self._check(state)
        for side in (0, 1):
            if state.block is not self.sets[side]:
                self._vacate(side)
        if state.block in self.sets:
            side = self.sets.index(state.block)
            if side != self.latest:
                self._put_back(side, state.written, self.rings.memory, 0)
        else:
            side = 0
            others, rings = self._parts(state.block.memory)
            self.cuda.copy(self.cuda.part(self.sets[side].memory, 0, self.others_nbytes), others)
            self.cuda.copy(self.rings.memory, rings)
        self.latest, self.entered = side, state.written
        return side

    def begin(self, side: int) -> None:
        """Record that a step from set `side` may be changing the shared rings; its slots have been saved.

        From now on the state in set `side` counts as the one before the latest, even if the step fails: restoring slots
        that were not overwritten changes nothing.
        """
        self.latest = 1 - side

    def written(self, side: int) -> RingState:
        more, K = self.entered + 1, self.history_length
        state = RingState(self.sets[side], None, self, np.where(more >= 2 * K, more - K, more))
        self.holders[side] = weakref.ref(state)
        return state

    def new(self) -> RingState:
        return RingState(self._block(), self.cuda, self, np.ones(self.layout.batch, np.int32))

    def gather(self, rows: Sequence[tuple[DeviceState, int]]) -> DeviceState:
        for source, _ in rows:
            assert isinstance(source, RingState)
            self._check(source)
            source.owner.move_out(source)
        state = super().gather(rows)
        assert isinstance(state, RingState)
        state.written = np.array([source.written[row] for source, row in rows], np.int32)  # type: ignore[attr-defined]
        return state

    def _check(self, state: RingState) -> None:
        if state.owner.cuda is not self.cuda:
            raise StreamError("state: belongs to another backend; convert it with to_arrays and from_arrays")

    def move_out(self, state: RingState) -> None:
        """Move a state out of the sets to separate memory, unless it is there already."""
        if state.block in self.sets:
            self._vacate(self.sets.index(state.block))

    def _copy_out(self, side: int, state: DeviceState, to: Memory) -> None:
        assert isinstance(state, RingState)
        others, rings = self._parts(to)
        self.cuda.copy(others, self.cuda.part(self.sets[side].memory, 0, self.others_nbytes))
        self.cuda.copy(rings, self.rings.memory)
        if side != self.latest:
            self._put_back(side, state.written, to, self.others_nbytes)

    def _put_back(self, side: int, written: NDArray[np.int32], memory: Memory, offset: int) -> None:
        """Restore the slots saved in set `side` to the rings in `memory`.

        Args:
            written: counters of the state in the set, [B].
            offset: position of the first ring in `memory` (bytes).
        """
        K = self.history_length
        for ring in self.rings.layout.tensors:
            nbytes = ring.nbytes // (self.layout.batch * K)
            here, there = self.in_set.offsets[ring.name], offset + self.rings.layout.offsets[ring.name]
            for stream, slot in enumerate((written % K).tolist()):
                self.cuda.copy(
                    self.cuda.part(memory, there + (stream * K + slot) * nbytes, nbytes),
                    self.cuda.part(self.sets[side].memory, here + stream * nbytes, nbytes),
                )

    def _parts(self, memory: Memory) -> tuple[Memory, Memory]:
        """Split the memory of a whole state into the memory of all other tensors and the memory of the rings."""
        first = self.others_nbytes
        return self.cuda.part(memory, 0, first), self.cuda.part(memory, first, self.layout.nbytes - first)

    def read(self, state: DeviceState) -> dict[str, NDArray[Any]]:
        assert isinstance(state, RingState)
        staging, host = self._staging
        if state.block in self.sets:
            self._copy_out(self.sets.index(state.block), state, staging)
        else:
            self.cuda.copy(staging, state.block.memory)
        self.cuda.synchronise()
        with OwnSettings():
            tensors = self._on_host(host)
            return {name: tensor.to(_wide(tensor.dtype), copy=True).numpy() for name, tensor in tensors.items()}

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> RingState:
        state, (staging, host) = self.new(), self._staging
        with OwnSettings():
            for name, tensor in self._on_host(host).items():
                tensor.copy_(torch.from_numpy(np.array(arrays[name])))
        self.cuda.copy(state.block.memory, staging)
        self.cuda.synchronise()  # The copy must be complete before the staging memory is reused.
        state.written = arrays["written"].copy()
        return state

    def _on_host(self, memory: NDArray[np.uint8]) -> dict[str, torch.Tensor]:
        """Return the tensors of a whole state in host memory, as views of that memory."""
        found, bytes_ = {}, torch.from_numpy(memory)
        for tensor in self.layout.tensors:
            part = bytes_[self.layout.offsets[tensor.name] :][: tensor.nbytes]
            found[tensor.name] = part.view(getattr(torch, tensor.dtype)).view(tensor.shape)
        return found


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.int32 if dtype == torch.int32 else torch.float32
