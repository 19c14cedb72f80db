"""Links and numbers of the README and the docs, and the list of commands, compared with the code and the results."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import clip
from benchmarks.readme import PLACES, section
from e3d_deploy.cli import GROUPS

ROOT = Path(__file__).parents[1]
DEPLOYED = sorted((ROOT / "deploy").glob("*/README.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "e3d_deploy" / "data" / "README.md",
    *DEPLOYED,
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_the_commands_are_listed_by_the_tasks_of_the_help() -> None:
    section = (ROOT / "docs" / "commands.md").read_text().partition("## All commands by task\n")[2]
    tasks = section.partition("\n## ")[0].split("\n### ")[1:]
    shown = {task.split("\n")[0]: set(re.findall(r"^e3d (\S+)", task, re.MULTILINE)) for task in tasks}
    assert shown == {task: {one.name for one in commands} for task, commands in GROUPS.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link]
    for link in links:
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        headings = (
            [re.sub(r"[^\w -]", "", title) for title in re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)]
            if heading
            else []
        )
        assert not heading or heading in {title.lower().replace(" ", "-") for title in headings}, link


@pytest.mark.parametrize(
    ("file", "name", "write"),
    [(file, name, write) for file, sections in PLACES.items() for name, write in sections.items()],
)
def test_numbers_are_those_that_were_measured(file: Path, name: str, write: Callable[[], str]) -> None:
    assert section(name, write()) in file.read_text()


def test_a_benchmark_of_builds_says_how_often_each_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/engines.md contains a sentence that is generated from this number."""
    monkeypatch.setattr(clip, "library", lambda _: SimpleNamespace(__version__="1.7"))
    monkeypatch.setattr(clip, "build_plan", lambda *_: b"plan")
    assert clip.build({"naive": tmp_path, "ours": tmp_path}, 2)["rounds"] == {"naive": 2, "ours": 2}
