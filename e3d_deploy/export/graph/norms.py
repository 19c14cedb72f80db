"""Norms over channels, window and grid in standard operators."""

import numpy as np

from e3d_deploy.export.graph.expansion import Expansion


def split_norm(at: Expansion) -> None:
    """Write a norm with means over window and grid first, then over channels; see `step.PlainNorm`."""
    x, weight, bias = at.inputs
    eps = at.attributes["epsilon"]

    def mean(value: str, label: str) -> str:
        over_grid = at.add("ReduceMean", [value, at.integers(2, 3, 4)], f"{label}_of_channels", keepdims=1)
        return at.add("ReduceMean", [over_grid, at.integers(1)], label, keepdims=1)

    centred = at.add("Sub", [x, mean(x, "mean")], "centred")
    variance = mean(at.add("Mul", [centred, centred], "squares"), "variance")
    # √(variance + ε) with √ε factored out. A graph optimizer may replace x + 1e-12 with x, and the first step, where
    # the variance is 0, would then divide by 0. test_first_step_of_zero_states checks this.
    share = at.add("Add", [at.add("Div", [variance, at.number(eps)], "in_epsilon"), at.number(1.0)], "above")
    deviation = at.add("Mul", [at.add("Sqrt", [share], "root"), at.number(eps**0.5)], "deviation")
    scale = at.add("Div", [_per_channel(at, weight), deviation], "scale")
    at.add("Add", [at.add("Mul", [centred, scale], "scaled"), _per_channel(at, bias)])


def whole_norm(at: Expansion) -> None:
    """Write `LayerNormalization` if each element has a weight, otherwise `InstanceNormalization` of one channel."""
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


def _per_channel(at: Expansion, weight: str) -> str:
    """Return the name of a weight of a norm in a shape that broadcasts over window and grid."""
    if len(at.weight) > 1:
        return weight
    return at.once("Reshape", [weight, at.integers(-1, 1, 1, 1)], f"{weight}/per_channel")
