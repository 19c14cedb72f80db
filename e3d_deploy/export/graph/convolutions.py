"""Convolutions over the window in standard operators: 3D, 2D, and two forms of Winograd's minimal filtering."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.export.graph import winograd
from e3d_deploy.export.graph.expansion import Expansion

WINOGRAD = "/winograd/"
"""Text that only the names of values of Winograd convolutions contain."""
MAX_SIDE = 32
"""Maximum side of a grid for Winograd convolutions (patches). Their transforms multiply by matrices as long as a side,
so the cost per patch grows with the side. Winograd convolutions were measured only at a side of 16."""


def convolution_3d(at: Expansion) -> None:
    """Write one 3D convolution over the window.

    OpenSTL's convolution has one result for both frames of the window. The result is resized to the grid and repeated.
    """
    around, stride, repeated = at.attributes["padding"], at.attributes["stride"], bool(at.attributes["repeated"])
    after = 0 if repeated else 1
    settings: dict[str, Any] = {
        "kernel_shape": list(at.weight[2:]),
        "pads": [0, around, around, after, around, around],
        "strides": [1, stride, stride],
    }
    if not repeated:
        at.add("Conv", at.inputs, **settings)
        return
    once = at.add("Conv", at.inputs, "once", **settings)
    at.add("Expand", [_to_grid(at, once, 3), at.integers(1, 1, 2, 1, 1)])


def convolutions_2d(at: Expansion) -> None:
    """Write one 2D convolution for each frame of the window, as `step.FlatConvolution` computes them.

    OpenSTL's convolution becomes one 2D convolution, as in `step.FlatOpenSTLConvolution`.
    """
    window, weight, *bias = at.inputs
    M, N, _, *kernel = at.weight
    D, grid, around, stride = (at.attributes[name] for name in ("window", "grid", "padding", "stride"))
    settings: dict[str, Any] = {"kernel_shape": kernel, "pads": [around] * 4, "strides": [stride, stride]}
    both = at.once("Reshape", [weight, at.integers(M, 2 * N, *kernel)], f"{weight}/both")
    joined = at.integers(0, 2 * N, *grid)
    if at.attributes["repeated"]:
        once = at.add("Conv", [at.add("Reshape", [window, joined], "joined"), both], "once", **settings)
        slot = at.add("Unsqueeze", [_to_grid(at, once, 2), at.integers(2)], "slot")
        at.add("Expand", [slot, at.integers(1, 1, 2, 1, 1)])
        return
    slots = []
    for d in range(D - 1):
        pair = window
        if D > 2:
            ends = [at.integers(d), at.integers(d + 2), at.integers(2)]
            pair = at.add("Slice", [window, *ends], f"pair_{d}")
        frames = at.add("Reshape", [pair, joined], f"joined_{d}")
        slots.append(at.add("Conv", [frames, both, *bias], f"slot_{d}", **settings))
    alone = at.once("Gather", [weight, at.integer(0)], f"{weight}/alone", axis=2)
    last = at.add("Gather", [window, at.integer(D - 1)], "last", axis=2)
    slots.append(at.add("Conv", [last, alone, *bias], f"slot_{D - 1}", **settings))
    stacked = [at.add("Unsqueeze", [slot, at.integers(2)], f"{slot.rpartition('/')[2]}/stacked") for slot in slots]
    at.add("Concat", stacked, axis=2)


def winograd_grouped(at: Expansion) -> None:
    """Write a Winograd convolution as one grouped convolution, or `convolutions_2d` if Winograd does not suit it.

    The convolution has the window as height and the tiles as width; each point of the transformed tiles is a group.
    """
    if not _suits_winograd(at):
        convolutions_2d(at)
        return
    window, weight, *bias = at.inputs
    M, N, *_ = at.weight
    points, tiles, (h, w), D = winograd.POINTS**2, _tiles(at), at.attributes["grid"], at.attributes["window"]
    order = [0, 3, 5, 1, 2, 4, 6]  # [B, points, points, N, D, tiles, tiles]
    moved = at.once("Transpose", [_tile_points(at, window)], f"{window}/winograd/grouped", perm=order)
    grouped = at.once("Reshape", [moved, at.integers(-1, points * N, D, tiles)], f"{window}/winograd/groups")
    spread = at.once("Transpose", [_kernel_points(at, weight)], f"{weight}/winograd/grouped", perm=[3, 0, 1, 2])
    kernels = at.once("Reshape", [spread, at.integers(points * M, N, 2, 1)], f"{weight}/winograd/groups")
    settings = {"group": points, "kernel_shape": [2, 1], "pads": [0, 0, 1, 0]}  # zeros after the window
    products = at.add("Conv", [grouped, kernels], "points", **settings)
    flat = at.add("Reshape", [products, at.integers(-1, points, M * D * tiles)], "points/flat")
    outputs = at.add("MatMul", [at.constant(_both_axes(winograd.matrices()[2]), "winograd/output"), flat], "tiles")
    blocks = [-1, winograd.TILE * winograd.TILE * M * D, h // winograd.TILE, w // winograd.TILE]
    tiled = at.add("Reshape", [outputs, at.integers(*blocks)], "tiles/blocks")
    joined = at.add("DepthToSpace", [tiled], "joined", blocksize=winograd.TILE, mode="DCR")
    _with_bias(at, at.add("Reshape", [joined, at.integers(-1, M, D, h, w)], *(["unbiased"] if bias else [])), bias)


def winograd_products(at: Expansion) -> None:
    """Write a Winograd convolution as matrix products, or `convolution_3d` if Winograd does not suit it.

    One MatMul multiplies by each of the two slices of the kernels, with one matrix product for each point of the tiles.
    """
    if not _suits_winograd(at):
        convolution_3d(at)
        return
    window, weight, *bias = at.inputs
    M, N, *_ = at.weight
    points, (h, w), D = winograd.POINTS**2, at.attributes["grid"], at.attributes["window"]
    order = [3, 5, 2, 0, 4, 6, 1]  # [points, points, D, B, tiles, tiles, N]
    moved = at.once("Transpose", [_tile_points(at, window)], f"{window}/winograd/rows", perm=order)
    slots = at.once("Reshape", [moved, at.integers(points, D, -1, N)], f"{window}/winograd/slots")
    kernels = at.once("Transpose", [_kernel_points(at, weight)], f"{weight}/winograd/rows", perm=[2, 3, 1, 0])
    to_tiles = at.constant(_both_axes(winograd.matrices()[2]), "winograd/output")

    def tiles_of(frames: str, count: int, kernel: int) -> str:
        """Multiply `count` frames by one slice of the kernels, and transform the products to tiles of outputs."""
        factor = at.once("Gather", [kernels, at.integer(kernel)], f"{weight}/winograd/kernel_{kernel}", axis=0)
        rows = at.once("Reshape", [frames, at.integers(points, -1, N)], f"{frames}/rows")
        flat = at.add(
            "Reshape",
            [at.add("MatMul", [rows, factor], f"points_{kernel}"), at.integers(points, -1)],
            f"points_{kernel}/flat",
        )
        outputs = at.add("MatMul", [to_tiles, flat], f"tiles_{kernel}")
        return at.add("Reshape", [outputs, at.integers(winograd.TILE**2, count, -1)], f"tiles_{kernel}/slots")

    tiled = tiles_of(slots, D, 0)
    if D > 1:
        ends = [at.integers(1), at.integers(D), at.integers(1)]
        later = at.once("Slice", [slots, *ends], f"{window}/winograd/later")
        shifted = at.add("Pad", [tiles_of(later, D - 1, 1), at.integers(0, 0, 0, 0, 1, 0)], "tiles_1/padded")
        tiled = at.add("Add", [tiled, shifted], "tiles")
    axes = at.add(
        "Reshape",
        [tiled, at.integers(winograd.TILE, winograd.TILE, D, -1, h // winograd.TILE, w // winograd.TILE, M)],
        "tiles/axes",
    )
    joined = at.add("Transpose", [axes], "joined", perm=[3, 6, 2, 4, 0, 5, 1])
    _with_bias(at, at.add("Reshape", [joined, at.integers(-1, M, D, h, w)], *(["unbiased"] if bias else [])), bias)


def _with_bias(at: Expansion, value: str, bias: Sequence[str]) -> None:
    if bias:
        at.add("Add", [value, at.once("Reshape", [bias[0], at.integers(-1, 1, 1, 1)], f"{bias[0]}/per_channel")])


def _suits_winograd(at: Expansion) -> bool:
    sides = at.attributes["grid"]
    return (
        not at.attributes["repeated"]
        and list(at.weight[3:]) == [winograd.KERNEL] * 2
        and all(side % winograd.TILE == 0 and side <= MAX_SIDE for side in sides)
    )


def _tiles(at: Expansion) -> int:
    h, w = at.attributes["grid"]
    return int(h // winograd.TILE * (w // winograd.TILE))


def _tile_points(at: Expansion, window: str) -> str:
    """Transform the tiles of a window; return [B, N, D, points, tiles, points, tiles], rows before columns."""
    _, N, *_ = at.weight
    D, (h, w) = at.attributes["window"], at.attributes["grid"]
    rows, columns = (winograd.of_tiles(side) for side in (h, w))
    wide = at.constant(columns.reshape(-1, w).T, f"winograd/columns_{w}")
    high = at.constant(rows.reshape(-1, h), f"winograd/rows_{h}")
    across = at.once("MatMul", [window, wide], f"{window}/winograd/columns")
    down = at.once("MatMul", [high, across], f"{window}/winograd/both")
    axes = at.integers(-1, N, D, winograd.POINTS, h // winograd.TILE, winograd.POINTS, w // winograd.TILE)
    return at.once("Reshape", [down, axes], f"{window}/winograd/axes")


def _kernel_points(at: Expansion, weight: str) -> str:
    """Transform the kernels; return [M, N, 2, points]. Only weights are read, so engines compute the result once."""
    M, N, *_ = at.weight
    flat = at.once("Reshape", [weight, at.integers(M * N * 2, winograd.KERNEL**2)], f"{weight}/winograd/flat")
    spread = at.constant(_both_axes(winograd.matrices()[1]).T, "winograd/kernel")
    points = at.once("MatMul", [flat, spread], f"{weight}/winograd/points")
    return at.once("Reshape", [points, at.integers(M, N, 2, winograd.POINTS**2)], f"{weight}/winograd/axes")


def _both_axes(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix that transforms both axes of a flattened tile at once, rows before columns."""
    return np.asarray(np.kron(matrix, matrix), np.float64)


def _to_grid(at: Expansion, value: str, first: int) -> str:
    """Resize the result of a strided convolution to the grid by nearest neighbour; axis `first` is the rows."""
    stride = at.attributes["stride"]
    for axis, side in enumerate(at.attributes["grid"]):
        coarse = -(-side // stride)
        if coarse != side:
            nearest = np.arange(side, dtype=np.int64) * coarse // side
            indices = at.constant(nearest, f"nearest/{coarse}_{side}")
            value = at.add("Gather", [value, indices], f"axis_{axis}", axis=first + axis)
    return value
