"""First words of docstrings: each first line stands alone, as a verb phrase or a noun phrase."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECKED = (
    "benchmarks/gpu",
    "e3d_deploy/commands/joining.py",
    "e3d_deploy/export/ring_states.py",
    "e3d_deploy/parts.py",
    "e3d_deploy/tf32.py",
    "e3d_deploy/training/pace.py",
)
"""Files, and folders with all their files, that keep the rule; new ones are added here."""
DECODED = frozenset({"What", "Of", "Whether", "How", "Who", "As"})
"""First words that make sense only beside the line above."""


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstrings of modules, classes, functions and fields."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def offenders(source: str) -> list[int]:
    """Return the lines of docstrings that begin with a word that none may begin with."""
    return [line for line, text in docstrings(source) if text.split()[:1] and text.split()[0] in DECODED]


def files() -> list[Path]:
    paths = [ROOT / path for path in CHECKED]
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_docstring_begins_with_a_word_that_leans_on_another_line(file: Path) -> None:
    assert offenders(file.read_text()) == []


def test_docstrings_are_found_wherever_they_stand() -> None:
    source = (
        '"""What is."""\nclass A:\n    """As B."""\n    x = 1\n    """Of B."""\n    def f(self):\n        "Whatever"'
    )
    assert offenders(source) == [1, 3, 5]
