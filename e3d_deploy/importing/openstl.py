"""Checkpoints of OpenSTL: a state_dict of PyTorch, saved on its own or by Lightning."""

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import CheckpointError, ConfigError
from e3d_deploy.importing.archive import check_archive
from e3d_deploy.importing.fit import Finding, Shapes, check_floats, check_patches, patching, size
from e3d_deploy.importing.wrappers import network_in
from e3d_deploy.quiet import quiet
from e3d_deploy.tensors import KEY, read_header

KERNEL_AXES = (0, 1, 2, 3, 4)
ZIP, LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""First bytes of files of torch.save: zip archives, and the older format."""
CONVOLUTIONS = {
    "conv_h": ("hidden_conv", "hidden_norm"),
    "conv_x": ("input_conv", "input_norm"),
    "conv_gm": ("memory_conv", "memory_norm"),
    "conv_new_cell": ("cell_to_output", "cell_to_output_norm"),
    "conv_new_gm": ("memory_to_output", "memory_to_output_norm"),
}
ALONE = "if you trust the file, load it with PyTorch and save only its state_dict with torch.save"


def is_readable(path: Path) -> bool:
    """Return True if torch.save or safetensors may have written this file."""
    return _head(path).startswith((ZIP, LEGACY)) or _is_safetensors(path)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(LEGACY))


def _is_safetensors(path: Path) -> bool:
    try:
        read_header(path)
    except (ValueError, OSError, RecursionError):
        return False
    return True


def read(path: Path, *, part: str | None = None, ema: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a network, and the settings that Lightning stored with them.

    Components that wrappers insert, such as `module`, are removed from the names of the tensors. No code in the file is
    run: torch.load accepts only tensors and plain values.

    Args:
        part: name of the network to read if the file contains several.
        ema: read the moving averages of the weights in place of the weights.

    Raises:
        CheckpointError: the file is damaged, contains anything other than tensors, or contains several networks.
        ConfigError: the file contains no network `part`, or no moving averages.
    """
    loaded = _safetensors(path) if _is_safetensors(path) else _torch_content(path)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, expected a dict of tensors; {ALONE}")
    network = network_in(loaded, part=part, ema=ema, source=str(path))
    check_floats(network.tensors, str(path))
    settings = loaded.get("hyper_parameters")
    return dict(network.tensors), dict(settings) if isinstance(settings, Mapping) else {}


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if KEY in (file.metadata() or {}):
                raise CheckpointError(f"{path}: is already a model of e3d_deploy; use it without importing it")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is damaged ({error}); copy it again") from error


def _torch_content(path: Path) -> Any:
    zipped = _head(path).startswith(ZIP)
    if zipped:
        check_archive(path)
    # torch.load treats any path that ends in .safetensors as safetensors, so such a file is passed as an open file. An
    # open file cannot be mapped into memory.
    mapped = zipped and path.suffix != ".safetensors"
    try:
        with quiet(partial(warnings.simplefilter, "ignore")), path.open("rb") as file:
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = named[1] if named else "unknown instructions"
        raise CheckpointError(f"{path}: holds {what}, but only tensors are loaded; {ALONE}") from error
    # The unpickler raises any of these for corrupt bytes.
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = (str(error) or "cut off").splitlines()[0]
        raise CheckpointError(f"{path}: is damaged ({reason}); copy it again") from error


