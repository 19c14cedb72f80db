"""Names, shapes and types of the tensors that go in and out of the graphs, worked out from a ModelConfig."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.config import ModelConfig

DType = Literal["float32", "int32", "float16", "bfloat16"]
"""Types of tensors; inputs and outputs of the graphs have the first two only."""

FRAME, PREDICTION = "frame", "prediction"
"""Input and output of the step graph, float32 [B, C, H, W]."""
CONTEXT, FORECAST = "context", "forecast"
"""Input [B, L, C, H, W] and output [B, horizon, C, H, W] of the clip graph."""
ANY = "batch"
"""Name of the axis of streams in graphs that take any number of them."""
NEXT = "next_"
"""Prefix of a state that a graph gives back. Sorted by name, states in and states out are in the same
order, which servers that pair them by order rely on."""
EMPTY_BIAS = -60.0
"""Bias on the scores of an empty slot, in the place of minus infinity, which some processors compute with slowly.

An empty slot holds zeros. So its scores are exactly 0 before the bias, in every type and quantisation, and it adds
exactly 0 to the sum of values. While a slot is empty, the zero state of the start is still in the ring with a score
of 0, so the largest score is at least 0 and the denominator of the softmax at least 1. To that an empty slot adds at
most e^-60 = 8.8e-27 a position, and 10,240 positions (K = 20, D·h·w = 512) at most 9e-23. Half an ulp of 1 is 6e-8 in
float32, 5e-4 in float16 and 4e-3 in bfloat16, so the sum stays the same to the last bit, in whatever order it is
added up as long as no real score is below -42: half an ulp of e^-42 is still more than e^-60. Below, the exact
denominator changes by a part in 1e22. The graphs of all policies compute the softmax in float32; behind it the weight
of an empty slot becomes 0 in float16, int8 and fp8, and in the others it is multiplied by zeros.

It must not be much lower: a weight is a subnormal number, and as slow as minus infinity, where bias - largest score is
below -87.3. Largest scores that were measured: 24 with the former demo model, 33 at full size with random weights.
"""


@dataclass(frozen=True, kw_only=True)
class Ring:
    """Ring of past entries along axis 1 of a state; entry e lies in slot e mod `slots`.

    A slot s is empty, and holds zeros, while s >= the counter. Each frame adds one entry and 1 to the counter, which
    goes back from 2·slots to slots, so that it never overflows.
    """

    slots: int
    """Number of slots, K."""
    counter: str
    """Name of the state, int32 [B], that counts the entries written."""
    frames_to_fill: int
    """Frames after which no slot is empty."""


@dataclass(frozen=True)
class Tensor:
    """One input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: DType = "float32"
    initial: int = 0
    """Value of all elements before the first frame, if it is a state."""
    ring: Ring | None = None
    """Use of axis 1, if it is a state with a ring."""

    @property
    def nbytes(self) -> int:
        """Size in memory (bytes)."""
        return math.prod(self.shape) * (2 if self.dtype in ("float16", "bfloat16") else 4)


