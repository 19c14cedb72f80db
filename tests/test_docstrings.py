"""First words of docstrings, which must not make the first line depend on another line."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "e3d_deploy"
CHECKED = ("benchmarks", PACKAGE, "tests")
"""Folders whose Python files are checked."""
DEPENDENT = frozenset({"What", "Of", "Whether", "How", "Who", "As", "That", "Where", "Which", "Why", "Whose", "So"})
"""First words that make sense only next to another line."""
NO_VERBS = frozenset(
    {
        "A",
        "An",
        "The",
        "One",
        "It",
        "Its",
        "This",
        "These",
        "If",
        "When",
        "For",
        "From",
        "In",
        "With",
        "Without",
        "After",
    }
)
"""First words that cannot begin the verb phrase of a function."""


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstrings of modules, classes, functions and fields."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def actions(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and docstring of the functions that are not properties."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and not any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
                yield node.lineno, text


def first_word(text: str) -> str:
    return text.split(maxsplit=1)[0].rstrip(",.:") if text.split() else ""


def offenders(source: str) -> list[int]:
    """Return the lines of docstrings that begin with a word that depends on another line."""
    return [line for line, text in docstrings(source) if first_word(text) in DEPENDENT]


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("file", files(*CHECKED), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_docstring_begins_with_a_word_that_depends_on_another_line(file: Path) -> None:
    assert offenders(file.read_text()) == []


@pytest.mark.parametrize("file", files(PACKAGE), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_function_says_first_what_it_does(file: Path) -> None:
    assert [line for line, text in actions(file.read_text()) if first_word(text) in NO_VERBS] == []


def test_docstrings_are_found_in_every_position() -> None:
    source = (
        '"""What is."""\nclass A:\n    """As B."""\n    x = 1\n    """Which."""\n    def f(self):\n        "Whatever"'
    )
    assert offenders(source) == [1, 3, 5]


def test_properties_are_nouns_and_other_functions_verbs() -> None:
    source = (
        '@property\ndef size():\n    "The size."\ndef grow():\n    "The larger one."\nasync def end():\n    "End."\n'
    )
    assert [(line, first_word(text)) for line, text in actions(source)] == [(4, "The"), (6, "End")]
