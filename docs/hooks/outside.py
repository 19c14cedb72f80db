"""MkDocs hook: brings the files outside docs/ that pages link to into the site, and rewrites the links to them.

In the repository, pages link to each other with relative paths, such as `../CHANGELOG.md`. MkDocs knows only docs/. So
each file outside docs/ that a page links to is added to the site as `repository/PATH`, Markdown as a page.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
ADDED = "repository/"
"""Folder of the site for files outside docs/."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)(?=[)#])")
"""Path in a relative link, without its anchor."""


def on_files(files: Files, config: Any) -> None:
    """Add the files that the pages link to, and the files that those link to."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages() if not file.generated_by]
    while waiting:
        path = waiting.pop()
        for target in linked(path):
            if not target.startswith("docs/") and (ROOT / target).is_file() and site_path(target) not in files.src_uris:
                file = File.generated(config, site_path(target), abs_src_path=str(ROOT / target))
                file.inclusion = InclusionLevel.NOT_IN_NAV  # the navigation may contain it, and need not
                files.append(file)
                waiting.append(target)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the page with its links as they are in the site."""
    uri = page.file.src_uri
    if page.file.generated_by and not uri.startswith(ADDED):
        return markdown
    source = PurePosixPath(uri.removeprefix(ADDED) if uri.startswith(ADDED) else f"docs/{uri}")

    def moved(link: re.Match[str]) -> str:
        target = site_path(resolved(source, link[1]))
        return os.path.relpath(target, os.path.dirname(uri) or ".")

    return LINK.sub(moved, markdown)


def linked(path: str) -> Iterator[str]:
    """Yield the targets of the links in a Markdown file, as paths from the root of the repository."""
    if path.endswith(".md"):
        for link in LINK.findall((ROOT / path).read_text(encoding="utf-8")):
            yield resolved(PurePosixPath(path), link)


def resolved(source: PurePosixPath, link: str) -> str:
    """Return the target of a link in a file; the README of a folder that has one."""
    path = os.path.normpath(source.parent / link)
    return f"{path}/README.md" if (ROOT / path / "README.md").is_file() else path


def site_path(path: str) -> str:
    """Return the path in the site of a file of the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else ADDED + path
