"""Fit foreign tensors into a model: each weight is matched by name and shape, and no tensor is left over."""

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
"""Shapes of the tensors of a checkpoint, by their names in the checkpoint."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Accepted data types of weights. Quantized and 8-bit weights need scales, which the importers cannot read."""
SHOWN = 4
"""Maximum number of tensors that an error names; the error gives the number of the others."""


@dataclass(frozen=True)
class Finding:
    """One property of a network that an importer found or assumed."""

    what: str
    """Name of the property."""
    value: str
    how: str
    """Source of the value: an option, the checkpoint, or an assumption."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A model made from a checkpoint of another project."""

    model: E3DLSTM
    """Network on the CPU, in evaluation mode."""
    card: Card
    """Facts about the model, as far as they are known."""
    evidence: list[Finding]
    """Properties that the importer found or assumed, each with its source."""


def size(shapes: Shapes, name: str, axis: int, *, rank: int, source: str) -> int:
    """Return the size of a tensor along one axis.

    Args:
        rank: expected number of axes.
        source: name of the checkpoint in errors.

    Raises:
        CheckpointError: the checkpoint has no such tensor, or the tensor does not have `rank` axes.
    """
    if name not in shapes:
        raise CheckpointError(
            f"{source}: lacks {name} and contains {listed(shapes)}; it contains a different network, or only some of "
            "the tensors of a network"
        )
    if len(shapes[name]) != rank:
        raise CheckpointError(f"{source}: {name} has the shape {list(shapes[name])}, expected {rank} axes")
    return shapes[name][axis]


