"""Tables fit the terminal and have their full width in a pipe."""

import sys
from io import StringIO

import pytest
from rich.cells import cell_len

from e3d_deploy.commands._output import table
from tests.tools import Terminal

COLUMNS = ["backend", "median", "95% CI", "why"]
ROWS = [
    ("onnxruntime", "1.20 ms", "1.10–1.30", "agrees with the reference, and is the fastest of all that do"),
    ("torch", "9.87 ms", "", "the yardstick"),
]


def shown(monkeypatch: pytest.MonkeyPatch, width: int | None, *, left: int) -> list[str]:
    """Return the lines of the table on a terminal of this width, or in a pipe."""
    out = StringIO() if width is None else Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", str(width or 40))
    monkeypatch.setenv("NO_COLOR", "1")
    table(COLUMNS, ROWS, left=left)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert width is None or max(map(len, lines)) <= width
    return lines


@pytest.mark.parametrize("width", [None, 200])
def test_a_row_is_one_line_if_it_fits(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, width, left=4)
    assert lines[0].split() == ["backend", "median", "95%", "CI", "why"]
    assert len(lines) == 3
    assert lines[1].endswith("fastest of all that do")


def test_a_pipe_gets_rows_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    out = StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    table(["name", "text"], [["a", "word " * 100 + "end"]])
    assert len(out.getvalue().splitlines()) == 2


def test_a_last_column_of_text_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, 80, left=4)
    assert lines[1].startswith("onnxruntime  1.20 ms  1.10–1.30  agrees with the reference")
    told = f"{lines[1].split('1.10–1.30')[1].strip()} {lines[2].strip()}"
    assert told == "agrees with the reference, and is the fastest of all that do"


@pytest.mark.parametrize(("width", "left"), [(78, 1), (50, 4), (24, 4), (20, 1)])
def test_a_row_is_a_block_of_lines_if_it_does_not_fit(width: int, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, width, left=left)
    assert lines[0].split() == ["backend", "onnxruntime"]
    assert lines[1].split() == ["median", "1.20", "ms"]
    second = lines[lines.index("") + 1 :]
    assert second[0].split() == ["backend", "torch"]
    assert not any(line.startswith("95% CI") for line in second)  # the cell is empty
    words = " ".join(line[len("backend") :].strip() for line in lines)
    assert "is the fastest" in words.replace("  ", " ")


def test_long_words_and_names_of_columns_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "40")
    table(["the 10 weights that changed most of all", "b", "c"], [["x" * 90, "1", "2"]])
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert "".join(lines).count("x") == 90


def test_wide_characters_fit_a_narrow_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "24")
    table(["name", "text", "more"], [["映像", "予測された映像の一覧です", "予測" * 10]], left=3)
    assert max(map(cell_len, out.getvalue().splitlines())) <= 24
    assert "".join(out.getvalue().split()).count("予測") == 11
