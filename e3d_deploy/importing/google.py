"""Checkpoints of google/e3d_lstm: TensorFlow V2, channels last."""

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BackendUnavailable, CheckpointError, ConfigError
from e3d_deploy.importing.fit import Finding, Shapes, check_patches, listed, patching, size
from e3d_deploy.libraries import pip_install
from e3d_deploy.quiet import quiet

log = logging.getLogger(__name__)

Memory = Literal["paper", "released"]
KERNEL_AXES = (4, 3, 0, 1, 2)
"""Permutation of TensorFlow's kernel axes [D, k, k, in, out] to [out, in, D, k, k]."""
SCOPE = "generator/e3d-lstm/"
"""Prefix of the names of the network's variables."""
AVERAGE = "/ExponentialMovingAverage"
"""Suffix of the names of moving averages."""
SLOT = re.compile(r"Variable(_\d+)?")
"""Names of the optimizer's variables: its step count and the two moments of each variable of the network."""
CONVOLUTIONS = {
    "conv3d": "hidden_conv",
    "conv3d_1": "input_conv",
    "conv3d_2": "memory_conv",
    "conv3d_3": "cell_to_output",
    "conv3d_4": "memory_to_output",
    "conv3d_5": "merge",
}
NORMS = {"hidden": "hidden_norm", "inputs": "input_norm", "self_attn": "cell_norm", "global_memory": "memory_norm"}
IMAGE_SIZE = (64, 64)


def prefix_of(path: Path) -> Path | None:
    """Return the prefix by which TensorFlow names a checkpoint, such as `model.ckpt-5`; None without a checkpoint.

    Args:
        path: the prefix itself, one of the files of the checkpoint, or its folder.

    Raises:
        CheckpointError: `path` is a folder with several checkpoints that does not record which is the latest.
    """
    if path.is_dir():
        return _latest(path)
    prefix = path.with_name(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path.name))
    return prefix if prefix.with_name(prefix.name + ".index").is_file() else None


def _latest(folder: Path) -> Path | None:
    """Return the checkpoint that the file `checkpoint` of a folder names, or the only checkpoint of the folder."""
    found = sorted(file.with_name(file.name.removesuffix(".index")) for file in folder.glob("*.index"))
    note = folder / "checkpoint"
    if note.is_file():
        named = re.search(r'^model_checkpoint_path: "(.+)"', note.read_text(errors="replace"), re.MULTILINE)
        # The recorded path may be a path on another machine, but the checkpoint is in the same folder as the record.
        if named and (latest := folder / Path(named[1]).name) in found:
            return latest
    if len(found) > 1:
        raise CheckpointError(f"{folder}: has {len(found)} checkpoints; give one of them, such as {found[-1]}")
    return found[0] if found else None