def patching(patch_channels: int, patch_size: int | None, channels: int | None) -> tuple[int, int]:
    """Return the patch size p and the colours C of a network whose patches have C·p² channels.

    Args:
        patch_size, channels: p and C as the user gave them. If both are None, C is assumed to be 1 or 3; the number of
            patch channels fits at most one of the two.

    Raises:
        ConfigError: the given values do not fit, or both are None and C is neither 1 nor 3.
    """
    sides = [p for p in range(1, isqrt(patch_channels) + 1) if patch_channels % p**2 == 0]
    fitting = [(p, patch_channels // p**2) for p in sides]
    likely = [(p, C) for p, C in fitting if patch_size is not None or channels is not None or C in (1, 3)]
    taken = [(p, C) for p, C in likely if patch_size in (None, p) and channels in (None, C)]
    if len(taken) != 1:
        possible = ", ".join(f"--patch-size {p} --channels {C}" for p, C in fitting)
        raise ConfigError(
            f"patch size: the weights are for patches of {patch_channels} channels; give one of {possible}"
        )
    return taken[0]


def window_of(
    kept: tuple[int | None, int | None], *, context_length: int | None, horizon: int | None, fps: float | None
) -> tuple[Window | None, Finding]:
    """Return the window that a model was trained on, or None if it is unknown, with the evidence.

    Args:
        kept: context length and horizon that the checkpoint contains.
        context_length, horizon: values that the user gave; they override `kept`.
        fps: frames per second of the training clips, which no checkpoint contains.

    Raises:
        ConfigError: the user gave a length or `fps`, but the context length or the horizon is still unknown. `fps` is
            not finite, or is 0 or less. A value is outside the range that `Window` allows.
    """
    if fps is not None and not 0 < fps < inf:
        raise ConfigError(f"fps: got {fps!r}, expected a finite number of frames per second above 0")
    context = kept[0] if context_length is None else context_length
    predicted = kept[1] if horizon is None else horizon
    given = context_length is not None or horizon is not None
    if context is None or predicted is None:
        if given or fps is not None:
            lacking = "context" if context is None else "horizon"
            raise ConfigError(f"{lacking}: is not in the checkpoint; give --context and --horizon together")
        return None, Finding("window", "not known", "not in the checkpoint; set it with --context, --horizon and --fps")
    window = Window.of_rates(context, predicted, () if fps is None else (fps,))
    interval = "" if window.interval_ms is None else f", a frame every {window.interval_ms:.4g} ms"
    told = "--context, --horizon, otherwise stored by Lightning" if kept != (None, None) else "--context, --horizon"
    how = (told if given else "stored by Lightning") + (", --fps" if interval else "")
    return window, Finding("window", f"{context} given, {predicted} predicted{interval}", how)


def fit_model(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    *,
    kernel_axes: tuple[int, ...],
    source: str,
) -> E3DLSTM:
    """Return a model with foreign tensors as its weights, on the CPU, in evaluation mode.

    Args:
        tensors: tensors by their names in the checkpoint.
        names: name in the checkpoint of each weight of `E3DLSTM`.
        kernel_axes: permutation that brings the axes of the foreign kernels into the order [out, in, D, k, k].
        source: name of the checkpoint in errors.

    Raises:
        CheckpointError: a tensor is missing or unknown, has an unexpected shape, or is not finite in float32.
    """
    with torch.device("meta"):
        model = E3DLSTM(config)
    expected = model.state_dict()
    assert expected.keys() == names.keys()
    if missing := sorted(set(names.values()) - set(tensors)):
        raise CheckpointError(f"{source}: lacks {listed(missing)}; it is damaged or contains a different network")
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
        # The tensor is copied, because it may be a view of a file that is mapped into memory.
        weight = tensor.permute(axes).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        if tensor.dtype == torch.float64 and not weight.isfinite().all():
            raise CheckpointError(
                f"{source}: {theirs} holds a weight of {tensor.abs().max():.6g}, expected at most "
                f"{torch.finfo(torch.float32).max:g}, the largest float32; use an earlier checkpoint"
            )
        weights[ours] = weight
    if blind := [names[ours] for ours in _on_the_way(config) if ours in weights and not weights[ours].any()]:
        log.warning(
            "%s: %s contains only zeros, so the model predicts the same frames for every input, and no check of the "
            "model can fail; use a trained checkpoint",
            source,
            listed(blind),
        )
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def _on_the_way(config: ModelConfig) -> tuple[str, ...]:
    """Return names of weights on every path from input to prediction.

    If one of these weights is all zeros, the predictions do not depend on the input.
    """
    top = len(config.hidden) - 1
    return ("cells.0.input_conv.weight", "cells.0.input_norm.weight", f"cells.{top}.merge.weight", "to_patch.weight")


def check_floats(tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that all tensors are dense, have values, and are floats of 16, 32 or 64 bits.

    Raises:
        CheckpointError: a tensor is sparse, has no values, or has a different data type.
    """
    for name, tensor in tensors.items():
        if not is_plain(tensor):
            kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            found = "without values (on meta)" if tensor.is_meta else str(kind).removeprefix("torch.")
            raise CheckpointError(
                f"{source}: {name} is {found}, expected dense floats of 16, 32 or 64 bits; save it as float32"
            )


def is_plain(tensor: Tensor) -> bool:
    """Return True for a dense tensor of floats of 16, 32 or 64 bits that has values."""
    return not (tensor.is_meta or tensor.is_nested) and tensor.layout == torch.strided and tensor.dtype in FLOATS


def check_patches(given: tuple[str, int], predicted: tuple[str, int], source: str) -> None:
    """Check that the patches that a network takes and predicts have the same number of channels.

    Args:
        given: name and patch channels of the kernel that reads patches.
        predicted: name and patch channels of the kernel that writes patches.

    Raises:
        CheckpointError: the numbers differ.
    """
    if given[1] != predicted[1]:
        raise CheckpointError(
            f"{source}: {given[0]} takes patches of {given[1]} channels and {predicted[0]} gives {predicted[1]}, "
            "expected the same number; it is damaged or contains a different network"
        )


def listed(names: Shapes | Sequence[str]) -> str:
    """Format the first few names, and the number of the others."""
    shown = ", ".join(list(names)[:SHOWN]) or "nothing"
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