def identify(
    shapes: Shapes,
    settings: Mapping[str, Any],
    *,
    patch_size: int | None,
    channels: int | None,
    image_size: tuple[int, int] | None,
    stride: int | None,
    source: str,
) -> tuple[ModelConfig, list[Finding]]:
    """Return the configuration of the network that these tensors belong to, with the evidence.

    Args:
        settings: options of OpenSTL that Lightning stored; the stride is found only there.
        source: name of the checkpoint in errors.

    Raises:
        CheckpointError: the tensors do not belong to OpenSTL's E3D-LSTM.
        ConfigError: `patch_size`, `channels` or `image_size` contradicts the tensors.
    """
    layers = {int(found[1]) for name in shapes if (found := re.match(r"cell_list\.(\d+)\.", name))}

    def side(name: str, axis: int, rank: int) -> int:
        return size(shapes, name, axis, rank=rank, source=source)

    hidden = tuple(side(f"cell_list.{layer}._norm_c_t.weight", 0, 4) for layer in range(max(layers, default=0) + 1))
    grid = tuple(side("cell_list.0._norm_c_t.weight", axis, 4) for axis in (2, 3))
    first = "cell_list.0.conv_x.0.conv3d.weight"
    kernel_size = side(first, 4, 5)
    patch_channels = side("conv_last.weight", 0, 5)
    check_patches((first, side(first, 1, 5)), ("conv_last.weight", patch_channels), source)
    layer_norm = any(re.fullmatch(r"cell_list\.\d+\.conv_\w+\.1\.\w+", name) for name in shapes)
    p, C = patching(patch_channels, patch_size or _whole(settings, "patch_size"), channels)
    kept = _whole(settings, "stride")
    config = ModelConfig(
        image_size=(grid[0] * p, grid[1] * p),
        channels=C,
        patch_size=p,
        hidden=hidden,
        kernel_size=kernel_size,
        layer_norm=layer_norm,
        semantics="openstl",
        stride=stride or kept or 1,
    )
    height, width = config.image_size
    if image_size not in (None, config.image_size):
        raise ConfigError(
            f"image_size: got {image_size}, but the norms are for {height}x{width} pixels; omit --image-size"
        )
    told = "--stride" if stride else "stored by Lightning" if kept else "assumed (2 for KTH); set it with --stride"
    normed = "present" if layer_norm else "absent"
    return config, [
        Finding("origin", "OpenSTL", "tensors in cell_list"),
        Finding("layers", _joined(hidden), "shapes of _norm_c_t, one per layer"),
        Finding("kernel", f"2×{kernel_size}×{kernel_size}", "kernel of cell_list.0.conv_x"),
        Finding("patch, colours", f"{p}, {C}", f"{patch_channels} channels per patch"),
        Finding("image size", f"{height}x{width}", f"a grid of {grid[0]}×{grid[1]} patches, shape of _norm_c_t"),
        Finding("gate norms", "yes" if layer_norm else "no", f"tensors such as conv_x.1 are {normed}"),
        Finding("stride", str(config.stride), told),
        Finding("memory", "stays zero", "OpenSTL's cell returns the memory unchanged"),
    ]


def lengths(settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the context length and the horizon of training; each is None if Lightning did not store it."""
    shape = settings.get("in_shape")
    first = shape[0] if isinstance(shape, list | tuple) and shape else None
    context_length = _whole(settings, "pre_seq_length") or _whole({"in_shape": first}, "in_shape")
    return context_length, _whole(settings, "aft_seq_length")


def check_layers(config: ModelConfig, settings: Mapping[str, Any], *, source: str) -> None:
    """Check that a network has the layers that Lightning stored in `num_hidden`, such as `128,128`.

    Raises:
        CheckpointError: the network has different layers.
    """
    value = settings.get("num_hidden")
    if not isinstance(value, str) or not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", value):
        return
    if (trained := tuple(map(int, value.split(",")))) != config.hidden:
        raise CheckpointError(
            f"{source}: holds layers of {_joined(config.hidden)}, but Lightning stored num_hidden "
            f"{_joined(trained)}; it contains a different network, or only some of the tensors of a network"
        )


def _joined(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _whole(settings: Mapping[str, Any], name: str) -> int | None:
    """Return a setting if it is a positive integer, otherwise None."""
    value = settings.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def names_of(config: ModelConfig) -> Mapping[str, str]:
    """Return the name in the checkpoint of each weight of `E3DLSTM`."""
    names = {"to_patch.weight": "conv_last.weight"}
    for layer in range(len(config.hidden)):
        here, there = f"cells.{layer}.", f"cell_list.{layer}."
        names[f"{here}merge.weight"] = f"{there}conv_last.conv3d.weight"
        for part in ("weight", "bias"):
            names[f"{here}cell_norm.{part}"] = f"{there}_norm_c_t.{part}"
        for theirs, (convolution, norm) in CONVOLUTIONS.items():
            names[f"{here}{convolution}.weight"] = f"{there}{theirs}.0.conv3d.weight"
            if config.layer_norm:
                names |= {f"{here}{norm}.{part}": f"{there}{theirs}.1.{part}" for part in ("weight", "bias")}
    return names
