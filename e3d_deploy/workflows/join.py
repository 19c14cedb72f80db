"""Join of the parts that training writes, into a model file."""

from collections.abc import Iterable
from pathlib import Path

from e3d_deploy.errors import ConfigError
from e3d_deploy.files import check_writable, write_file
from e3d_deploy.parts import JoinedModel, find_parts, join
from e3d_deploy.paths import check_path
from e3d_deploy.workflows.places import check_apart


def join_parts(parts: Iterable[str | Path], output: str | Path, *, overwrite: bool = False) -> JoinedModel:
    """Join the parts of a training run into a model file with float16 weights.

    Args:
        parts: folders of parts, or parts; the newest complete set is used.
        output: model file to write.
        overwrite: replace an existing file.

    Returns:
        The content of the model file, its optimizer step, and remarks on parts that were left out.

    Raises:
        CheckpointError: a part does not exist, the parts belong to several runs, or no set is complete.
        ConfigError: the output path exists, is a folder, is an input or cannot be written.
    """
    output = check_path("output", output)
    if output.is_dir():
        raise ConfigError(f"{output}: got a folder, expected the path of a model file; choose another name")
    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: already exists; give --overwrite to replace it, or another name")
    check_writable(output)
    if isinstance(parts, str | Path):
        raise ConfigError(f"parts: got {str(parts)!r}, expected a list of folders or parts, such as [{str(parts)!r}]")
    found = find_parts([check_path("parts", one) for one in parts])
    check_apart(output, *found)
    joined = join(found)
    write_file(output, joined.content)
    return joined
