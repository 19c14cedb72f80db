"""The tables of docs/upgrade.md, compared with the code."""

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from e3d_deploy import __version__, api
from e3d_deploy.cli import main
from e3d_deploy.commands._renamed import RENAMED
from e3d_deploy.live.summary import SourceSummary, Summary
from tests.tools import e3d

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "upgrade.md").read_text()
OLD = ROOT / "tests" / "golden" / "faccf7a" / "tiny.e3d"
WARNS = "works with a"
"""Beginning of the third column for former names that still work."""


def rows(title: str) -> list[tuple[str, str, str]]:
    """Return the rows of the table below a heading."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    return [row for row in found if row[0] not in ("0.1", "command")]


def option_of(text: str) -> click.Option | None:
    """Return the option that a text such as "`e3d export --batch`" names; None if the command has no such option."""
    _, command, flag = text.split("`")[1].split()
    return next((one for one in main.commands[command].params if isinstance(one, click.Option) and flag in one.opts),
                None)  # fmt: skip


@pytest.mark.parametrize(("old", "new", "effect"), rows("Options"))
def test_options(old: str, new: str, effect: str) -> None:
    _, command, flag = old.split("`")[1].split()
    if effect.startswith(WARNS):
        assert RENAMED[command][flag] == new.split("`")[1].split()[2]
        assert option_of(new)
    elif effect.startswith("exit 2"):
        assert option_of(old) is None
        assert "No such option" in e3d(command, flag, "1", code=2).stderr
    else:
        option = option_of(new)
        assert option is not None
        default = option.show_default if isinstance(option.show_default, str) else option.default
        assert default == new.split("`")[3] != old.split("`")[3]


def test_each_former_option_is_in_the_table() -> None:
    listed = {old for old, _, _ in rows("Options")}
    assert {f"`e3d {command} {old}`" for command, names in RENAMED.items() for old in names} <= listed


def present(path: str) -> Any:
    """Return the object that a dotted path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("old", "new", "effect"), [row for row in rows("Python") if "e3d_deploy." in row[0]])
def test_moved_names(old: str, new: str, effect: str) -> None:
    assert present(new.strip("`")) is getattr(api, new.strip("`").rpartition(".")[2])
    module, _, name = old.strip("`").rpartition(".")
    if effect == "`ModuleNotFoundError`":
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(module)
    else:
        assert effect == "`ImportError`"
        assert not hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("old", "new", "effect"), [row for row in rows("Python") if "e3d_deploy." not in row[0]])
def test_changed_members(old: str, new: str, effect: str) -> None:
    if "(" in old:
        function, parameter = old.strip("`=)").split("(")
        parameters = inspect.signature(getattr(api, function)).parameters
        assert new.strip("`=)").split("(")[1] in parameters
        assert (parameter in parameters) == effect.startswith(WARNS)
    else:
        kind, member = old.strip("`").split(".")
        fields = {one.name for one in dataclasses.fields(getattr(api, kind))}
        assert new.strip("`").split(".")[1] in fields
        assert member not in fields
        assert effect == "`AttributeError`"


def paths(value: Any, above: str = "") -> Iterator[str]:
    """Yield the dotted path of each key of a JSON document."""
    for key, inside in value.items() if isinstance(value, dict) else ():
        yield f"{above}{key}"
        yield from paths(inside, f"{above}{key}.")


def test_json_keys() -> None:
    stream = {one.name for one in dataclasses.fields(Summary)}
    stream |= {f"sources.{one.name}" for one in dataclasses.fields(SourceSummary)}
    found = {
        "`e3d stream --json`": stream,
        "`e3d inspect --json`": set(paths(json.loads(e3d("inspect", OLD, "--json").stdout))),
    }
    table = rows("JSON")
    assert {command for command, _, _ in table} == set(found)
    assert [row for row in table if row[2].strip("`") not in found[row[0]]] == []
    assert [row for row in table if row[1].strip("`") in found[row[0]]] == []


def test_each_table_has_rows() -> None:
    assert min(len(rows(title)) for title in ("Options", "JSON", "Python")) >= 6


def test_the_version_is_that_of_the_page_and_of_the_changelog() -> None:
    assert f"from version 0.1 to {__version__.removesuffix('.0')}" in PAGE
    (newest, *_) = re.findall(r"^## (\S+),", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest == __version__


def test_former_names_work_for_one_minor_version_after_this_one() -> None:
    major, minor, _ = __version__.split(".")
    following = f"{major}.{int(minor) + 1}"
    assert f"until\n{following}" in PAGE or f"until {following}" in PAGE
    said = e3d("export", "none.safetensors", "-o", "o.e3d", "--target=abacus", code=2).stderr
    assert f"the former name will be removed in version {following}" in said
