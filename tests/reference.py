"""Cell of the paper in slow NumPy, one position at a time, without code shared with the package.

Written from the equations of the paper, section 3, with the operations that are only in the released code (the
norms, the forget bias of 1, the sigmoid of tanh in the output gate). Channels first: [B, N, D, h, w].
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
EPSILON = 1e-12


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def convolution(x: Array, kernel: Array, bias: Array) -> Array:
    """Convolve with stride 1; the output is as large as the input. Kernel [M, N, 2, k, k], or [M, N, 1, 1, 1]."""
    B, _, D, h, w = x.shape
    M, _, depth, k, _ = kernel.shape
    around = k // 2
    # An even depth needs one slice of padding, which TensorFlow adds at the end.
    padded = np.pad(x, ((0, 0), (0, 0), (0, depth - 1), (around, around), (around, around)))
    result = np.zeros((B, M, D, h, w))
    for b, d, i, j in np.ndindex(B, D, h, w):
        seen = padded[b, :, d : d + depth, i : i + k, j : j + k]
        for m in range(M):
            result[b, m, d, i, j] = (kernel[m] * seen).sum() + bias[m]
    return result


def layer_norm(x: Array, gamma: Array, beta: Array) -> Array:
    """Normalise each sample by its mean and biased variance, with a scale and shift per channel."""
    result = np.zeros_like(x)
    for b in range(len(x)):
        deviation = x[b] - x[b].mean()
        normal = deviation / np.sqrt((deviation**2).mean() + EPSILON)
        for n in range(x.shape[1]):
            result[b, n] = gamma[n] * normal[n] + beta[n]
    return result


def recall(gate: Array, history: Array) -> Array:
    """Return the recalled state: the mean of all positions of all past cells, weighted by a softmax.

    The scores of the softmax are the products of the positions with the recall gate.

    `history` is [B, S, N, D, h, w].
    """
    result = np.zeros_like(gate)
    B, _, D, h, w = gate.shape
    for b, d, i, j in np.ndindex(B, D, h, w):
        query = gate[b, :, d, i, j]
        keys = [history[b, s, :, e, k, m] for s, e, k, m in np.ndindex(history.shape[1], D, h, w)]
        weights = np.exp([query @ key for key in keys])
        weights /= weights.sum()
        result[b, :, d, i, j] = sum(weight * key for weight, key in zip(weights, keys, strict=True))
    return result


def cell_step(
    weights: dict[str, Array], inputs: Array, hidden: Array, cell: Array, memory: Array, history: Array
) -> tuple[Array, Array, Array]:
    """Return the next hidden state, cell state and global memory.

    `weights` has the parameter names of E3DLSTMCell; norms without weights are omitted.
    """

    def conv(name: str, x: Array) -> Array:
        return convolution(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Array) -> Array:
        return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"]) if f"{name}.weight" in weights else x

    N = hidden.shape[1]
    from_hidden = norm("hidden_norm", conv("hidden_conv", hidden))
    from_input = norm("input_norm", conv("input_conv", inputs))
    from_memory = norm("memory_norm", conv("memory_conv", memory))
    hi, hg, hr, ho = (from_hidden[:, k * N : (k + 1) * N] for k in range(4))
    xi, xg, xr, xo, xmi, xmg, xmf = (from_input[:, k * N : (k + 1) * N] for k in range(7))
    mi, mf, mg, mm = (from_memory[:, k * N : (k + 1) * N] for k in range(4))

    recalled = recall(sigmoid(xr + hr), history)
    next_cell = norm("cell_norm", cell + recalled) + sigmoid(xi + hi) * np.tanh(xg + hg)
    next_memory = sigmoid(xmf + mf + 1) * np.tanh(mm) + sigmoid(xmi + mi) * np.tanh(xmg + mg)
    output = xo + ho + conv("cell_to_output", next_cell) + conv("memory_to_output", next_memory)
    merged = conv("merge", np.concatenate([next_cell, next_memory], axis=1))
    return sigmoid(np.tanh(output)) * np.tanh(merged), next_cell, next_memory
