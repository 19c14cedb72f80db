"""The exported step in the form that an engine runs best.

A recipe says how each operation of the domain `e3d_deploy` is written in standard operators: docs/graphs.md has the
gains. All forms compute the same, which tests hold against PyTorch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from e3d_deploy.export.graph import winograd

DOMAIN = "e3d_deploy"
WINDOW_CONVOLUTION, NORM, RECALL = "WindowConvolution", "Norm", "Recall"
WINOGRAD = "/winograd/"
"""Part of the names of values that only Winograd's convolutions have."""
KEY_BIAS, KEY_COUNT = "key_bias", "key_count"
"""Inputs of a step that hide the keys of empty slots: a bias on their scores, float32 [B, 1, S·D·h·w] or
[B, 1, 1, S·D·h·w]; or the number of keys that are there, which are the first, int64 [B]."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Form of each operation of the step."""

    convolutions: Literal["2d", "3d", "winograd-grouped", "winograd-products"]
    """`2d`: 2D convolutions, one for each frame of the window, with no products by the zeros behind it and pads that
    are the same on both sides; ONNX Runtime has blocked kernels for these alone, and on CUDA no others. `3d`: one 3D
    convolution. The others compute 5×5 kernels by Winograd's minimal filtering, F(4×4, 5×5), with 6.25 times fewer
    products: `winograd-grouped` as one convolution with a group for each of the 64 points, which suits ONNX Runtime,
    else `2d`; `winograd-products` as matrix products, which suits OpenVINO, else `3d`. Grids that 4×4 tiles do not
    cover, other kernels and OpenSTL's convolutions are left to the form after `else`."""
    norms: Literal["split", "whole"]
    """`split`: sums over window and grid first, then over channels, from standard arithmetic. ONNX Runtime's own norms
    add up 200,000 numbers in one go and lose a digit to it: on a full-size layer 2e-5 from the exact result, where
    this is at 2.5e-6 and PyTorch at 1e-6. `whole`: the norms of ONNX."""
    recall: Literal["products", "products-4d", "attention"]
    """`products`: matrix products and a softmax. `products-4d`: the same with an axis for heads, which OpenVINO's CPU
    plugin makes one kernel of. `attention`: the standard operator."""

    @property
    def without_winograd(self) -> "Recipe":
        """The recipe with the convolutions that it has where Winograd's do not suit."""
        forms: dict[str, Literal["2d", "3d"]] = {"winograd-grouped": "2d", "winograd-products": "3d"}
        return self if self.convolutions not in forms else replace(self, convolutions=forms[self.convolutions])

    @property
    def opset(self) -> int:
        """Opset that its operators need, at least."""
        return 24 if self.recall == "attention" else 20


RECIPES = {
    "plain": Recipe(convolutions="2d", norms="split", recall="products"),
    "onnxruntime": Recipe(convolutions="winograd-grouped", norms="split", recall="attention"),
    "openvino": Recipe(convolutions="winograd-products", norms="split", recall="products-4d"),
    "openvino-direct": Recipe(convolutions="3d", norms="split", recall="products-4d"),
    "tensorrt": Recipe(convolutions="3d", norms="whole", recall="products"),
}
"""Recipes by name. `plain` is that of the graphs that every reader of ONNX takes, the proofs of this project among
them."""
PLAIN = "plain"
MOST_SIDE = 32
"""Longest side of a grid for Winograd's convolutions: the transforms are products with matrices as long as a side, so
that they cost more with each. Measured at 16."""


def expand(core: GraphProto, recipe: Recipe) -> GraphProto:
    """Return an exported step in standard operators.

    Args:
        core: from `to_onnx.export_core`.
    """
    forms: Mapping[str, Callable[[_Expansion], None]] = {
        WINDOW_CONVOLUTION: {
            "2d": _convolutions_2d,
            "3d": _convolution_3d,
            "winograd-grouped": _winograd_grouped,
            "winograd-products": _winograd_products,
        }[recipe.convolutions],
        NORM: _split_norm if recipe.norms == "split" else _whole_norm,
        RECALL: {"products": _products, "products-4d": _products_4d, "attention": _attention}[recipe.recall],
    }
    graph = GraphProto()
    graph.CopyFrom(core)
    del graph.node[:]
    weights = {one.name: tuple(one.dims) for one in core.initializer}
    for node in core.node:
        if node.domain == DOMAIN:
            forms[node.op_type](_Expansion(graph, node, weights))
        else:
            graph.node.append(node)
    for value in graph.input:
        if value.name == KEY_BIAS and recipe.recall == "products-4d":
            B, *_, S = value.type.tensor_type.shape.dim
            value.CopyFrom(helper.make_tensor_value_info(KEY_BIAS, TensorProto.FLOAT, [_side(B), 1, 1, _side(S)]))
        elif value.name == KEY_BIAS and recipe.recall == "attention":
            first = _side(value.type.tensor_type.shape.dim[0])
            value.CopyFrom(helper.make_tensor_value_info(KEY_COUNT, TensorProto.INT64, [first]))
    return graph


