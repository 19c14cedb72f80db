"""Output of the commands: results on stdout, progress and remarks on stderr."""

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from e3d_deploy.commands._process import randomness_kept
from e3d_deploy.errors import E3DError, QualityError
from e3d_deploy.json_values import json_values
from e3d_deploy.progress import Notify, is_animated

GAP, FOLDED, NARROWEST = 2, 24, 20
"""Gap between columns, minimum width of a folded column, and minimum width of a terminal (characters)."""
INTERVAL_S = 10.0
"""Minimum time between two lines of progress in a log, or on a terminal that cannot erase lines (s)."""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1, err: bool = False) -> None:
    """Print a table.

    If the table does not fit on the terminal, its last column is folded, provided that the column contains text.
    Otherwise each row is printed as a block of lines. A pipe or a file gets the full width.

    Args:
        columns: titles.
        rows: cells of each row.
        left: number of columns, from the first, that are aligned to the left. The remaining columns are aligned to the
            right.
        err: print on stderr instead of stdout.
    """
    with randomness_kept():
        from rich.cells import cell_len

    records = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *records, strict=True)]
    out = sys.stderr if err else sys.stdout
    room, others = _terminal_width(out), sum(widths[:-1]) + GAP * (len(widths) - 1)
    foldable = left >= len(columns) or len(columns) == 2
    if room is None or others + widths[-1] <= room:
        _print_table(out, columns, records, left=left, width=others + widths[-1])
    elif foldable and others + FOLDED <= room:
        _print_table(out, columns, records, left=len(columns), width=room)
    else:
        _print_records(out, columns, records, width=room)


def _print_table(out: TextIO, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int, width: int) -> None:
    with randomness_kept():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

    shown = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns, 1):
        last = number == len(columns)
        shown.add_column(Text(column), justify="left" if number <= left else "right", overflow="fold", no_wrap=not last)
    for row in rows:
        shown.add_row(*map(Text, row))
    Console(file=out, highlight=False, width=max(width, 1), force_terminal=is_coloured(out)).print(shown)


def _print_records(out: TextIO, columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int) -> None:
    """Print a block of lines for each row: one line for each cell that is not empty, after the title of its column."""
    with randomness_kept():
        from rich.cells import cell_len
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

    shown = Table.grid(padding=(0, GAP, 0, 0))
    shown.add_column(width=min(max(map(cell_len, columns)), width // 2), overflow="fold")
    shown.add_column(overflow="fold")
    for number, row in enumerate(rows):
        if number:
            shown.add_row()
        for column, cell in zip(columns, row, strict=True):
            if cell:
                shown.add_row(Text(column), Text(cell))
    Console(file=out, highlight=False, width=width, force_terminal=is_coloured(out)).print(shown)


def _terminal_width(out: TextIO) -> int | None:
    """Return the width of the terminal, or None if the stream is not a terminal."""
    return max(shutil.get_terminal_size().columns, NARROWEST) if out.isatty() else None


def is_coloured(stream: TextIO) -> bool:
    """Return True if colours are printed on a stream.

    A terminal that is not dumb gets colours. NO_COLOR and FORCE_COLOR override this.
    """
    if os.environ.get("NO_COLOR"):
        return False
    return os.environ.get("FORCE_COLOR", "0") not in ("", "0") or is_animated(stream)


def as_json(value: Mapping[str, Any]) -> None:
    """Print the JSON document of a command on stdout, with null for numbers that are not finite."""
    click.echo(json.dumps(json_values(value), indent=2, allow_nan=False))


def verdict(passed: bool, text: str, *, remedy: str = "", failure: type[E3DError] = QualityError) -> None:
    """Print the verdict of a check on stderr, and end the command if the check failed.

    All verdicts that pass or fail are printed by this function.

    Args:
        passed: the check passed.
        text: result of the check.
        remedy: what to do about a failure, printed on the same line.
        failure: error class that has the exit code of a failed check.
    """
    _first_word("PASS" if passed else "FAIL", "green" if passed else "red")
    click.echo(text if passed or not remedy else f"{text}; {remedy}", err=True)
    if not passed:
        raise click.exceptions.Exit(failure.exit_code)


def warn(text: str) -> None:
    """Print a warning on stderr: the command succeeded, but its result was not verified or is incomplete."""
    _first_word("WARN", "yellow")
    click.echo(text, err=True)


def _first_word(word: str, colour: str) -> None:
    click.secho(f"{word} ", fg=colour, nl=False, err=True, color=is_coloured(sys.stderr))


def next_command(*words: object, how: str = "") -> None:
    """Print the next command to run on stderr.

    Args:
        words: arguments of `e3d`.
        how: text after the command.
    """
    click.echo(f"next: {_program()} {shlex.join(map(_word, words))}{how}", err=True)


def _program() -> str:
    """Return the name of the program, or the path that was typed if `e3d` is not on PATH."""
    typed = Path(sys.argv[0])
    return shlex.quote(sys.argv[0]) if typed.name == "e3d" and shutil.which("e3d") is None else "e3d"


def _word(word: object) -> str:
    """Return a word of a command. A path that starts with a dash gets the prefix `./`, so that it is not an option."""
    return os.path.join(".", word) if isinstance(word, Path) and str(word).startswith("-") else str(word)


@contextmanager
def working(text: str) -> Iterator[Notify]:
    """Show the progress of a block on stderr.

    A terminal shows a status line, which is erased at the end. Other outputs get plain lines.

    Yields:
        A function that shows the current phase.
    """
    if not is_animated(sys.stderr):
        click.echo(text, err=True)
        yield now_and_then(text)
        return
    with randomness_kept():
        from rich.console import Console
        from rich.text import Text

    console = Console(stderr=True, force_terminal=True, no_color=not is_coloured(sys.stderr))
    spinner = "dots" if (console.encoding or "").startswith("utf") else "line"
    with console.status(Text(text), spinner=spinner) as status:
        yield lambda phase: status.update(Text(f"{text}: {phase}"))


def now_and_then(text: str) -> Notify:
    """Return a function that prints a phase as a line, at most once per `INTERVAL_S`."""
    last = time.monotonic()

    def show(phase: str) -> None:
        nonlocal last
        if time.monotonic() - last >= INTERVAL_S:
            last = time.monotonic()
            click.echo(f"{text}: {phase}", err=True)

    return show


def megabytes(count: int) -> str:
    """Format a number of bytes in MB."""
    return f"{count / 1e6:.1f} MB"


def grouped(value: object) -> str:
    """Format a value for a table, with commas between groups of three digits."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
