"""Idioms that are hard to understand, and the plain words that the project uses in their place."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IDIOMS = {
    r"(?<!there )\b(is|are) (none(?! of)|no (clip|file|number|finite|valid|name|picture|bundle|model))\b": "is not",
    r"\b(whoever|somebody|whomever)\b": "the caller, the stream that …",
    r"\b(go|goes|going) on (with|by|from|without)\b": "continue",
    r"\b(take|takes|taken) again\b": "reuse",
    r"\banew\b": "again",
    r"\blikewise\b": "the same, in full",
    r"\bwhole or not (there|at all)\b": "complete, or absent",
    r"\b(is|are) of `?--": "requires, applies only to",
    r"\bwhat (came|there is)\b": "the noun",
    r"\bon (its|their) way\b": "in progress",
    r"\bat hand\b": "available",
    r"\b(none|nothing) the worse\b": "unaffected",
    r"\bwho is in\b|\bwho is (ready|left|there|stepped)\b": "the streams that …",
    r"\bthe first first\b": "in order",
    r"\bso many (streams|frames|steps|clips)\b": "this number of …",
    r"; else (as|that|those|the|its|so|found|what)\b": "by default, otherwise",
}
"""Idiom, as a pattern, and the plain form."""


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of the prose of a file; in Python: docstrings, comments, and strings with spaces."""
    source = file.read_text()
    if file.suffix != ".py":
        yield from enumerate(source.splitlines(), 1)
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def decoded(file: Path) -> list[str]:
    """Return the idioms in a file, each with its line and plain form."""
    return [
        f"{line}: {found[0]!r}, better {plain!r}"
        for line, text in texts(file)
        for idiom, plain in IDIOMS.items()
        if (found := re.search(idiom, text))
    ]


def files() -> list[Path]:
    return sorted([*(ROOT / "e3d_deploy").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"])


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_prose_is_plain(file: Path) -> None:
    assert decoded(file) == []


def test_idioms_are_found_in_docstrings_comments_and_strings(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text('"""A file that is none."""\nx = 1  # and goes on with it\ny = f"begin {x} anew"\n')
    assert [line.partition(":")[0] for line in decoded(file)] == ["1", "3", "2"]
