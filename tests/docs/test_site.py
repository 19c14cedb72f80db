"""The documentation site: it builds without warnings, its links lead somewhere, and it needs no network."""

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import click
import pytest
from mkdocs.config import load_config

from e3d_deploy import runtime
from e3d_deploy.cli import main
from tests.docs.blocks import ROOT
from tests.test_docs import listed_errors

LOADED = ("script", "link", "img", "iframe", "source", "video")
"""Elements whose address a browser loads without a click."""


class Page(HTMLParser):
    """Names and addresses in a page of the site."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        if address := given.get("href") or given.get("src"):
            (self.loaded if tag in LOADED else self.links).append(address)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the site, and what the build printed."""
    site = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return site, done.stdout + done.stderr


@pytest.fixture(scope="session")
def site(built: tuple[Path, str]) -> Path:
    return built[0]


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def entries(nav: object) -> Iterator[str]:
    """Yield the pages of a navigation."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for value in nav.values():
            yield from entries(value)
    elif isinstance(nav, list):
        for value in nav:
            yield from entries(value)


def text_of(page: Path) -> str:
    """Return the visible text of a page."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_the_site_builds_without_warnings(built: tuple[Path, str]) -> None:
    assert [line for line in built[1].splitlines() if "WARN" in line or "MkDocs 2" in line] == []


def test_every_page_of_the_docs_is_in_the_navigation_once() -> None:
    listed = sorted(entry for entry in entries(load_config(str(ROOT / "mkdocs.yml")).nav) if "/" not in entry)
    written = sorted(page.name for page in (ROOT / "docs").glob("*.md"))
    assert [entry for entry in listed if entry != "COMMANDS"] == written


def test_links_of_the_site_lead_to_pages_and_anchors(site: Path, pages: dict[Path, Page]) -> None:
    lost = []
    for path, page in pages.items():
        for link in page.links:
            address, anchor = urldefrag(unquote(link))
            if re.match(r"[a-z]+:", address) or path.name == "404.html":
                continue
            target = (path.parent / address).resolve() if address else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert lost == []


def test_a_browser_loads_nothing_from_the_network(site: Path, pages: dict[Path, Page]) -> None:
    outside = r"(https?:)?//"
    assert [address for page in pages.values() for address in page.loaded if re.match(outside, address)] == []
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert [found for style in styles for found in re.findall(r"url\((?:https?:)?//[^)]+\)", style)] == []


def test_the_search_finds_every_error_by_its_text(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    titles = {html.unescape(re.sub(r"<[^>]+>", "", one["title"])) for one in index["docs"]}
    assert set(listed_errors()) <= titles


def options(command: click.Command) -> Iterator[str]:
    """Yield the long names of the options of a command and of its commands."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from options(inner)
    for one in command.params:
        if isinstance(one, click.Option) and not one.hidden:
            yield max(one.opts, key=len)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_the_page_of_a_command_has_all_options_and_examples(site: Path, name: str) -> None:
    command = main.commands[name]
    text = text_of(site / "reference" / f"e3d-{name}.html")
    assert [option for option in options(command) if option not in text] == []
    assert [line for line in getattr(command, "examples", ()) if line not in text] == []


def test_the_reference_of_python_has_every_name_of_the_runtime(site: Path) -> None:
    text = " ".join(text_of(site / "reference" / f"python-{name}.html") for name in ("runtime", "errors"))
    assert [name for name in runtime.__all__ if name not in text] == []
