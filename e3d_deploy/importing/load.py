"""Import a checkpoint of another project: recognise its origin, find its configuration, and load its weights."""

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

from e3d_deploy.card import Card
from e3d_deploy.config import Fit
from e3d_deploy.errors import CheckpointError, CheckpointMissing, ConfigError
from e3d_deploy.importing import google, openstl
from e3d_deploy.importing.fit import Finding, Imported, fit_model, window_of
from e3d_deploy.paths import check_path

Origin = Literal["google", "openstl"]
POINTER = b"version https://git-lfs"
"""First bytes of the file that Git LFS leaves in place of a large file."""
SHARD = re.compile(r"-\d+-of-\d+\.")
"""Pattern in the name of a shard, which is a file with some of the tensors of a model."""
JOIN = "load all of them and save one dictionary of their tensors with torch.save"
MAX_FILES = 1000
"""Maximum number of files of a folder that are inspected to suggest a checkpoint."""


def import_checkpoint(
    path: str | Path,
    *,
    origin: Literal["auto"] | Origin = "auto",
    memory: google.Memory | None = None,
    ema: bool = False,
    part: str | None = None,
    patch_size: int | None = None,
    channels: int | None = None,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
    history_length: int | None = None,
    context_length: int | None = None,
    horizon: int | None = None,
    fps: float | None = None,
    fit: Fit | None = None,
) -> Imported:
    """Import a checkpoint of google/e3d_lstm or OpenSTL, with the evidence for each property of the network.

    Args:
        path: OpenSTL file. For a TensorFlow checkpoint: its prefix (`model.ckpt-80000`), one of its files, or its
            folder.
        origin: project that wrote the checkpoint; `auto` detects it from the path.
        memory: for google: kind of memory that the network was trained with. It is needed only if all layers have the
            same size; otherwise the weights show it.
        ema: import the moving averages of the weights in place of the weights. Both originals predict with the weights.
        part: for openstl: name of the network to import if the file contains several, such as `best_model`.
        patch_size, channels: patch size and colours; needed only if the frames are neither gray nor RGB.
        image_size: for google: height and width of the frames (pixels); None for 64×64.
        stride: for openstl: stride of the convolutions; None for the stride in the checkpoint, or 1 if it has none.
        history_length: number of past cell states to recall; None for the default. The originals recall all of them.
        context_length, horizon: context length and horizon of training; None for the values in the checkpoint.
        fps: frames per second of the training clips.
        fit: method by which training pictures with a different aspect ratio were brought to the size of a frame; None
            for `stretch`, as in the originals.

    Raises:
        CheckpointMissing: `path` does not exist.
        CheckpointError: the checkpoint is damaged or contains a different network, or a weight is not finite; the
            message names the tensors.
        ConfigError: an option does not fit the checkpoint.
        BackendUnavailable: TensorFlow is needed and not installed.
    """
    path = check_path("path", path)
    if (origin if origin != "auto" else _origin_of(path)) == "google":
        if stride is not None:
            raise ConfigError("stride: convolutions of google/e3d_lstm have none; omit --stride")
        if part is not None:
            raise ConfigError("part: a checkpoint of google/e3d_lstm contains only one network; omit --part")
        prefix = google.prefix_of(path)
        if prefix is None:
            _check_there(path)
            raise CheckpointError(
                f"{path}: not a TensorFlow checkpoint, because {path.name}.index does not exist; give its prefix"
            )
        tensors = google.read(prefix, ema=ema)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        config, evidence = google.identify(
            shapes, memory=memory, patch_size=patch_size, channels=channels, image_size=image_size, source=str(prefix)
        )
        names, axes = google.names_of(config), google.KERNEL_AXES
        kept: tuple[int | None, int | None] = (None, None)
    else:
        if memory == "paper":
            raise ConfigError("memory: got paper, but the memory of OpenSTL stays zero; omit --memory")
        _check_file(path)
        tensors, settings = openstl.read(path, part=part, ema=ema)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        config, evidence = openstl.identify(
            shapes,
            settings,
            patch_size=patch_size,
            channels=channels,
            image_size=image_size,
            stride=stride,
            source=str(path),
        )
        if part is None:  # the settings describe only one network, which may be a different one than `part`
            openstl.check_layers(config, settings, source=str(path))
        names, axes = openstl.names_of(config), openstl.KERNEL_AXES
        kept = openstl.lengths(settings)
    if ema:
        evidence.append(Finding("weights", "moving averages", "--ema"))
    window, found = window_of(kept, context_length=context_length, horizon=horizon, fps=fps)
    evidence.append(Finding("fit", fit or "stretch", "--fit" if fit else "as in both originals; set it with --fit"))
    evidence.append(found)
    config = replace(config, history_length=history_length or config.history_length)
    how = "--history-length" if history_length else "default"
    evidence.append(Finding("history", f"{config.history_length} cells", f"{how}; exact for up to this many steps"))
    model = fit_model(config, tensors, names, kernel_axes=axes, source=str(path))
    return Imported(model=model, card=Card(window=window, fit=fit or "stretch"), evidence=evidence)


def _origin_of(path: Path) -> Origin:
    if google.prefix_of(path) is not None:
        return "google"
    _check_file(path)
    return "openstl"


def _check_file(path: Path) -> None:
    """Check that a path is a file that PyTorch may have written.

    Raises:
        CheckpointMissing: `path` does not exist.
        CheckpointError: `path` is not such a file.
    """
    _check_there(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path}: is a folder without a TensorFlow checkpoint (no file ends in .index); {_within(path)}"
        )
    if not openstl.is_readable(path):
        if path.name.endswith(".index.json"):
            raise CheckpointError(f"{path}: lists the shards of a model; {JOIN}")
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise CheckpointError(
                    f"{path}: is a Git LFS pointer, not the file; run `git lfs pull` in its repository"
                )
        raise CheckpointError(
            f"{path}: neither a TensorFlow checkpoint nor a file of torch.save or safetensors; nothing to import"
        )


def _within(folder: Path) -> str:
    """Return advice for a user who gave a folder as a checkpoint, according to the files in the folder."""
    if (folder / "manifest.json").exists():
        return "it is a bundle, or a part of one, and needs no import"
    if (folder / ".metadata").exists():
        return (
            "it is a checkpoint of torch.distributed; convert it to a file with "
            f"`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE.pth`"
        )
    places = (folder, folder / "checkpoints")
    files = (file for place in places if place.is_dir() for file in sorted(place.iterdir()) if file.is_file())
    found = [file for file in islice(files, MAX_FILES) if file.stat().st_size and openstl.is_readable(file)]
    if any(SHARD.search(file.name) for file in found):
        return f"it holds the shards of a model; {JOIN}"
    if not found:
        return "it contains nothing to import"
    if len(found) == 1:
        return f"give {found[0]}"
    return f"give one of its {len(found)} files of PyTorch, such as {found[-1]}"


def _check_there(path: Path) -> None:
    if not path.exists():
        raise CheckpointMissing(f"{path}: no such checkpoint, neither {path.name} nor {path.name}.index is there")
