"""Help of the commands: readable at 80 columns, complete, and with examples that can be typed."""

import re
import shlex
from pathlib import Path

import click
import pytest

from e3d_deploy import errors
from e3d_deploy.cli import GROUPS, main
from e3d_deploy.commands._help import GroupedCommand, Option, WithExamples
from e3d_deploy.commands.help import REMEDIES
from tests.tools import e3d

DOCS = Path(__file__).parents[2] / "docs" / "commands.md"


def all_commands(group: click.Group = main, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    """Return the commands and groups below a group, by the words that a user types."""
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in group.commands.items():
        found[*above, name] = command
        if isinstance(command, click.Group):
            found |= all_commands(command, (*above, name))
    return found


COMMANDS = all_commands()
PAGES = {
    **{words: (*words, "--help") for words in [(), *COMMANDS]},
    ("train", "all options"): ("train", "--help-all"),
    ("help", "exit codes"): ("help", "exit-codes"),
    ("help", "completion"): ("help", "completion"),
}
"""Arguments that print each page of the help."""


def text_of(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a page of the help at a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    return e3d(*arguments).stdout


@pytest.mark.parametrize("arguments", PAGES.values(), ids=" ".join)
def test_a_page_fits_in_80_columns(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(*arguments, monkeypatch=monkeypatch)
    assert max(map(len, text.splitlines())) <= 80
    assert "INTEGER" not in text
    assert "default: (" not in text
    if "--help-all" not in arguments:
        assert len(text.splitlines()) <= 80


def test_the_overview_shows_a_whole_sentence_for_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = text_of("--help", monkeypatch=monkeypatch).splitlines()
    for commands in GROUPS.values():
        for command in commands:
            (line,) = (line for line in lines if line.startswith(f"  {command.name} "))
            assert re.search(r"  [A-Z][^.]*[^.]\.$", line)
    assert lines[-1] == "See e3d COMMAND --help for options, and e3d help exit-codes for exit codes."


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_two_examples_end_the_help_of_every_command_and_parse(words: tuple[str, ...], tmp_path: Path) -> None:
    command = COMMANDS[words]
    assert isinstance(command, WithExamples)
    assert len(command.examples) == 2
    for line in command.examples:
        assert f"  {line}\n" in e3d(*words, "--help").stdout
        program, *arguments = shlex.split(line)
        assert program == "e3d"
        assert tuple(arguments[: len(words)]) == words
        called = max((one for one in COMMANDS if tuple(arguments[: len(one)]) == one), key=len)
        assert COMMANDS[called].make_context(called[-1], arguments[len(called) :]).params


@pytest.mark.parametrize("words", [words for words, one in COMMANDS.items() if isinstance(one, GroupedCommand)])
def test_every_option_is_in_one_group(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert isinstance(command, GroupedCommand)
    names = [name for group in (*command.groups.values(), *command.more.values()) for name in group]
    options = {one.name for one in command.params if isinstance(one, click.Option)} - {"help_all"}
    assert len(names) == len(set(names))
    if command.groups:
        assert set(names) == options


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_is_described(words: tuple[str, ...]) -> None:
    """A text stands alone: it begins with a capital or a choice, ends with a full stop, and refers to no other line."""
    context = click.Context(COMMANDS[words], info_name=words[-1])
    for option in COMMANDS[words].params:
        if isinstance(option, click.Option):
            assert isinstance(option, Option)
            record = option.get_help_record(context)
            assert record is not None
            text = record[1].partition("  [")[0]
            assert text.endswith(".")
            assert not re.search(r"\b(else|likewise)\b|^(Of|Whose|Which|Such|The same)\b", text, re.IGNORECASE)


def test_help_all_lists_every_option() -> None:
    short, full = e3d("train", "--help").stdout, e3d("train", "--help-all").stdout
    flags = {flag for one in main.commands["train"].params for flag in one.opts}
    assert all(re.search(rf"(^|\s){flag}\b", full) for flag in flags)
    assert "--ema-decay" not in short
    assert re.fullmatch("Show all options: (e3d|main) train --help-all", short.splitlines()[-1])


def test_a_command_without_further_options_has_no_help_all() -> None:
    assert "No such option" in e3d("verify", "--help-all", code=2).stderr


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=" ".join)
def test_help_of_a_command_is_the_page_of_the_command(words: tuple[str, ...]) -> None:
    assert e3d("help", *words).stdout == e3d(*words, "--help").stdout


def test_an_unknown_topic_lists_the_topics() -> None:
    for topic in (["exit-code"], ["train", "all"], ["cache", "fill"]):
        error = e3d("help", *topic, code=2).stderr.splitlines()[-1]
        assert error.startswith(
            f"Error: got the unknown topic '{' '.join(topic)}', expected one of: exit-codes, completion, data, "
        )
        assert ", doctor" in error


def test_exit_codes_names_every_error_and_code() -> None:
    text = e3d("help", "exit-codes").stdout
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.E3DError)]
    assert {one.exit_code for one in classes} == set(REMEDIES) - {0}
    for error in set(classes) - {errors.E3DError}:
        section = text.partition(f"Exit code {error.exit_code} ")[2].partition("\nExit code")[0]
        assert f"  {error.__name__} " in section
    assert all(f"  {code}  SIG" in text for code in (129, 130, 143))


def test_the_docs_have_the_same_exit_codes() -> None:
    rows = re.findall(
        r"^\| (\d+) \| ", DOCS.read_text().partition("## Exit codes")[2].partition("\n## ")[0], re.MULTILINE
    )
    assert list(map(int, rows)) == [*REMEDIES, 129, 130, 143]
