"""Form of the docs: lengths of lines, first paragraphs of pages, and texts of the errors in docs/errors.md."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from e3d_deploy import __version__

ROOT = Path(__file__).parent.parent
OTHERS = ("README.md", "CHANGELOG.md", "models/README.md", "e3d_deploy/data/README.md")
DEPLOYED = (ROOT / "deploy").glob("*/README.md")
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *DEPLOYED, *(ROOT / page for page in OTHERS)])
TASKS = [page for page in PAGES if page.parent.name == "docs"]
COLUMNS = 120
PLACEHOLDER = "…"
"""Placeholder for a formatted value in a message, in the docs and in `messages`."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_fit(page: Path) -> None:
    long = [number for number, line in enumerate(page.read_text().splitlines(), 1) if len(line) > COLUMNS]
    assert long == []


@pytest.mark.parametrize("page", TASKS, ids=lambda page: page.name)
def test_a_page_begins_with_what_its_reader_can_do_after_it(page: Path) -> None:
    title, first = page.read_text().split("\n\n", 2)[:2]
    assert title.startswith("# ")
    assert re.search(r"^After reading this page, you (can|know) ", first), first


def test_pages_name_the_wheel_of_this_version() -> None:
    found = [(page.name, wheel) for page in PAGES for wheel in re.findall(r"e3d_deploy-([\d.]+)-py3", page.read_text())]
    assert {page for page, _ in found} >= {"install.md", "triton.md"}
    assert [(page, wheel) for page, wheel in found if wheel != __version__] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_import_stable_names(page: Path) -> None:
    """The ASGI application of the server is the only other name that the pages offer."""
    imported = set(re.findall(r"^(?:from|import) (e3d_deploy\.[\w.]+)", page.read_text(), re.MULTILINE))
    others = {"e3d_deploy.serve.app", "e3d_deploy.serve.settings"} if page.name == "serve.md" else set()
    assert imported <= {"e3d_deploy.api", "e3d_deploy.runtime"} | others


@cache
def messages() -> tuple[str, ...]:
    """Return the texts of the package with each formatted value as `…`."""
    found = []
    for file in (ROOT / "e3d_deploy").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value.replace("{}", PLACEHOLDER))
    return tuple(found)


def is_said(text: str) -> bool:
    """Return True if a message of the package equals this text, with any text in place of each `…`."""
    pattern = ".*".join(map(re.escape, text.split(PLACEHOLDER)))
    return any(re.search(pattern, message, re.DOTALL) for message in messages())


def listed_errors() -> list[str]:
    """Return the messages that docs/errors.md explains: its headings of the third level."""
    return re.findall(r"^### `(.+)`$", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)


def test_errors_are_listed_by_the_text_that_users_see() -> None:
    texts = listed_errors()
    assert len(texts) >= 30
    assert [text for text in texts if not is_said(text)] == []


def test_a_text_that_no_message_contains_is_reported() -> None:
    assert is_said("expected 1 or more")
    assert not is_said("expected 1 or … fewer than none")