@dataclass(frozen=True)
class States:
    """State of a stream as its tensors describe it, for whoever does not know the network."""

    tensors: tuple[Tensor, ...]
    """Tensors of one stream, [1, …], in the order of their names."""

    def of(self, batch: int) -> tuple[Tensor, ...]:
        """Return the tensors of so many streams."""
        return tuple(replace(tensor, shape=(batch, *tensor.shape[1:])) for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Memory of one stream (bytes)."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def slots(self) -> int:
        """Slots of the longest ring; 0 if there is none."""
        return max((tensor.ring.slots for tensor in self.tensors if tensor.ring is not None), default=0)

    @property
    def frames_to_fill(self) -> int:
        """Frames after which no ring has an empty slot; 0 if there is none."""
        return max((tensor.ring.frames_to_fill for tensor in self.tensors if tensor.ring is not None), default=0)

    def initial(self, batch: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of so many streams before the first frame."""
        arrays = {one.name: np.zeros(one.shape, one.dtype) for one in self.of(batch)}
        for one in self.tensors:
            if one.initial:
                arrays[one.name][:] = one.initial
        return arrays

    def grown(self, frames: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of a stream whose rings are as full as after so many frames, with zeros for content."""
        arrays, first = self.initial(1), {tensor.name: tensor.initial for tensor in self.tensors}
        for ring in (tensor.ring for tensor in self.tensors if tensor.ring is not None):
            arrays[ring.counter][:] = written_after(frames, ring.slots, first=first[ring.counter])
        return arrays

    def count(self, arrays: Mapping[str, NDArray[Any]]) -> int:
        """Return the number of streams of some arrays."""
        return len(arrays[self.tensors[0].name])

    def cleared(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return a state with zeros in the empty slots of its rings; the arrays stay as they are."""
        result = dict(arrays)
        for name, ring in ((tensor.name, tensor.ring) for tensor in self.tensors):
            if ring is None:
                continue
            array = arrays[name]
            empty = np.arange(ring.slots) >= arrays[ring.counter][:, None]  # [B, K]
            if empty.any():
                hidden = empty.reshape(*empty.shape, *(1 for _ in array.shape[2:]))
                result[name] = np.where(hidden, array.dtype.type(0), array)
        return result

    def difference(self, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        """Return how arrays differ from the tensors of one stream in names, shapes or types; None if they do not."""
        expected = {one.name: (one.dtype, one.shape) for one in self.tensors}
        found = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
        odd = next((name for name in {**expected, **found} if found.get(name) != expected.get(name)), None)
        return None if odd is None else f"{odd}: got {_form(found.get(odd))}, expected {_form(expected.get(odd))}"


def _form(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "no such state" if tensor is None else f"{tensor[0]} {list(tensor[1])}"


def states_of(config: ModelConfig) -> States:
    """Return the states of a network, for bundles whose manifest does not describe them."""
    return States(states(config))


def states(config: ModelConfig, batch: int = 1) -> tuple[Tensor, ...]:
    """Return the state of so many streams of a network, in the order of the names.

    `hidden.l`, `cell.l` [B, N, D, h, w]; `history.l` [B, K, D·h·w, N], a ring of K past cells laid out
    as the attention reads them; `written` [B], which counts the cells in the rings;
    `memory` [B, N, D, h, w]; `window` [B, P, D − 1, h, w], the last patched frames.

    Empty slots hold zeros: `EMPTY_BIAS` hides nothing else. Make a state from arrays with `States.cleared`.
    """
    D, grid, K = config.window_length, config.grid_size, config.history_length
    ring = Ring(slots=K, counter="written", frames_to_fill=K - 1)  # the zero state at the start is an entry
    tensors = [
        Tensor("memory", (batch, config.hidden[-1], D, *grid)),
        Tensor("window", (batch, config.patch_channels, D - 1, *grid)),
        Tensor("written", (batch,), "int32", initial=1),
    ]
    for layer, N in enumerate(config.hidden):
        tensors += [
            Tensor(f"hidden.{layer}", (batch, N, D, *grid)),
            Tensor(f"cell.{layer}", (batch, N, D, *grid)),
            Tensor(f"history.{layer}", (batch, K, config.positions, N), ring=ring),
        ]
    return tuple(sorted(tensors, key=lambda tensor: tensor.name))


def frame(config: ModelConfig, batch: int = 1, name: str = FRAME) -> Tensor:
    """Return a frame as the graphs take and give it."""
    return Tensor(name, (batch, config.channels, *config.image_size))


def clip(config: ModelConfig, length: int, name: str, batch: int = 1) -> Tensor:
    """Return `length` frames as the clip graph takes and gives them."""
    return Tensor(name, (batch, length, config.channels, *config.image_size))


def written_after(steps: int, history_length: int, *, first: int = 1) -> int:
    """Return the counter of a ring of K slots after so many steps: `first` at the start, back to K at 2K."""
    written = steps + first
    return written if written < 2 * history_length else history_length + written % history_length


def slots(written: int, history_length: int) -> list[int]:
    """Return the slots of the ring in the order in which they were written, oldest first."""
    return [entry % history_length for entry in range(max(0, written - history_length), written)]