def uses_winograd(core: GraphProto) -> bool:
    """Return True if a step in standard operators has Winograd's convolutions."""
    return any(WINOGRAD in name for node in core.node for name in node.output)


def _side(dimension: Any) -> int | str:
    side: int | str = dimension.dim_param or dimension.dim_value
    return side


class _Expansion:
    """Standard nodes in the place of one node, in the graph that they are added to.

    Values are named after the output of that node, and nodes after the layer of the network.
    """

    def __init__(self, graph: GraphProto, node: NodeProto, weights: Mapping[str, tuple[int, ...]]) -> None:
        self.graph, self.inputs, self.output = graph, list(node.input), node.output[0]
        self.layer = node.name.rpartition("/")[0]
        self.attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        self.weight = weights[node.input[1]] if node.op_type != RECALL else ()
        self.constants = {one.name for one in graph.initializer}

    def add(self, kind: str, inputs: Sequence[str], label: str | None = None, **attributes: Any) -> str:
        """Add a node; return the name of its output, which is that of the operation if it has no label."""
        output = f"{self.output}/{label}" if label else self.output
        name = f"{self.layer}/node_{kind}_{output.replace('/', '_')}"
        self.graph.node.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def once(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node that depends on weights alone, unless it is there; return the name of its output."""
        if all(output not in node.output for node in self.graph.node):
            name = f"{self.layer}/node_{kind}_{output}"
            self.graph.node.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def constant(self, value: NDArray[Any] | np.generic, name: str) -> str:
        if name not in self.constants:
            self.constants.add(name)
            array = np.ascontiguousarray(value, np.float32) if value.dtype == np.float64 else np.asarray(value)
            self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64), f"integers/{'_'.join(map(str, values))}")

    def integer(self, value: int) -> str:
        return self.constant(np.int64(value), f"integer/{value}")

    def number(self, value: float) -> str:
        return self.constant(np.float32(value), f"number/{value!r}")


def _convolution_3d(at: _Expansion) -> None:
    """One 3D convolution over the window; the one slot that OpenSTL's gives is brought to the grid and repeated."""
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


def _convolutions_2d(at: _Expansion) -> None:
    """2D convolutions, of the channels of both frames that a slot sees, and of those of the last slot alone."""
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


def _winograd_grouped(at: _Expansion) -> None:
    """One convolution with a group for each point of the tiles: its height is the window, its width the tiles."""
    if not _suits_winograd(at):
        _convolutions_2d(at)
        return
    window, weight, *bias = at.inputs
    M, N, *_ = at.weight
    points, tiles, (h, w), D = winograd.POINTS**2, _tiles(at), at.attributes["grid"], at.attributes["window"]
    order = [0, 3, 5, 1, 2, 4, 6]  # [B, points, points, N, D, tiles, tiles]
    moved = at.once("Transpose", [_tile_points(at, window)], f"{window}/winograd/grouped", perm=order)
    grouped = at.once("Reshape", [moved, at.integers(-1, points * N, D, tiles)], f"{window}/winograd/groups")
    spread = at.once("Transpose", [_kernel_points(at, weight)], f"{weight}/winograd/grouped", perm=[3, 0, 1, 2])
    kernels = at.once("Reshape", [spread, at.integers(points * M, N, 2, 1)], f"{weight}/winograd/groups")
    settings = {"group": points, "kernel_shape": [2, 1], "pads": [0, 0, 1, 0]}  # zeros behind the window
    products = at.add("Conv", [grouped, kernels], "points", **settings)
    flat = at.add("Reshape", [products, at.integers(-1, points, M * D * tiles)], "points/flat")
    outputs = at.add("MatMul", [at.constant(_both_axes(winograd.matrices()[2]), "winograd/output"), flat], "tiles")
    blocks = [-1, winograd.TILE * winograd.TILE * M * D, h // winograd.TILE, w // winograd.TILE]
    tiled = at.add("Reshape", [outputs, at.integers(*blocks)], "tiles/blocks")
    joined = at.add("DepthToSpace", [tiled], "joined", blocksize=winograd.TILE, mode="DCR")
    _with_bias(at, at.add("Reshape", [joined, at.integers(-1, M, D, h, w)], *(["unbiased"] if bias else [])), bias)


def _winograd_products(at: _Expansion) -> None:
    """A matrix product for each point of the tiles and each frame that a slot sees."""
    if not _suits_winograd(at):
        _convolution_3d(at)
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
        """The products of some frames of the window with one slice of the kernel, as outputs of tiles."""
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
        behind = at.add("Pad", [tiles_of(later, D - 1, 1), at.integers(0, 0, 0, 0, 1, 0)], "tiles_1/padded")
        tiled = at.add("Add", [tiled, behind], "tiles")
    axes = at.add(
        "Reshape",
        [tiled, at.integers(winograd.TILE, winograd.TILE, D, -1, h // winograd.TILE, w // winograd.TILE, M)],
        "tiles/axes",
    )
    joined = at.add("Transpose", [axes], "joined", perm=[3, 6, 2, 4, 0, 5, 1])
    _with_bias(at, at.add("Reshape", [joined, at.integers(-1, M, D, h, w)], *(["unbiased"] if bias else [])), bias)


def _with_bias(at: _Expansion, value: str, bias: Sequence[str]) -> None:
    if bias:
        at.add("Add", [value, at.once("Reshape", [bias[0], at.integers(-1, 1, 1, 1)], f"{bias[0]}/per_channel")])


def _suits_winograd(at: _Expansion) -> bool:
    sides = at.attributes["grid"]
    return (
        not at.attributes["repeated"]
        and list(at.weight[3:]) == [winograd.KERNEL] * 2
        and all(side % winograd.TILE == 0 and side <= MOST_SIDE for side in sides)
    )


def _tiles(at: _Expansion) -> int:
    h, w = at.attributes["grid"]
    return int(h // winograd.TILE * (w // winograd.TILE))


def _tile_points(at: _Expansion, window: str) -> str:
    """Transform the tiles of a window: [B, N, D, points, tiles, points, tiles], rows before columns."""
    _, N, *_ = at.weight
    D, (h, w) = at.attributes["window"], at.attributes["grid"]
    rows, columns = (winograd.of_tiles(side) for side in (h, w))
    wide = at.constant(columns.reshape(-1, w).T, f"winograd/columns_{w}")
    high = at.constant(rows.reshape(-1, h), f"winograd/rows_{h}")
    across = at.once("MatMul", [window, wide], f"{window}/winograd/columns")
    down = at.once("MatMul", [high, across], f"{window}/winograd/both")
    axes = at.integers(-1, N, D, winograd.POINTS, h // winograd.TILE, winograd.POINTS, w // winograd.TILE)
    return at.once("Reshape", [down, axes], f"{window}/winograd/axes")


def _kernel_points(at: _Expansion, weight: str) -> str:
    """Transform the kernels, [M, N, 2, points]; it depends on weights alone, so that engines compute it once."""
    M, N, *_ = at.weight
    flat = at.once("Reshape", [weight, at.integers(M * N * 2, winograd.KERNEL**2)], f"{weight}/winograd/flat")
    spread = at.constant(_both_axes(winograd.matrices()[1]).T, "winograd/kernel")
    points = at.once("MatMul", [flat, spread], f"{weight}/winograd/points")
    return at.once("Reshape", [points, at.integers(M, N, 2, winograd.POINTS**2)], f"{weight}/winograd/axes")


def _both_axes(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix of both axes of a tile, rows before columns."""
    return np.asarray(np.kron(matrix, matrix), np.float64)


def _to_grid(at: _Expansion, value: str, first: int) -> str:
    """Bring a coarser grid, which begins at axis `first`, to the size of the grid: each position takes the nearest."""
    stride = at.attributes["stride"]
    for axis, side in enumerate(at.attributes["grid"]):
        coarse = -(-side // stride)
        if coarse != side:
            nearest = np.arange(side, dtype=np.int64) * coarse // side
            indices = at.constant(nearest, f"nearest/{coarse}_{side}")
            value = at.add("Gather", [value, indices], f"axis_{axis}", axis=first + axis)
    return value


def _split_norm(at: _Expansion) -> None:
    """Sums over window and grid first, then over channels."""
    x, weight, bias = at.inputs
    eps = at.attributes["epsilon"]

    def mean(value: str, label: str) -> str:
        over_grid = at.add("ReduceMean", [value, at.integers(2, 3, 4)], f"{label}_of_channels", keepdims=1)
        return at.add("ReduceMean", [over_grid, at.integers(1)], label, keepdims=1)

    centred = at.add("Sub", [x, mean(x, "mean")], "centred")
    variance = mean(at.add("Mul", [centred, centred], "squares"), "variance")
    # √(variance + ε) with ε taken out: an optimiser may take x + 1e-12 for x, and at the first step, where the
    # variance is 0, that is a division by 0. Held by test_first_step_of_zero_states.
    share = at.add("Add", [at.add("Div", [variance, at.number(eps)], "in_epsilon"), at.number(1.0)], "above")
    deviation = at.add("Mul", [at.add("Sqrt", [share], "root"), at.number(eps**0.5)], "deviation")
    scale = at.add("Div", [_per_channel(at, weight), deviation], "scale")
    at.add("Add", [at.add("Mul", [centred, scale], "scaled"), _per_channel(at, bias)])


def _whole_norm(at: _Expansion) -> None:
    """`LayerNormalization` where the weights tell positions apart, else `InstanceNormalization` of one channel."""
    x, weight, bias = at.inputs
    eps = at.attributes["epsilon"]
    if len(at.weight) > 1:
        at.add("LayerNormalization", [x, weight, bias], axis=1, epsilon=eps)
        return
    flat = at.add("Reshape", [x, at.integers(0, 1, -1)], "flat")
    one, zero = at.constant(np.ones(1, np.float32), "numbers/1"), at.constant(np.zeros(1, np.float32), "numbers/0")
    normed = at.add("InstanceNormalization", [flat, one, zero], "flat/normed", epsilon=eps)
    shaped = at.add("Reshape", [normed, at.integers(0, *at.attributes["shape"])], "normed")
    at.add("Add", [at.add("Mul", [shaped, _per_channel(at, weight)], "scaled"), _per_channel(at, bias)])


def _per_channel(at: _Expansion, weight: str) -> str:
    """Return a weight of a norm in a shape that is broadcast over window and grid."""
    if len(at.weight) > 1:
        return weight
    return at.once("Reshape", [weight, at.integers(-1, 1, 1, 1)], f"{weight}/per_channel")


def _products(at: _Expansion) -> None:
    """Matrix products and a softmax."""
    queries, keys, key_bias = at.inputs
    transposed = at.add("Transpose", [keys], "transposed", perm=[0, 2, 1])
    scores = at.add("MatMul", [queries, transposed], "scores")
    weights = at.add("Softmax", [at.add("Add", [scores, key_bias], "hidden")], "softmax", axis=-1)
    at.add("MatMul", [weights, keys])


def _products_4d(at: _Expansion) -> None:
    """Matrix products and a softmax, with an axis for heads."""
    queries, keys, key_bias = at.inputs
    head = at.integers(1)
    states = at.add("Unsqueeze", [keys, head], "states")
    transposed = at.add("Transpose", [states], "transposed", perm=[0, 1, 3, 2])
    scores = at.add("MatMul", [at.add("Unsqueeze", [queries, head], "queries"), transposed], "scores")
    weights = at.add("Softmax", [at.add("Add", [scores, key_bias], "hidden")], "softmax", axis=-1)
    at.add("Squeeze", [at.add("MatMul", [weights, states], "recalled"), head])


def _attention(at: _Expansion) -> None:
    """The standard operator: one head, no scale, and as many keys as there are."""
    queries, keys, _ = at.inputs
    inputs = [queries, keys, keys, "", "", "", KEY_COUNT]
    at.add("Attention", inputs, q_num_heads=1, kv_num_heads=1, scale=1.0)
