"""What the README says, done."""

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
from e3d_deploy.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
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


def test_it_shows_each_command_but_the_demo() -> None:
    assert {line.split()[1] for line in COMMANDS} == set(main.commands) - {"demo"}


def test_its_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize(
    ("file", "name", "write"),
    [(file, name, write) for file, sections in PLACES.items() for name, write in sections.items()],
)
def test_numbers_are_those_that_were_measured(file: Path, name: str, write: Callable[[], str]) -> None:
    assert section(name, write()) in file.read_text()


def test_a_benchmark_of_builds_says_how_often_each_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence in docs/engines.md is made of it."""
    monkeypatch.setattr(clip, "library", lambda _: SimpleNamespace(__version__="1.7"))
    monkeypatch.setattr(clip, "build_plan", lambda *_: b"plan")
    assert clip.build({"naive": tmp_path, "ours": tmp_path}, 2)["rounds"] == {"naive": 2, "ours": 2}
