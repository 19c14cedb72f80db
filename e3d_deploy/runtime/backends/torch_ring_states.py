"""States on a GPU whose two sets share their rings of past cells.

The sets of `device_states` have a ring each, so that a step copies all K slots to change one. Here a step overwrites
the oldest slot of the shared rings, and keeps its former content in the set that it read. So the rings are those of
the latest state; those of the state before it differ in that one slot, which can be put back.
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
    """The state of a few streams, with what the host knows of it."""

    __slots__ = ("owner", "written")

    def __init__(self, block: Block, lender: Cuda | None, owner: "RingStates", written: NDArray[np.int32]) -> None:
        super().__init__(block, lender)
        self.owner = owner
        """Owner of the sets that may hold this state."""
        self.written = written
        """The state `written` of `contract.states`, [B]."""


class RingStates(StateSets):
    """The states of so many streams, in two sets with rings in common.

    Args:
        dtype: type of the rings, that of the products that read them. Arrays on the host are float32 in any case.
    """

    def __init__(self, cuda: Cuda, config: ModelConfig, batch: int, dtype: contract.DType = "float32") -> None:
        tensors = contract.states(config, batch)
        rings = [replace(tensor, dtype=dtype) for tensor in tensors if tensor.ring is not None]
        others = [tensor for tensor in tensors if tensor.ring is None]
        slots = [replace(ring, shape=(batch, *ring.shape[2:])) for ring in rings]
        self.in_set = Layout([*others, *slots], batch)
        """Layout of a set: in the place of each ring the slot that the next step overwrites."""
        super().__init__(cuda, Layout([*others, *rings], batch), self.in_set)  # rings last, so that they are one piece
        self.history_length, self.others_nbytes = config.history_length, self.layout.offsets[rings[0].name]
        self.rings = Block(Layout(rings, batch), cuda.allocate(self.layout.nbytes - self.others_nbytes))
        """The shared rings."""
        self.latest = 0
        """The set whose rings are the shared ones."""
        self.entered = np.ones(batch, np.int32)
        """`written` of the state that was entered last."""

    @property
    def full(self) -> bool:
        """Every ring of the state that was entered last is full."""
        return bool((self.entered >= self.history_length).all())

    def addresses(self, side: int) -> dict[str, int]:
        """Return addresses like the base class; the next rings are the slots that are overwritten, in the set read."""
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
        """Note that a step from a set may have changed the shared rings, after the slots were saved.

        The set is then the one before the latest, whatever becomes of the step: putting back slots that were not
        overwritten changes nothing.
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
            raise StreamError("state: of another backend; take it over with to_arrays and from_arrays")

    def move_out(self, state: RingState) -> None:
        """Give a state memory of its own, unless it already has some."""
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
        """Put the slots that a set keeps back into rings that lie in memory from an offset on (bytes)."""
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
        """Divide memory of the whole layout into that of the other states and that of the rings."""
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
        self.cuda.synchronise()  # before the host's memory is used again
        state.written = arrays["written"].copy()
        return state

    def _on_host(self, memory: NDArray[np.uint8]) -> dict[str, torch.Tensor]:
        """Return the tensors of the whole layout in memory of the host."""
        found, bytes_ = {}, torch.from_numpy(memory)
        for tensor in self.layout.tensors:
            part = bytes_[self.layout.offsets[tensor.name] :][: tensor.nbytes]
            found[tensor.name] = part.view(getattr(torch, tensor.dtype)).view(tensor.shape)
        return found


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.int32 if dtype == torch.int32 else torch.float32
