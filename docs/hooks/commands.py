"""MkDocs hook: writes one reference page per command of `e3d`, from the same objects as its help."""

import html
import inspect
import re
from collections.abc import Iterator
from typing import Any

import click
from mkdocs.structure.files import File, Files

from e3d_deploy.cli import GROUPS, main
from e3d_deploy.commands._help import UNBROKEN, GroupedCommand, WithExamples

PLACE = "COMMANDS"
"""Entry of the navigation that the pages of the commands replace."""


def on_config(config: Any) -> None:
    """Put the pages of the commands into the navigation."""
    fill(config.nav)


def on_files(files: Files, config: Any) -> None:
    """Add a page for each command."""
    for commands in GROUPS.values():
        for command in commands:
            files.append(File.generated(config, uri(command), content=page(command)))


def fill(nav: list[Any]) -> None:
    """Replace `PLACE` by the commands, grouped by task."""
    for index, entry in enumerate(nav):
        if entry == PLACE:
            nav[index : index + 1] = [
                {task: [{f"e3d {command.name}": uri(command)} for command in commands]}
                for task, commands in GROUPS.items()
            ]
        elif isinstance(entry, dict):
            for section in entry.values():
                if isinstance(section, list):
                    fill(section)


def uri(command: click.Command) -> str:
    """Return the path of the page of a command."""
    return f"reference/e3d-{command.name}.md"


def page(command: click.Command) -> str:
    """Return the page of a command, or of a group of commands with all of its commands."""
    context = click.Context(command, info_name=command.name, parent=click.Context(main, info_name="e3d"))
    parts = [*described(context, level=1)]
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            parts += described(click.Context(inner, info_name=name, parent=context), level=2)
    return "\n\n".join(parts) + "\n"


def described(context: click.Context, level: int) -> Iterator[str]:
    """Yield the Markdown of one command: usage, text, examples and options."""
    command = context.command
    yield f"{'#' * level} `{context.command_path}`"
    yield prose(inspect.cleandoc(command.help or ""))
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```"
    if isinstance(command, WithExamples) and command.examples:
        yield "**Examples**"
        yield "```sh\n" + "\n".join(command.examples) + "\n```"
    for title, options in grouped(context).items():
        if options:
            yield f"{'#' * (level + 1)} {title}"
            yield table(context, options)


def grouped(context: click.Context) -> dict[str, list[click.Option]]:
    """Return the options of a command by the title of their group, with the groups of `--help-all` too."""
    command = context.command
    options = {one.name or "": one for one in command.get_params(context) if isinstance(one, click.Option)}
    groups = {**command.groups, **command.more} if isinstance(command, GroupedCommand) else {}
    titled = {title: [options.pop(name) for name in names if name in options] for title, names in groups.items()}
    return {**titled, "Further options" if groups else "Options": list(options.values())}


def table(context: click.Context, options: list[click.Option]) -> str:
    """Return a table of options: names, text and default, as in the help."""
    rows = ["| option | meaning |", "|---|---|"]
    for one in options:
        if (record := one.get_help_record(context)) is not None:
            names, text = record
            rows.append(f"| {code(names)} | {prose(text.replace(UNBROKEN, '-'))} |")
    return "\n".join(rows)


def code(names: str) -> str:
    """Return the names of an option as code that a cell of a table can contain."""
    return f"<code>{html.escape(names).replace('|', '&#124;')}</code>"


def prose(text: str) -> str:
    """Return a text of the help as Markdown: options as code, and no character with a meaning of its own."""
    text = re.sub(r"(?<![\w`])(--[a-z][\w-]*)", r"`\1`", html.escape(text, quote=False))
    return re.sub(r"([|*_<\[\]])(?=[^`]*(?:`[^`]*`[^`]*)*$)", r"\\\1", text)
