"""Output of the commands: results on stdout, progress and remarks on stderr."""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from e3d_deploy.commands._process import randomness_kept
from e3d_deploy.errors import E3DError, QualityError
from e3d_deploy.json_values import json_values
from e3d_deploy.progress import Notify

SAID_EVERY_S = 10.0
"""Time between two lines of progress where stderr is no terminal (s)."""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> None:
    """A table on stdout; the first `left` columns are left aligned, the others right."""
    with randomness_kept():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

    shown = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        shown.add_column(column, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(shown)


def as_json(value: Mapping[str, Any]) -> None:
    """Print the one JSON document of a command on stdout, with null for numbers that are not finite."""
    click.echo(json.dumps(json_values(value), indent=2, allow_nan=False))


def verdict(passed: bool, text: str, *, remedy: str = "", failure: type[E3DError] = QualityError) -> None:
    """Print the verdict of a check on stderr, the only place that does; end the command if the check failed.

    Args:
        text: the finding.
        remedy: what to do about a failure, printed on the same line.
        failure: error whose exit code a failed check ends with.
    """
    click.secho("PASS " if passed else "FAIL ", fg="green" if passed else "red", nl=False, err=True)
    click.echo(text if passed or not remedy else f"{text}; {remedy}", err=True)
    if not passed:
        raise click.exceptions.Exit(failure.exit_code)


def warn(text: str) -> None:
    """Print a verdict on stderr that is neither passed nor failed: the command did not prove something."""
    click.secho("WARN ", fg="yellow", nl=False, err=True)
    click.echo(text, err=True)


def next_command(*words: object, how: str = "") -> None:
    """Print on stderr the command to run next, followed by a hint on how to complete it."""
    click.echo(f"next: e3d {shlex.join(map(str, words))}{how}", err=True)


@contextmanager
def working(text: str) -> Iterator[Notify]:
    """A line on stderr that shows what is going on, and goes away after it; else a line now and then."""
    with randomness_kept():
        from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        click.echo(text, err=True)
        yield _now_and_then(text)
        return
    with console.status(text) as status:
        yield lambda phase: status.update(f"{text}: {phase}")


def _now_and_then(text: str) -> Notify:
    """Return what prints a line if the last one was printed some time ago."""
    said = time.monotonic()

    def notify(phase: str) -> None:
        nonlocal said
        if time.monotonic() - said >= SAID_EVERY_S:
            said = time.monotonic()
            click.echo(f"{text}: {phase}", err=True)

    return notify


def megabytes(count: int) -> str:
    """A size in bytes, to be read."""
    return f"{count / 1e6:.1f} MB"


def check_picture(path: Path | None) -> None:
    """Check that a picture can be drawn and written to a path, before any work is done."""
    from e3d_deploy.errors import ConfigError

    if path is not None:
        import matplotlib.figure  # noqa: F401 (a missing library shall show now)

        folder = path.absolute().parent
        if not folder.is_dir():
            raise ConfigError(f"{path}: its folder does not exist; make it first")
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; give the name of a file, such as {path / 'picture.png'}")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise ConfigError(f"{path}: may not be written; give another name, or change who may")


def grouped(value: object) -> str:
    """Format a value for a table, large numbers in groups of three digits."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
