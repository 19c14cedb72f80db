"""Helpers of several test files."""

from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from torch import Tensor

from e3d_deploy.cli import main
from e3d_deploy.data.form import Form


def e3d(*arguments: object, code: int = 0) -> Result:
    """Run a command, which must end with this code."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of all files in a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest absolute difference of two tensors of one shape."""
    assert ours.shape == theirs.shape
    return (ours.detach() - theirs).abs().max().item()


def formed(*, image_size: tuple[int, int], channels: int, **options: Any) -> dict[str, Any]:
    """Return options of a reader, with the form of frames made of two of them."""
    return {"form": Form(image_size=image_size, channels=channels), **options}


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
