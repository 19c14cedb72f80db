"""Forms of the recall of past cells."""

from e3d_deploy.export.graph.expansion import Expansion

KEY_BIAS, KEY_COUNT = "key_bias", "key_count"
"""Inputs of a step that hide the keys of empty slots: a bias on their scores, float32 [B, 1, S·D·h·w] or
[B, 1, 1, S·D·h·w]; or the number of keys that are there, which are the first, int64 [B]."""


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


def attention(at: Expansion) -> None:
    """The standard operator: one head, no scale, and as many keys as there are."""
    queries, keys, _ = at.inputs
    inputs = [queries, keys, keys, "", "", "", KEY_COUNT]
    at.add("Attention", inputs, q_num_heads=1, kv_num_heads=1, scale=1.0)
