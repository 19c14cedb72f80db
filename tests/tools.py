"""Helpers shared by test files."""

import os
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from torch import Tensor

from e3d_deploy.cli import main
from e3d_deploy.data.form import Form


def e3d(*arguments: object, code: int = 0) -> Result:
    """Run a command, and check its exit code."""
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


def with_form(*, image_size: tuple[int, int], channels: int, **options: Any) -> dict[str, Any]:
    """Return options of a reader, with `form` made of two of the given options."""
    return {"form": Form(image_size=image_size, channels=channels), **options}


def perturb(monkeypatch: pytest.MonkeyPatch, kind: type, by: float = 0.01) -> None:
    """Make the results of a backend differ from PyTorch."""
    step = kind.step  # type: ignore[attr-defined]

    def wrong(self: Any, *arguments: Any) -> Any:
        prediction, state = step(self, *arguments)
        return prediction + np.float32(by), state

    monkeypatch.setattr(kind, "step", wrong)


class Terminal(StringIO):
    """Stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


class Broken(TextIOWrapper):
    """Stream whose disk is full, or whose reader is gone."""

    def __init__(self, number: int) -> None:
        super().__init__(BytesIO(), encoding="utf-8")
        self.number = number

    def write(self, _: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


class Clock:
    """Simulated clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
