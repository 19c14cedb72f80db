"""Installed Python distributions, read from their metadata without importing them."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Installed:
    """One installed distribution."""

    name: str
    version: str
    folder: Path
    """Folder of `sys.path` that contains the distribution."""
    source: Path | None = None
    """Source folder of an editable installation."""
    is_source: bool = False
    """True for the metadata that setuptools leaves in a source folder."""

    def text(self, file: str) -> str:
        """Return the content of a file of the distribution; empty if it cannot be read."""
        with suppress(OSError):
            return (self.folder / file).read_text(errors="replace")
        return ""


@dataclass(frozen=True)
class Site:
    """Folders in which Python looks for distributions."""

    path: Sequence[str] = field(default_factory=lambda: tuple(sys.path))

    def all(self, name: str) -> list[Installed]:
        """Return the distributions of a name, one per folder, in the order of `sys.path`."""
        found: dict[Path, Installed] = {}
        for one in distributions(name=name, path=list(self.path)):
            with suppress(Exception):  # damaged metadata
                read = _read(name, one)
                found.setdefault(read.folder, read)
        return list(found.values())

    def find(self, *names: str) -> Installed | None:
        """Return the first distribution that has one of the names."""
        return next((one for name in names for one in self.all(name)), None)


def _read(name: str, one: Distribution) -> Installed:
    folder = Path(str(one.locate_file(""))).resolve()
    origin = json.loads(one.read_text("direct_url.json") or "{}")
    editable = origin.get("dir_info", {}).get("editable", False)
    source = Path(unquote(urlsplit(origin["url"]).path)) if editable else None
    is_source = str(getattr(one, "_path", "")).endswith(".egg-info") and (folder / "pyproject.toml").exists()
    return Installed(name, str(one.version), folder, source, is_source)
