"""Files of the live page, and the URL paths at which they are served."""

from importlib.resources import files
from pathlib import Path

PAGE = Path(str(files("e3d_deploy.serve") / "page"))
"""Folder of the files of the page."""
PAGE_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
"""Media types of the page's files by suffix."""


def page_files() -> dict[str, Path]:
    """Return the files of the page by URL path: `index.html` at `/`, all further files below `/page/`."""
    found = {file.name: file for file in sorted(PAGE.glob("*")) if file.suffix in PAGE_TYPES}
    return {"/" if name == "index.html" else f"/page/{name}": file for name, file in found.items()}
