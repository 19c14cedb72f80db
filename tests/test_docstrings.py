"""First words of docstrings: each first line stands alone, as a verb phrase or a noun phrase."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECKED = ("benchmarks", "e3d_deploy", "tests")
"""Folders whose Python files are checked."""
DECODED = frozenset({"What", "Of", "Whether", "How", "Who", "As", "That", "Where", "Which"})
"""First words that make sense only after another sentence."""


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstrings of modules, classes, functions and fields."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def offenders(source: str) -> list[int]:
    """Return the lines of docstrings that begin with a word of `DECODED`."""
    return [line for line, text in docstrings(source) if text.split()[:1] and text.split()[0].rstrip(",.:") in DECODED]


def files() -> list[Path]:
    return sorted(file for folder in CHECKED for file in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_docstring_begins_with_a_word_that_leans_on_another_line(file: Path) -> None:
    assert offenders(file.read_text()) == []


def test_docstrings_are_found_wherever_they_stand() -> None:
    source = (
        '"""What is."""\nclass A:\n    """As B."""\n    x = 1\n    """Which."""\n    def f(self):\n        "Whatever"'
    )
    assert offenders(source) == [1, 3, 5]
