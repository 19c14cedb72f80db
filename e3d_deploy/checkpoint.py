"""A trained model to disk and back: one .safetensors file with its config as metadata. No pickle."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import CheckpointError, ConfigError
from e3d_deploy.files import write_file
from e3d_deploy.model import E3DLSTM
from e3d_deploy.tensors import KEY

FORMAT = 1
WIDENED = (torch.float16, torch.bfloat16)
"""Types that `load` turns into float32."""


def save(model: E3DLSTM, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write weights and config to `path`, whole or not at all.

    Args:
        dtype: type of the weights in the file.

    Raises:
        CheckpointError: no such folder, or a finite weight that the type cannot hold.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise CheckpointError(f"{path}: its folder does not exist; make it first")
    write_file(path, content(model, dtype=dtype))


def content(model: E3DLSTM, *, dtype: torch.dtype = torch.float32) -> bytes:
    """Return the bytes of a model file.

    Raises:
        CheckpointError: a finite weight that the type cannot hold.
    """
    weights = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in model.state_dict().items()}
    for name, weight in model.state_dict().items():
        if not weights[name].isfinite().all() and weight.isfinite().all():
            raise CheckpointError(
                f"{name}: got a weight of {weight.abs().max():.6g}, expected at most {torch.finfo(dtype).max:g}; "
                "write this model as float32, or train with a smaller --learning-rate"
            )
    return serialize(weights, {KEY: json.dumps({"format": FORMAT, "config": model.config.to_dict()})})


def load(path: str | Path) -> E3DLSTM:
    """Open the model in `path`, on the CPU, ready to predict; its weights are float32 whatever the file holds.

    Raises:
        CheckpointError: not a model file of ours, or one whose weights do not fit its config.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; give a model made by `e3d train`") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}); give a model made by `e3d train`") from error
    if KEY not in metadata:
        raise CheckpointError(f"{path}: not made by e3d_deploy; this version reads its own models alone")
    try:
        card = json.loads(metadata[KEY])
        if card["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {card['format']!r}, this version reads {FORMAT}; update e3d_deploy")
        config = ModelConfig.from_dict(card["config"])
    except (KeyError, TypeError, ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{path}: its config cannot be read ({error}); save or fetch it again") from error
    weights = {name: weight.float() if weight.dtype in WIDENED else weight for name, weight in weights.items()}
    if odd := sorted(name for name, weight in weights.items() if weight.dtype != torch.float32):
        raise CheckpointError(
            f"{path}: {odd[0]} is {weights[odd[0]].dtype}, expected float32, float16 or bfloat16; save the model again"
        )
    with torch.device("meta"):
        model = E3DLSTM(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its config ({error})") from error
    return model.eval().requires_grad_(False)
