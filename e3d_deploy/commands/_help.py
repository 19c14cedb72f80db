"""Help of a command with many options, in groups, with examples at its end."""

from collections.abc import Mapping, Sequence
from typing import Any

import click


class GroupedCommand(click.Command):
    """A command whose help shows options in groups and ends with examples.

    Args:
        groups: parameter names by the title of their group; the others come last.
        examples: command lines.
    """

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]], examples: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups, self.examples = groups, examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group, then the examples."""
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        records = {one.name or "": record for one in options if (record := one.get_help_record(ctx))}
        named = {name for names in self.groups.values() for name in names}
        groups = {**self.groups, "Other options": [name for name in records if name not in named]}
        for title, names in groups.items():
            with formatter.section(title):
                formatter.write_dl([records[name] for name in names])
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
