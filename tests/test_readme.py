"""Commands, links and numbers of the README and the docs, compared with the code and the results."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest

from benchmarks import clip
from benchmarks.readme import PLACES, section
from e3d_deploy.cli import GROUPS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DEPLOYED = sorted((ROOT / "deploy").glob("*/README.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "e3d_deploy" / "data" / "README.md",
    *DEPLOYED,
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMANDS = re.findall(r"^e3d .+$", README, re.MULTILINE)


def test_its_python_runs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(exported)
    camera = np.load(exported / "clip.npy")
    names: dict[str, object] = {"camera": camera}
    exec(code.replace("demo.e3d", "tiny.e3d"), names)
    assert names["future"].shape == (10, 16, 24, 1)  # type: ignore[attr-defined]
    assert names["fork"].pushed == len(camera)  # type: ignore[attr-defined]


@pytest.mark.parametrize("line", COMMANDS)
def test_its_commands_exist_with_these_options(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = main.commands[name]
    if isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.commands[name]
    context = command.make_context(name, arguments, resilient_parsing=False)
    assert context.params


def test_it_lists_the_commands_by_the_tasks_of_the_help() -> None:
    block = README.partition("## Commands")[2].partition("```\n")[2].partition("```")[0]
    parts = dict(part.split("\n", 1) for part in block.strip().removeprefix("# ").split("\n\n# "))
    shown = {task: {line.split()[1] for line in lines.splitlines()} for task, lines in parts.items()}
    assert shown == {task: {one.name for one in commands} - {"demo"} for task, commands in GROUPS.items()}


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
