"""`e3d join`: a model from its parts."""

from pathlib import Path

import click

from e3d_deploy.commands._options import PATH, overwrite_option
from e3d_deploy.commands._output import megabytes, next_command


@click.command()
@click.argument("parts", nargs=-1, required=True, metavar="FOLDER_OR_PARTS", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Model file, .safetensors.")
@overwrite_option("model")
def join(parts: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    """Join what `e3d train --parts` wrote into a model file of float16 weights.

    Takes the newest set of parts that is whole.
    """
    from e3d_deploy.commands._places import check_apart
    from e3d_deploy.errors import ConfigError
    from e3d_deploy.files import check_place, write_file
    from e3d_deploy.parts import find_parts
    from e3d_deploy.parts import join as join_parts

    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; give the name of a model file")
    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: is there already; give --overwrite to replace it, or another name")
    check_place(output)
    found = find_parts(parts)
    check_apart(output, *found)
    joined = join_parts(found)
    write_file(output, joined.content)
    click.echo(output)
    click.echo(f"step {joined.step}, {megabytes(len(joined.content))}", err=True)
    for remark in joined.left_out:
        click.echo(f"left out: {remark}", err=True)
    next_command("export", output, "-o", f"{output.stem}.e3d")
