"""Recall of past cells in standard operators."""

from e3d_deploy.export.graph.expansion import Expansion

KEY_BIAS = "key_bias"
"""Name of the input of a step that hides the keys of empty slots by a bias on their scores: float32 [B, 1, S·D·h·w] or,
with an axis for heads, [B, 1, 1, S·D·h·w]."""


def products(at: Expansion) -> None:
    """Write the recall as matrix products and a softmax."""
    queries, keys, key_bias = at.inputs
    transposed = at.add("Transpose", [keys], "transposed", perm=[0, 2, 1])
    scores = at.add("MatMul", [queries, transposed], "scores")
    weights = at.add("Softmax", [at.add("Add", [scores, key_bias], "hidden")], "softmax", axis=-1)
    at.add("MatMul", [weights, keys])


def products_4d(at: Expansion) -> None:
    """Write the recall as matrix products and a softmax with an axis for heads."""
    queries, keys, key_bias = at.inputs
    head = at.integers(1)
    states = at.add("Unsqueeze", [keys, head], "states")
    transposed = at.add("Transpose", [states], "transposed", perm=[0, 1, 3, 2])
    scores = at.add("MatMul", [at.add("Unsqueeze", [queries, head], "queries"), transposed], "scores")
    weights = at.add("Softmax", [at.add("Add", [scores, key_bias], "hidden")], "softmax", axis=-1)
    at.add("Squeeze", [at.add("MatMul", [weights, states], "recalled"), head])
