"""Names, shapes and types of the tensors that go in and out of the graphs, worked out from a ModelConfig."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
below -87.3. Largest scores that were measured: 24 with the demo model, 33 at full size with random weights.
"""


@dataclass(frozen=True)
class Tensor:
    """One input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: DType = "float32"

    @property
    def nbytes(self) -> int:
        """Size in memory (bytes)."""
        return math.prod(self.shape) * (2 if self.dtype in ("float16", "bfloat16") else 4)


def states(config: ModelConfig, batch: int = 1) -> tuple[Tensor, ...]:
    """The state of a stream, in the order of its names.

    `hidden.l`, `cell.l` [B, N, D, h, w]; `history.l` [B, K, D·h·w, N], a ring of K past cells laid out
    as the attention reads them; `written` [B], how many cells a stream has written into its rings;
    `memory` [B, N, D, h, w]; `window` [B, P, D − 1, h, w], the last patched frames.

    A ring slot s is empty while s >= written, and the next cell goes to slot written mod K. The zero
    state at the start is a real entry, so `written` begins at 1. At 2K it goes back to K, so that it
    never overflows. Empty slots hold zeros: `EMPTY_BIAS` hides nothing else. Who makes a state from
    arrays clears them with `cleared`.
    """
    D, grid, K = config.window_length, config.grid_size, config.history_length
    tensors = [
        Tensor("memory", (batch, config.hidden[-1], D, *grid)),
        Tensor("window", (batch, config.patch_channels, D - 1, *grid)),
        Tensor("written", (batch,), "int32"),
    ]
    for layer, N in enumerate(config.hidden):
        tensors += [
            Tensor(f"hidden.{layer}", (batch, N, D, *grid)),
            Tensor(f"cell.{layer}", (batch, N, D, *grid)),
            Tensor(f"history.{layer}", (batch, K, config.positions, N)),
        ]
    return tuple(sorted(tensors, key=lambda tensor: tensor.name))


def cleared(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return a state with zeros in the empty slots of its rings; the arrays stay as they are."""
    result = dict(arrays)
    for name, ring in arrays.items():
        if name.startswith("history."):
            empty = np.arange(ring.shape[1]) >= arrays["written"][:, None]  # [B, K]
            if empty.any():
                result[name] = np.where(empty[:, :, None, None], ring.dtype.type(0), ring)
    return result


def frame(config: ModelConfig, batch: int = 1, name: str = FRAME) -> Tensor:
    """A frame as the graphs take and give it."""
    return Tensor(name, (batch, config.channels, *config.image_size))


def clip(config: ModelConfig, length: int, name: str, batch: int = 1) -> Tensor:
    """`length` frames as the clip graph takes and gives them."""
    return Tensor(name, (batch, length, config.channels, *config.image_size))


def written_after(steps: int, history_length: int) -> int:
    """The state `written` after so many steps: 1 at the start, back to K at 2K."""
    written = steps + 1
    return written if written < 2 * history_length else history_length + written % history_length


def slots(written: int, history_length: int) -> list[int]:
    """Slots of the ring in the order in which they were written, oldest first; entry e lies in slot e mod K."""
    return [entry % history_length for entry in range(max(0, written - history_length), written)]
