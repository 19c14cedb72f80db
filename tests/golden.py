"""Arrays recorded from the released TensorFlow code, and conversion of its variables to parameters of this package."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
Arrays = dict[str, np.ndarray[Any, Any]]

CONVOLUTIONS = {
    "conv3d": "hidden_conv",
    "conv3d_1": "input_conv",
    "conv3d_2": "memory_conv",
    "conv3d_3": "cell_to_output",
    "conv3d_4": "memory_to_output",
    "conv3d_5": "merge",
}
NORMS = {"hidden": "hidden_norm", "inputs": "input_norm", "self_attn": "cell_norm", "global_memory": "memory_norm"}


def read(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays of a file by name, and its settings."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays, json.loads(str(arrays.pop("config"))) if "config" in arrays else {}


def cell_parameters(arrays: Arrays, prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names begin with `prefix`, or their gradients, by the parameter names of E3DLSTMCell."""
    parameters = {}
    for theirs, ours in CONVOLUTIONS.items():
        kernel = arrays[f"{prefix}{theirs}/kernel"].transpose(4, 3, 0, 1, 2)
        parameters[f"{ours}.weight"] = torch.tensor(kernel)
        parameters[f"{ours}.bias"] = torch.tensor(arrays[f"{prefix}{theirs}/bias"])
    for theirs, ours in NORMS.items():
        parameters[f"{ours}.weight"] = torch.tensor(arrays[f"{prefix}{theirs}/gamma"])
        parameters[f"{ours}.bias"] = torch.tensor(arrays[f"{prefix}{theirs}/beta"])
    return parameters


def model_parameters(arrays: Arrays, layers: int, prefix: str = "w") -> dict[str, Tensor]:
    """Return the weights of a recorded model by the parameter names of E3DLSTM.

    Args:
        prefix: first component of the names of the arrays.
    """
    parameters = {}
    for layer in range(layers):
        cell = cell_parameters(arrays, f"{prefix}/generator/e3d-lstm/e3d{layer}/")
        parameters |= {f"cells.{layer}.{name}": weight for name, weight in cell.items()}
    kernel = arrays[f"{prefix}/generator/e3d-lstm/conv3d/kernel"].transpose(4, 3, 0, 1, 2)
    parameters["to_patch.weight"] = torch.tensor(kernel)
    parameters["to_patch.bias"] = torch.tensor(arrays[f"{prefix}/generator/e3d-lstm/conv3d/bias"])
    return parameters


def channels_first(array: np.ndarray[Any, Any]) -> Tensor:
    """Convert [..., h, w, C] to [..., C, h, w]."""
    return torch.tensor(array).movedim(-1, -3)


def volume(array: np.ndarray[Any, Any]) -> Tensor:
    """Convert [..., D, h, w, C] to [..., C, D, h, w]."""
    return torch.tensor(array).movedim(-1, -4)
