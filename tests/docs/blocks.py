"""Reads the code blocks of the README and the docs."""

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("python", "sh")
"""Languages of blocks that are run."""
SHOWN = ("bat", "dockerfile", "ini", "json", "make", "nginx", "protobuf", "text", "toml", "yaml")
"""Languages of blocks that are only shown."""
FENCE = re.compile(
    r"^(<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\S*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One code block of a page."""

    page: str
    """Path of the page, from the root of the repository."""
    line: int
    """Line of the first line of code."""
    language: str
    """Language after the backticks."""
    code: str
    """Text of the block."""
    reason: str | None
    """Reason why the block is not run; None if it is run, or only shown."""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @cached_property
    def commands(self) -> list[str]:
        """Command lines of a block in `sh`, without comments; a backslash continues a line."""
        if self.language != "sh":
            return []
        lines = self.code.replace("\\\n", " ").splitlines()
        return [line for line in lines if shlex.split(line, comments=True)]

    @property
    def made(self) -> set[str]:
        """Output paths of its commands."""
        if self.reason is not None:
            return set()
        return {path for line in self.commands for path in re.findall(r" -o (\S+)", line)}


def blocks_of(page: Path) -> list[Block]:
    """Return the code blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=str(page.relative_to(ROOT)),
            line=text.count("\n", 0, found.start("code")) + 1,
            language=found["language"],
            code=found["code"],
            reason=found["reason"],
        )
        for found in FENCE.finditer(text)
    ]


def e3d_arguments(line: str) -> list[str] | None:
    """Return the arguments of a command line that calls e3d; None for other programs."""
    program, *arguments = shlex.split(line, comments=True)
    return arguments if program in ("e3d", ".venv/bin/e3d") else None
