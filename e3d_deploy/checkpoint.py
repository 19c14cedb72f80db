"""Model files: weights in the .safetensors format, with config and card as metadata and without pickles."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from e3d_deploy.card import Card
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import CheckpointError, CheckpointMissing, ConfigError
from e3d_deploy.files import check_writable, replace_file, write_file
from e3d_deploy.model import E3DLSTM
from e3d_deploy.paths import check_path
from e3d_deploy.tensors import (
    DAMAGED,
    FORMAT,
    KEY,
    Content,
    entries_of,
    header_bytes,
    read_header,
    read_tensors,
    tensors_of,
    without_number,
)

WIDENED = (torch.float16, torch.bfloat16)
"""Data types that `load` converts to float32."""

MAKE_AGAIN = "copy it again, or save the model again"


def save(model: E3DLSTM, path: str | Path, *, card: Card | None = None, dtype: torch.dtype = torch.float32) -> None:
    """Write weights, config and card to `path` atomically.

    Args:
        card: card of the model; None for an empty card.
        dtype: data type of the weights in the file.

    Raises:
        CheckpointError: A finite weight is too large for `dtype`.
        ConfigError: The folder of `path` does not exist.
    """
    path = check_path("path", path)
    check_writable(path)
    write_file(path, content(model, card=card, dtype=dtype))


def content(model: E3DLSTM, *, card: Card | None = None, dtype: torch.dtype = torch.float32) -> bytes:
    """Return the bytes of a model file.

    Raises:
        CheckpointError: A finite weight is too large for `dtype`.
    """
    weights = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in model.state_dict().items()}
    for name, weight in model.state_dict().items():
        if not weights[name].isfinite().all() and weight.isfinite().all():
            raise CheckpointError(
                f"{name}: got a weight of {weight.abs().max():.6g}, expected at most {torch.finfo(dtype).max:g}; "
                "write this model as float32, or train with a smaller --learning-rate"
            )
    entries = {"format": FORMAT, "config": model.config.to_dict()}
    if card is not None and (known := card.to_dict()):
        entries["card"] = known
    return serialize(weights, {KEY: json.dumps(entries)})


def load(path: str | Path) -> E3DLSTM:
    """Load a model file on the CPU, in evaluation mode; weights of `WIDENED` types are converted to float32.

    Raises:
        CheckpointMissing: The file does not exist.
        CheckpointError: The file is not a model file, its weights do not fit its config, or a weight is not finite.
    """
    path = check_path("path", path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (`file` is not a dictionary)
    except FileNotFoundError as error:
        raise CheckpointMissing(f"{path}: no such file; give a model made by `e3d train`") from error
    except (SafetensorError, OSError) as error:
        if os.path.isdir(path):
            raise CheckpointError(f"{path}: is a folder; {_remedy_for_folder(Path(path))}") from error
        raise CheckpointError(
            f"{path}: not a safetensors file ({without_number(error)}); give a model made by `e3d train`, "
            "or import a checkpoint of another program with `e3d import`"
        ) from error
    return _model(path, metadata, weights)


def _remedy_for_folder(folder: Path) -> str:
    """Return the remedy for an error about a path that is a folder instead of a model file."""
    if (folder / "manifest.json").exists():
        return "it is a bundle; give the model file that the bundle was exported from"
    if (model := folder / "model.safetensors").exists():
        return f"give {model}"
    return "give a model made by `e3d train`"


def load_content(content: Content, path: str | Path) -> E3DLSTM:
    """Load a model, like `load`, from the content of a file; float32 weights share the memory of `content`.

    Args:
        content: writable memory, as PyTorch demands; its bytes must not change while the model is used.
        path: path of the file, for error messages.

    Raises:
        CheckpointError: The file is not a model file, its weights do not fit its config, or a weight is not finite.
    """
    try:
        arrays, metadata = tensors_of(content)
    except DAMAGED as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}); give a model made by `e3d train`") from error
    return _model(path, metadata, {name: torch.from_numpy(array) for name, array in arrays.items()})


def _model(path: str | Path, metadata: Mapping[str, str], weights: Mapping[str, torch.Tensor]) -> E3DLSTM:
    """Create a model from the weights and the metadata of a file; the metadata contain the config."""
    config = ModelConfig.from_dict(entries_of(path, metadata)["config"])
    weights = {name: weight.float() if weight.dtype in WIDENED else weight for name, weight in weights.items()}
    if odd := sorted(name for name, weight in weights.items() if weight.dtype != torch.float32):
        raise CheckpointError(
            f"{path}: {odd[0]} is {weights[odd[0]].dtype}, expected float32, float16 or bfloat16; save the model again"
        )
    for name, weight in weights.items():
        check_finite(name, weight, path)
    with torch.device("meta"):
        model = E3DLSTM(config)
    expected = model.state_dict()
    misfit = f"{path}: its weights do not fit its config"
    if odd := sorted(weights.keys() ^ expected.keys()):
        what = f"lacks {odd[0]}" if odd[0] in expected else f"has the unknown weight {odd[0]}"
        others = f" and {len(odd) - 1} more weights do not fit" if len(odd) > 1 else ""
        raise CheckpointError(f"{misfit}: the file {what}{others}; {MAKE_AGAIN}")
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            found, wanted = list(weight.shape), list(expected[name].shape)
            raise CheckpointError(f"{misfit}: {name} has the shape {found}, expected {wanted}; {MAKE_AGAIN}")
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def check_finite(name: str, weight: torch.Tensor, source: str | Path) -> None:
    """Check that all values of a weight are finite; otherwise every prediction would be NaN.

    Raises:
        CheckpointError: A value is NaN or infinite.
    """
    if odd := weight.numel() - int(weight.isfinite().sum()):
        raise CheckpointError(
            f"{source}: {name} holds {odd} of {weight.numel()} values that are NaN or infinite, expected finite "
            "numbers; train again with a smaller --learning-rate, or use an earlier checkpoint"
        )


def read_card(path: str | Path) -> Card:
    """Return the card in a model file; an empty card if the file has none.

    Raises:
        CheckpointError: The file is not a model file, or its card is damaged.
    """
    path = Path(path)
    _, metadata = read_tensors(path)
    try:
        return Card.from_dict(entries_of(path, metadata).get("card", {}))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def write_card(path: str | Path, card: Card) -> None:
    """Replace the card in a model file atomically; weights and config do not change.

    If `path` is a link, a new file replaces the link. The file behind the link does not change: it may be part of a
    cache such as Hugging Face's, where the name of each file is its hash.

    Raises:
        CheckpointError: The file is not a model file.
        OSError: The file cannot be written.
    """
    path = Path(path)
    _, metadata = read_tensors(path)
    entries = {**entries_of(path, metadata), "card": card.to_dict()}
    header, start = read_header(path)
    header["__metadata__"] = {KEY: json.dumps(entries)}
    replace_file(path, header_bytes(json.dumps(header, separators=(",", ":"))) + path.read_bytes()[start:])


load_model, save_model = load, save
"""Names of the two functions in `e3d_deploy.api`, where no module name precedes them."""
