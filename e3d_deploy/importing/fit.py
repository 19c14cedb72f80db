"""Foreign tensors as the weights of a model: each by name and shape, none left over."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isqrt

import torch
from torch import Tensor

from e3d_deploy import checkpoint
from e3d_deploy.card import Card, Window
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import CheckpointError, ConfigError
from e3d_deploy.model import E3DLSTM

log = logging.getLogger(__name__)

Shapes = Mapping[str, Sequence[int]]
"""Shapes of the tensors in a checkpoint, by their names there."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of weights; quantized and 8-bit ones need scales that no importer knows."""
SHOWN = 4
"""Tensors that an error names; it counts the others."""


@dataclass(frozen=True)
class Finding:
    """One thing that an importer found out, or had to take for granted."""

    what: str
    value: str
    how: str
    """Source of the value: an option, the checkpoint, or an assumption."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A checkpoint of another project as a model of ours."""

    model: E3DLSTM
    """On the CPU, ready to predict."""
    card: Card
    """Facts about the model, as far as they are known."""
    evidence: list[Finding]
    """Properties that the importer found or assumed, each with its source."""


def size(shapes: Shapes, name: str, axis: int, *, rank: int, source: str) -> int:
    """A side of a tensor that tells a size of the network.

    Raises:
        CheckpointError: there is no such tensor, or it has another number of axes.
    """
    if name not in shapes:
        raise CheckpointError(f"{source}: lacks {name}, and has {listed(shapes)}; it is another network, or a part")
    if len(shapes[name]) != rank:
        raise CheckpointError(f"{source}: {name} has the shape {list(shapes[name])}, expected {rank} axes")
    return shapes[name][axis]


