"""`e3d import`: imports third-party checkpoints."""

from glob import escape
from pathlib import Path
from typing import Any, get_args

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._options import MAX_FRAMES, PATH, Count, Finite, numbers, overwrite_option
from e3d_deploy.commands._output import next_command, table, verdict, working
from e3d_deploy.config import Fit

FOREIGN = frozenset(
    {".pt", ".pth", ".ckpt", ".bin", ".h5", ".hdf5", ".keras", ".pb", ".index", ".meta", ".tflite"}
    | {".onnx", ".engine", ".plan", ".e3d", ".zip", ".tar", ".npz", ".npy", ".json", ".pkl", ".pickle"}
)
"""Suffixes that an output path must not have. Other suffixes may be part of a name, as in `model_v1.2`."""


GROUPS = {
    "Checkpoint": ("origin", "memory", "ema", "part"),
    "Network, if not stored in the checkpoint": (
        "image_size",
        "patch_size",
        "channels",
        "stride",
        "history_length",
    ),
    "Training settings to store in the card": ("context_length", "horizon", "fps", "fit"),
    "Output": ("output", "reference", "overwrite"),
}
EXAMPLES = (
    "e3d import model.ckpt-80000 -o imported.safetensors --memory released",
    "e3d import checkpoint.pth -o imported.safetensors --reference outputs.npz",
)


@click.command("import", cls=GroupedCommand, groups=GROUPS, examples=EXAMPLES)
@click.argument("path", metavar="CKPT", type=PATH)
@option("-o", "--output", type=PATH, required=True, metavar="NAME.safetensors", help="Model file to write.")
@option(
    "--from",
    "origin",
    type=click.Choice(["auto", "google", "openstl"]),
    default="auto",
    help="Program that wrote the checkpoint.",
)
@option(
    "--memory",
    type=click.Choice(["paper", "released"]),
    help="Global memory in training: updated as in the paper, or always zero as in the released code (google only).",
)
@option("--ema", is_flag=True, help="Import the moving averages instead of the weights.")
@option("--part", metavar="NAME", help="Network to import from a file with several networks (openstl only).")
@option(
    "--patch-size",
    type=Count(1024),
    help="Patch side (pixels); needed if frames are neither gray nor RGB.",
)
@option("--channels", type=Count(1024), help="Channels of a frame; needed if frames are neither gray nor RGB.")
@option(
    "--image-size",
    callback=numbers,
    metavar="HxW",
    help="Frame height x width (pixels, google only).",
    show_default="64x64",
)
@option(
    "--stride",
    type=Count(1024),
    help="Stride of the convolutions (openstl only).",
    show_default="as in the checkpoint, or 1",
)
@option(
    "--history-length",
    type=Count(MAX_FRAMES),
    help="Number of past cell states that recall attends to.",
    show_default="20",
)
@option(
    "--context",
    "context_length",
    type=Count(MAX_FRAMES),
    help="Context in training (frames).",
    show_default="as in the checkpoint",
)
@option(
    "--horizon",
    type=Count(MAX_FRAMES),
    help="Horizon in training (frames).",
    show_default="as in the checkpoint",
)
@option("--fps", type=Finite(min=0, min_open=True), metavar="FPS", help="Frames per second of the training clips.")
@option(
    "--fit",
    type=click.Choice(get_args(Fit)),
    help="Way in which training pictures of a different aspect ratio were fitted.",
    show_default="stretch",
)
@option(
    "--reference",
    type=PATH,
    help="Outputs of the original network (.npz). If the model differs from them, nothing is written.",
)
@overwrite_option("model")
def import_(path: Path, output: Path, reference: Path | None, overwrite: bool, **options: Any) -> None:
    """Import a checkpoint of google/e3d_lstm or OpenSTL.

    CKPT is a PyTorch file, or the prefix (model.ckpt-80000) or folder of a TensorFlow checkpoint. A table shows the
    settings that were found, with the evidence for each.
    """
    from e3d_deploy import checkpoint
    from e3d_deploy.errors import ConfigError
    from e3d_deploy.files import check_writable
    from e3d_deploy.importing import compare_outputs, import_checkpoint
    from e3d_deploy.workflows.places import check_apart

    check_apart(output, *_files_of(path), reference)
    if output.suffix.lower() in FOREIGN:
        raise ConfigError(f"{output}: got a {output.suffix} file, expected .safetensors; choose another name")
    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: already exists; give --overwrite to replace it, or another name")
    check_writable(output)
    with working(f"importing {path}"):
        imported = import_checkpoint(path, **options)
    table(["setting", "value", "evidence"], [(one.what, one.value, one.how) for one in imported.evidence], left=3)
    if reference is not None:
        with working(f"comparing with {reference}"):
            parity = compare_outputs(imported.model, reference)
        table(["predicted frame", "max |Δ|"], [(frame, f"{value:.1e}") for frame, value in parity.differences.items()])
        text = f"largest difference from {reference}: {parity.worst:.1e}, budget {parity.budget:.1e}"
        verdict(
            parity.passed, text, remedy=f"the model does not reproduce the original network, so {output} is not written"
        )
    checkpoint.save(imported.model, output, card=imported.card)
    click.echo(output)
    next_command("export", output, "-o", f"{output.name.removesuffix('.safetensors')}.e3d")


def _files_of(checkpoint: Path) -> list[Path]:
    """Return the files of a checkpoint: one file, or the TensorFlow files with a prefix or in a folder."""
    if checkpoint.is_file():
        return [checkpoint]
    folder, prefix = (checkpoint, "") if checkpoint.is_dir() else (checkpoint.parent, checkpoint.name)
    return [path for end in (".index", ".data-*") for path in folder.glob(f"{escape(prefix)}*{end}")]
