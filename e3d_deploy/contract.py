"""Names, shapes and data types of the inputs and outputs of the graphs, derived from a ModelConfig."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.config import ModelConfig

DType = Literal["float32", "int32", "float16", "bfloat16"]
"""Data types of tensors; inputs and outputs of the graphs are float32 or int32."""

FRAME, PREDICTION = "frame", "prediction"
"""Input and output of the step graph, float32 [B, C, H, W]."""
CONTEXT, FORECAST = "context", "forecast"
"""Input [B, L, C, H, W] and output [B, horizon, C, H, W] of the clip graph."""
ANY = "batch"
"""Name of the batch axis in graphs that accept any number of streams."""
NEXT = "next_"
"""Prefix of the states that a graph returns. Input and output states have the same order when they are sorted by name;
some servers pair them by this order."""
EMPTY_BIAS = -60.0
"""Bias on the attention scores of an empty slot. It replaces minus infinity, which is slow on some processors.

The bias is large enough. An empty slot contains zeros, so its scores are exactly 0 before the bias, in every data type
and quantisation, and it adds exactly 0 to the sum of values. While a slot is empty, the initial zero state is still in
the ring with a score of 0, so the largest score is at least 0 and the denominator of the softmax is at least 1. An
empty slot adds at most e^-60 = 8.8e-27 per position to the denominator, and 10,240 positions (K = 20, D·h·w = 512) add
at most 9e-23. Half an ulp of 1 is 6e-8 in float32, 5e-4 in float16 and 4e-3 in bfloat16, so the denominator does not
change, in any order of summation, if no real score is below -42: half an ulp of e^-42 is still more than e^-60. With
lower scores, the exact denominator changes by one part in 1e22. The graphs of all policies compute the softmax in
float32. After the softmax, the weight of an empty slot becomes 0 in float16, int8 and fp8; in the other types it is
multiplied by zeros.

The bias must not be much lower. If bias - largest score is below -87.3, the weights are subnormal numbers, which are as
slow as minus infinity. The largest scores measured are 24 with a small trained model, and 33 at full size with random
weights.
"""


@dataclass(frozen=True, kw_only=True)
class Ring:
    """Ring of past entries along axis 1 of a state; entry e is stored in slot e mod `slots`.

    Slot s is empty, and contains zeros, while s >= counter. Each frame adds one entry and increments the counter. The
    counter goes back from 2·slots to slots, so that it never overflows.
    """

    slots: int
    """Number of slots, K."""
    counter: str
    """Name of the state, int32 [B], that counts the entries written."""
    frames_to_fill: int
    """Number of frames after which no slot is empty."""


@dataclass(frozen=True)
class Tensor:
    """Input or output of a graph."""

    name: str
    shape: tuple[int, ...]
    dtype: DType = "float32"
    initial: int = 0
    """Value of all elements before the first frame; for states only."""
    ring: Ring | None = None
    """Ring along axis 1; None for tensors without a ring."""

    @property
    def nbytes(self) -> int:
        """Size in memory (bytes)."""
        return math.prod(self.shape) * (2 if self.dtype in ("float16", "bfloat16") else 4)


@dataclass(frozen=True)
class States:
    """Tensors that make up the state of a stream, for code that does not know the network."""

    tensors: tuple[Tensor, ...]
    """Tensors of one stream, [1, …], sorted by name."""

    def of(self, batch: int) -> tuple[Tensor, ...]:
        """Return the tensors of `batch` streams."""
        return tuple(replace(tensor, shape=(batch, *tensor.shape[1:])) for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Memory of the state of one stream (bytes)."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def slots(self) -> int:
        """Number of slots of the longest ring; 0 without rings."""
        return max((tensor.ring.slots for tensor in self.tensors if tensor.ring is not None), default=0)

    @property
    def frames_to_fill(self) -> int:
        """Number of frames after which no ring has an empty slot; 0 without rings."""
        return max((tensor.ring.frames_to_fill for tensor in self.tensors if tensor.ring is not None), default=0)

    def initial(self, batch: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of `batch` streams before the first frame."""
        arrays = {one.name: np.zeros(one.shape, one.dtype) for one in self.of(batch)}
        for one in self.tensors:
            if one.initial:
                arrays[one.name][:] = one.initial
        return arrays

    def zeros_after(self, frames: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of a stream with rings as full as after `frames` frames; all entries are zeros."""
        arrays, first = self.initial(1), {tensor.name: tensor.initial for tensor in self.tensors}
        for ring in (tensor.ring for tensor in self.tensors if tensor.ring is not None):
            arrays[ring.counter][:] = written_after(frames, ring.slots, first=first[ring.counter])
        return arrays

    def count(self, arrays: Mapping[str, NDArray[Any]]) -> int:
        """Return the number of streams in the arrays of a state."""
        return len(arrays[self.tensors[0].name])

    def with_empty_slots_zeroed(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return a state with zeros in the empty slots of its rings; the given arrays are not changed."""
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
        """Describe the first array that does not match the tensors of one stream; None if all match."""
        expected = {one.name: (one.dtype, one.shape) for one in self.tensors}
        found = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
        odd = next((name for name in {**expected, **found} if found.get(name) != expected.get(name)), None)
        return None if odd is None else f"{odd}: got {_text(found.get(odd))}, expected {_text(expected.get(odd))}"


def _text(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "no such state" if tensor is None else f"{tensor[0]} {list(tensor[1])}"


def states_of(config: ModelConfig) -> States:
    """Derive the tensors of the state from a config, for bundles whose manifest does not describe the state."""
    return States(states(config))


def states(config: ModelConfig, batch: int = 1) -> tuple[Tensor, ...]:
    """Return the tensors that make up the state of `batch` streams, sorted by name.

    `hidden.l`, `cell.l` [B, N, D, h, w]; `history.l` [B, K, D·h·w, N], a ring of K past cells in the layout
    that the attention reads; `written` [B], the number of cells written to the rings;
    `memory` [B, N, D, h, w]; `window` [B, P, D − 1, h, w], the last patched frames.

    Empty slots must contain zeros, because `EMPTY_BIAS` hides only zeros; `States.with_empty_slots_zeroed` sets them.
    """
    D, grid, K = config.window_length, config.grid_size, config.history_length
    ring = Ring(slots=K, counter="written", frames_to_fill=K - 1)  # the initial zero state is an entry
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
    """Return a frame as an input or output of the graphs."""
    return Tensor(name, (batch, config.channels, *config.image_size))


def clip(config: ModelConfig, length: int, name: str, batch: int = 1) -> Tensor:
    """Return a clip of `length` frames as an input or output of the clip graph."""
    return Tensor(name, (batch, length, config.channels, *config.image_size))


def written_after(steps: int, history_length: int, *, first: int = 1) -> int:
    """Return the counter of a ring with K slots after `steps` steps. The counter starts at `first`; instead of 2K it
    becomes K."""
    written = steps + first
    return written if written < 2 * history_length else history_length + written % history_length


def slots(written: int, history_length: int) -> list[int]:
    """Return the slots of the ring from the oldest to the newest entry."""
    return [entry % history_length for entry in range(max(0, written - history_length), written)]
