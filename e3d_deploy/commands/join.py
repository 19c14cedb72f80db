"""`e3d join`: joins the parts of a model."""

from pathlib import Path

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._options import PATH, overwrite_option
from e3d_deploy.commands._output import megabytes, next_command


@click.command(
    cls=GroupedCommand,
    examples=("e3d join parts -o model.safetensors", "e3d join parts/*.safetensors -o model.safetensors"),
)
@click.argument("parts", nargs=-1, required=True, metavar="FOLDER_OR_PARTS", type=PATH)
@option("-o", "--output", type=PATH, required=True, metavar="NAME.safetensors", help="Model file to write.")
@overwrite_option("model")
def join(parts: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    """Join the parts of `e3d train --parts` into a model file.

    FOLDER_OR_PARTS is a folder of parts, or their paths. The newest complete set is used. The weights are float16.
    """
    from e3d_deploy.workflows.join import join_parts

    joined = join_parts(parts, output, overwrite=overwrite)
    click.echo(output)
    click.echo(f"step {joined.step}, {megabytes(len(joined.content))}", err=True)
    for remark in joined.left_out:
        click.echo(f"skipped: {remark}", err=True)
    next_command("export", output, "-o", f"{output.stem}.e3d")
