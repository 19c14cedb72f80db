"""Forms of the recall of past cells."""

from e3d_deploy.export.graph.expansion import Expansion

KEY_BIAS = "key_bias"
"""Input of a step, a bias on the scores that hides the keys of empty slots: float32 [B, 1, S·D·h·w] or, with an axis
for heads, [B, 1, 1, S·D·h·w]."""


def products(at: Expansion) -> None:
    """Matrix products and a softmax."""
    queries, keys, key_bias = at.inputs
    transposed = at.add("Transpose", [keys], "transposed", perm=[0, 2, 1])
    scores = at.add("MatMul", [queries, transposed], "scores")
    weights = at.add("Softmax", [at.add("Add", [scores, key_bias], "hidden")], "softmax", axis=-1)
    at.add("MatMul", [weights, keys])


def products_4d(at: Expansion) -> None:
    """Matrix products and a softmax, with an axis for heads."""
    queries, keys, key_bias = at.inputs
    head = at.integers(1)
    states = at.add("Unsqueeze", [keys, head], "states")
    transposed = at.add("Transpose", [states], "transposed", perm=[0, 1, 3, 2])
    scores = at.add("MatMul", [at.add("Unsqueeze", [queries, head], "queries"), transposed], "scores")
    weights = at.add("Softmax", [at.add("Add", [scores, key_bias], "hidden")], "softmax", axis=-1)
    at.add("Squeeze", [at.add("MatMul", [weights, states], "recalled"), head])