def read(prefix: Path, *, ema: bool) -> dict[str, Tensor]:
    """Read the variables of the network in a checkpoint, without the variables of the optimizer.

    Args:
        ema: read the moving averages of the variables in place of the variables.

    Raises:
        BackendUnavailable: TensorFlow is not installed.
        CheckpointError: the checkpoint is damaged, or has no moving averages.
    """
    with _quiet():
        try:
            import tensorflow
        except ImportError as error:
            raise BackendUnavailable(
                f"tensorflow is not installed ({error}), and is needed to read {prefix}; {pip_install('import-tf')}"
            ) from error
        try:
            reader = tensorflow.train.load_checkpoint(str(prefix))
            present = reader.get_variable_to_shape_map()
            plain = sorted(name for name in present if not name.endswith(AVERAGE) and not SLOT.fullmatch(name))
            names = {name: name + AVERAGE if ema else name for name in plain}
            if lacking := sorted(set(names.values()) - set(present)):
                raise CheckpointError(f"{prefix}: lacks {listed(lacking)}; import it without --ema")
            return {name: _tensor(reader.get_tensor(stored), stored, prefix) for name, stored in names.items()}
        except (tensorflow.errors.OpError, IndexError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{prefix}: cannot be read ({error}); copy all of its files again") from error


def _tensor(value: Any, name: str, prefix: Path) -> Tensor:
    array = np.asarray(value)
    if array.dtype.kind != "f":
        raise CheckpointError(f"{prefix}: {name} is {array.dtype}, expected floats")
    return torch.from_numpy(array)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence TensorFlow's messages about the processor and its deprecation warnings."""
    name = "TF_CPP_MIN_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "3")
    try:
        with quiet(partial(warnings.simplefilter, "ignore")):
            yield
    finally:
        if before is None:
            os.environ.pop(name, None)  # another thread may have removed it already


def identify(
    shapes: Shapes,
    *,
    memory: Memory | None,
    patch_size: int | None,
    channels: int | None,
    image_size: tuple[int, int] | None,
    source: str,
) -> tuple[ModelConfig, list[Finding]]:
    """Return the configuration of the network that these variables belong to, with the evidence.

    Args:
        memory: kind of memory that the network was trained with; None to infer it from the variables, or to assume
            `released` if they do not show it.
        source: name of the checkpoint in errors.

    Raises:
        CheckpointError: the variables do not belong to a network of google/e3d_lstm.
        ConfigError: `memory`, `patch_size` or `channels` contradicts the variables.
    """
    layers = {int(found[1]) for name in shapes if (found := re.match(rf"{SCOPE}e3d(\d+)/", name))}

    def side(name: str, axis: int) -> int:
        return size(shapes, f"{SCOPE}{name}/kernel", axis, rank=5, source=source)

    hidden = tuple(side(f"e3d{layer}/conv3d", 3) for layer in range(max(layers, default=0) + 1))
    kernel_size, patch_channels = side("e3d0/conv3d", 1), side("conv3d", 4)
    first = "e3d0/conv3d_1"
    check_patches((f"{SCOPE}{first}/kernel", side(first, 3)), (f"{SCOPE}conv3d/kernel", patch_channels), source)
    inputs = tuple(side(f"e3d{layer}/conv3d_2", 3) for layer in range(len(hidden)))
    variant, how = _variant(hidden, inputs, memory, source)
    p, C = patching(patch_channels, patch_size, channels)
    config = ModelConfig(
        image_size=image_size or IMAGE_SIZE,
        channels=C,
        patch_size=p,
        hidden=hidden,
        kernel_size=kernel_size,
        norm_eps=1e-12,
        semantics="paper" if variant == "paper" else "google",
    )
    height, width = config.image_size
    given = image_size is not None
    return config, [
        Finding("origin", "google/e3d_lstm", f"variables below {SCOPE}"),
        Finding("layers", ", ".join(map(str, hidden)), "kernels of conv3d, one per layer"),
        Finding("kernel", f"2×{kernel_size}×{kernel_size}", "kernel of e3d0/conv3d"),
        Finding("patch, colours", f"{p}, {C}", f"{patch_channels} channels per patch"),
        Finding("memory", variant, how),
        Finding("image size", f"{height}x{width}", "--image-size" if given else "assumed; set it with --image-size"),
        Finding("norm epsilon", "1e-12", "the released code"),
    ]


def _variant(
    hidden: tuple[int, ...], inputs: tuple[int, ...], memory: Memory | None, source: str
) -> tuple[Memory, str]:
    """Return the kind of memory that the network was trained with, and the evidence for it.

    The memory that enters layer 0 has the channels of the top layer. The memory that enters any other layer has the
    channels of the layer below (`paper`), or of the top layer if the memory stays zero (`released`).

    Args:
        inputs: channels of the memory that enters each layer.
    """
    if len(set(hidden)) == 1:
        if memory is not None:
            return memory, "--memory"
        log.warning(
            "%s: all layers have the same size, so the weights do not show which memory they were trained with; "
            "assumed `released`. If issue 13 of google/e3d_lstm was fixed for the training, give --memory paper",
            source,
        )
        return "released", "assumed; set it with --memory"
    variants: dict[tuple[int, ...], Memory] = {
        (hidden[-1], *hidden[:-1]): "paper",
        (hidden[-1],) * len(hidden): "released",
    }
    if inputs not in variants:
        expected = " or ".join(str(list(channels)) for channels in variants)
        raise CheckpointError(f"{source}: the kernels of conv3d_2 take {list(inputs)} channels, expected {expected}")
    if memory not in (None, variants[inputs]):
        raise ConfigError(
            f"memory: got {memory}, but the kernels of conv3d_2 are for {variants[inputs]}; omit --memory"
        )
    return variants[inputs], f"kernels of conv3d_2, for {', '.join(map(str, inputs))} channels"


def names_of(config: ModelConfig) -> Mapping[str, str]:
    """Return the name in the checkpoint of each weight of `E3DLSTM`."""
    names = {"to_patch.weight": f"{SCOPE}conv3d/kernel", "to_patch.bias": f"{SCOPE}conv3d/bias"}
    for layer in range(len(config.hidden)):
        here, there = f"cells.{layer}.", f"{SCOPE}e3d{layer}/"
        for theirs, ours in CONVOLUTIONS.items():
            names |= {f"{here}{ours}.weight": f"{there}{theirs}/kernel", f"{here}{ours}.bias": f"{there}{theirs}/bias"}
        for theirs, ours in NORMS.items():
            names |= {f"{here}{ours}.weight": f"{there}{theirs}/gamma", f"{here}{ours}.bias": f"{there}{theirs}/beta"}
    return names
