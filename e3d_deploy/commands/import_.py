"""`e3d import`: checkpoints of others."""

from glob import escape
from pathlib import Path
from typing import Any, get_args

import click

from e3d_deploy.commands._options import MOST_FRAMES, PATH, Count, Finite, numbers, overwrite_option
from e3d_deploy.commands._output import next_command, table, verdict, working
from e3d_deploy.config import Fit

FOREIGN = frozenset(
    {".pt", ".pth", ".ckpt", ".bin", ".h5", ".hdf5", ".keras", ".pb", ".index", ".meta", ".tflite"}
    | {".onnx", ".engine", ".plan", ".e3d", ".zip", ".tar", ".npz", ".npy", ".json", ".pkl", ".pickle"}
)
"""Suffixes of files that are no models of ours, so that a name with one is a mistake; `model_v1.2` has none of them."""


@click.command("import")
@click.argument("path", metavar="CKPT", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Model file, .safetensors.")
@click.option("--from", "origin", type=click.Choice(["auto", "google", "openstl"]), default="auto", help="Whose it is.")
@click.option(
    "--memory",
    type=click.Choice(["paper", "released"]),
    help="google: trained with a memory that moves, or with the released code, where it stays zero.",
)
@click.option("--ema", is_flag=True, help="The moving averages in place of the weights.")
@click.option("--part", metavar="NAME", help="openstl: the network of that name, where the file holds several.")
@click.option("--patch-size", type=Count(1024), help="Where frames are neither gray nor RGB.")
@click.option("--channels", type=Count(1024), help="Colours of a frame; as the patch size.")
@click.option("--image-size", callback=numbers, help="google: height x width, pixels; else 64x64.")
@click.option("--stride", type=Count(1024), help="openstl: of the convolutions; else as kept there, or 1.")
@click.option("--history-length", type=Count(MOST_FRAMES), help="Cell states kept for recall; else 20.")
@click.option(
    "--context",
    "context_length",
    type=Count(MOST_FRAMES),
    help="Frames given in training; else as kept there, if they are.",
)
@click.option("--horizon", type=Count(MOST_FRAMES), help="Frames predicted in training; likewise.")
@click.option("--fps", type=Finite(min=0, min_open=True), help="Frames per second of the clips of training.")
@click.option(
    "--fit",
    type=click.Choice(get_args(Fit)),
    help="How pictures of another shape were brought to the size of a frame in training; else stretch.",
)
@click.option("--reference", type=PATH, help="What the original gave, .npz; nothing is written if the model differs.")
@overwrite_option("model")
def import_(path: Path, output: Path, reference: Path | None, overwrite: bool, **options: Any) -> None:
    """Import CKPT of google/e3d_lstm (TensorFlow) or OpenSTL (PyTorch) as a model.

    Says which network it found and how it knows. A TensorFlow checkpoint is given by its prefix, such as
    model.ckpt-80000, or by its folder.
    """
    from e3d_deploy import checkpoint
    from e3d_deploy.commands._places import check_apart
    from e3d_deploy.errors import ConfigError
    from e3d_deploy.files import check_place
    from e3d_deploy.importing import compare, import_checkpoint

    check_apart(output, *_files_of(path), reference)
    if output.suffix.lower() in FOREIGN:
        raise ConfigError(f"{output}: a model is a .safetensors file; got {output.suffix}, choose another name")
    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: is there already; give --overwrite to replace it, or another name")
    check_place(output)
    with working(f"importing {path}"):
        imported = import_checkpoint(path, **options)
    table(["what", "value", "how we know"], [(one.what, one.value, one.how) for one in imported.evidence], left=3)
    if reference is not None:
        with working(f"comparing with {reference}"):
            parity = compare(imported.model, reference)
        table(["predicted frame", "max |Δ|"], [(frame, f"{value:.1e}") for frame, value in parity.differences.items()])
        text = f"largest difference from {reference}: {parity.worst:.1e}, budget {parity.budget:.1e}"
        verdict(parity.passed, text, remedy=f"the model is not what the original is, so {output} is not written")
    checkpoint.save(imported.model, output, card=imported.card)
    click.echo(output)
    next_command("export", output, "-o", f"{output.name.removesuffix('.safetensors')}.e3d")


def _files_of(checkpoint: Path) -> list[Path]:
    """Return the files that a checkpoint is read from: one, or those of TensorFlow with a prefix or in a folder."""
    if checkpoint.is_file():
        return [checkpoint]
    folder, prefix = (checkpoint, "") if checkpoint.is_dir() else (checkpoint.parent, checkpoint.name)
    return [path for end in (".index", ".data-*") for path in folder.glob(f"{escape(prefix)}*{end}")]