def patching(patch_channels: int, patch_size: int | None, channels: int | None) -> tuple[int, int]:
    """Patch size p and colours C of frames whose patches have C·p² channels.

    Args:
        patch_size, channels: what the user says. Who says nothing has gray or RGB frames, and no number
            of channels fits both.

    Raises:
        ConfigError: what is given does not fit, or nothing is and the frames have other colours.
    """
    sides = [p for p in range(1, isqrt(patch_channels) + 1) if patch_channels % p**2 == 0]
    fitting = [(p, patch_channels // p**2) for p in sides]
    likely = [(p, C) for p, C in fitting if patch_size is not None or channels is not None or C in (1, 3)]
    taken = [(p, C) for p, C in likely if patch_size in (None, p) and channels in (None, C)]
    if len(taken) != 1:
        possible = ", ".join(f"--patch-size {p} --channels {C}" for p, C in fitting)
        raise ConfigError(f"patch size: the weights are for patches of {patch_channels} channels; give {possible}")
    return taken[0]


def window_of(
    kept: tuple[int | None, int | None], *, context_length: int | None, horizon: int | None, fps: float | None
) -> tuple[Window | None, Finding]:
    """Return the window that a model was trained on, if it is known, and how we know.

    Args:
        kept: context length and horizon that the checkpoint tells.
        context_length, horizon: what the user says, which counts more.
        fps: frames per second of the clips, which no checkpoint tells.

    Raises:
        ConfigError: a part of the window is given and the rest is not known, or a number that cannot be one.
    """
    if fps is not None and not 0 < fps < inf:
        raise ConfigError(f"fps: got {fps!r}, expected frames per second above 0")
    context = kept[0] if context_length is None else context_length
    predicted = kept[1] if horizon is None else horizon
    given = context_length is not None or horizon is not None
    if context is None or predicted is None:
        if given or fps is not None:
            lacking = "context" if context is None else "horizon"
            raise ConfigError(f"{lacking}: is not in the checkpoint; give --context and --horizon together")
        return None, Finding("window", "not known", "not in the checkpoint; or --context, --horizon and --fps")
    window = Window.of_rates(context, predicted, () if fps is None else (fps,))
    interval = "" if window.interval_ms is None else f", a frame every {window.interval_ms:.4g} ms"
    told = "--context, --horizon, else kept by Lightning" if kept != (None, None) else "--context, --horizon"
    how = (told if given else "kept by Lightning") + (", --fps" if interval else "")
    return window, Finding("window", f"{context} given, {predicted} predicted{interval}", how)


def fit_model(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    *,
    kernel_axes: tuple[int, ...],
    source: str,
) -> E3DLSTM:
    """The model of a config with foreign tensors as its weights, on the CPU, ready to predict.

    Args:
        names: our names of the weights, and theirs.
        kernel_axes: the axes of their convolution kernels in our order, [out, in, D, k, k].
        source: what errors call the checkpoint.

    Raises:
        CheckpointError: a tensor that is missing, unknown, of another shape, or not finite in float32.
    """
    with torch.device("meta"):
        model = E3DLSTM(config)
    expected = model.state_dict()
    assert expected.keys() == names.keys()
    if missing := sorted(set(names.values()) - set(tensors)):
        raise CheckpointError(f"{source}: lacks {listed(missing)}; it is damaged, or another network")
    if unknown := sorted(set(tensors) - set(names.values())):
        raise CheckpointError(f"{source}: holds {listed(unknown)}, which no E3D-LSTM of this origin has")
    weights = {}
    for ours, theirs in names.items():
        tensor, wanted = tensors[theirs], tuple(expected[ours].shape)
        axes = kernel_axes if tensor.ndim == len(kernel_axes) else tuple(range(tensor.ndim))
        if tensor.permute(axes).shape != wanted:
            there = [wanted[axes.index(axis)] for axis in range(len(axes))] if len(axes) == len(wanted) else wanted
            raise CheckpointError(f"{source}: {theirs} has the shape {list(tensor.shape)}, expected {list(there)}")
        checkpoint.check_finite(theirs, tensor, source)
        # Copied, as it may lie in a file that is mapped into memory.
        weight = tensor.permute(axes).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        if tensor.dtype == torch.float64 and not weight.isfinite().all():
            raise CheckpointError(
                f"{source}: {theirs} holds a weight of {tensor.abs().max():.6g}, expected at most "
                f"{torch.finfo(torch.float32).max:g}, the largest float32; take an earlier checkpoint"
            )
        weights[ours] = weight
    if blind := [names[ours] for ours in _on_the_way(config) if ours in weights and not weights[ours].any()]:
        log.warning(
            "%s: %s holds zeros alone, so the model predicts the same whatever it is shown, and no check of it can "
            "fail; take a trained checkpoint",
            source,
            listed(blind),
        )
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def _on_the_way(config: ModelConfig) -> tuple[str, ...]:
    """Names of the weights that every prediction passes on its way from the input."""
    top = len(config.hidden) - 1
    return ("cells.0.input_conv.weight", "cells.0.input_norm.weight", f"cells.{top}.merge.weight", "to_patch.weight")


def check_floats(tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that tensors are plain ones of floats that PyTorch computes with.

    Raises:
        CheckpointError: one is not.
    """
    for name, tensor in tensors.items():
        if not is_plain(tensor):
            kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            found = "without values (on meta)" if tensor.is_meta else str(kind).removeprefix("torch.")
            raise CheckpointError(
                f"{source}: {name} is {found}, expected dense floats of 16, 32 or 64 bits; save it as float32"
            )


def is_plain(tensor: Tensor) -> bool:
    """Return True for a dense tensor of floats with values."""
    return not (tensor.is_meta or tensor.is_nested) and tensor.layout == torch.strided and tensor.dtype in FLOATS


def check_patches(given: tuple[str, int], predicted: tuple[str, int], source: str) -> None:
    """Check that a network takes patches of as many channels as it predicts.

    Args:
        given, predicted: kernel that reads or writes the patches, and its channels.

    Raises:
        CheckpointError: it does not.
    """
    if given[1] != predicted[1]:
        raise CheckpointError(
            f"{source}: {given[0]} takes patches of {given[1]} channels and {predicted[0]} gives {predicted[1]}, "
            "expected as many; it is damaged, or another network"
        )


def listed(names: Shapes | Sequence[str]) -> str:
    """The first few of many names, and how many more there are."""
    shown = ", ".join(list(names)[:SHOWN]) or "nothing"
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
