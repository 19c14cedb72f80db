"""Help of the commands: options in groups, short metavars, defaults in words, and examples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

HELP_ALL = "e3d_deploy.help_all"
"""Key of `Context.meta` that is set when the help shows all groups."""
UNBROKEN = "\N{NON-BREAKING HYPHEN}"
"""Replacement for hyphens while lines are wrapped, so that names such as --time-limit stay on one line."""


class Option(click.Option):
    """Option whose help shows `N` for a whole number, no range, and `show_default` without parentheses."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the names and the text of the option, with `UNBROKEN` in place of hyphens in the text."""
        record = super().get_help_record(ctx)
        return None if record is None else (record[0], record[1].replace("-", UNBROKEN))

    def make_metavar(self, ctx: click.Context) -> str:
        """Return the metavar; `N` for a whole number without a metavar of its own."""
        is_whole = isinstance(self.type, click.types.IntParamType)
        return "N" if self.metavar is None and is_whole else super().make_metavar(ctx)

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """Return the notes in brackets after the text: the default in words, and no range."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        default = self.show_default if isinstance(self.show_default, str) else extra.get("default")
        if default is not None:
            extra["default"] = default.removesuffix(".0")
        return extra


def option(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    """Declare an option, like `click.option`, but of the class `Option`."""
    return click.option(*names, **{"cls": Option, **attributes})


class WithExamples(click.Command):
    """Command whose help ends with examples.

    Args:
        examples: command lines, each at most 76 characters long.
    """

    def __init__(self, *args: Any, examples: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def get_help(self, ctx: click.Context) -> str:
        """Return the help with ordinary hyphens."""
        return super().get_help(ctx).replace(UNBROKEN, "-")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on one line."""
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class ExampleGroup(WithExamples, click.Group):
    """Group of commands whose help ends with examples."""


class GroupedCommand(WithExamples):
    """Command whose help shows its options in groups.

    Args:
        groups: names of parameters by the title of their group; without groups, all options are under one title.
        more: groups that only `--help-all` shows. The command has this flag if there are such groups.
    """

    def __init__(
        self,
        *args: Any,
        groups: Mapping[str, Sequence[str]] | None = None,
        more: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.groups, self.more = groups or {}, more or {}
        if self.more:
            self.params.append(
                Option(
                    ["--help-all"],
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=_show_all,
                    help="Show this message with all options and exit.",
                )
            )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group. Options in no group, such as --help, come last."""
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        records = {one.name or "": record for one in options if (record := one.get_help_record(ctx))}
        grouped = {name for names in (*self.groups.values(), *self.more.values()) for name in names}
        shown = {**self.groups, **(self.more if HELP_ALL in ctx.meta else {})}
        rest = [name for name in records if name not in grouped]
        for title, names in {**shown, "Help" if grouped else "Options": rest}.items():
            with formatter.section(title):
                formatter.write_dl([records[name] for name in names])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples and, if options are not shown, the flag that shows them."""
        super().format_epilog(ctx, formatter)
        if self.more and HELP_ALL not in ctx.meta:
            formatter.write_paragraph()
            formatter.write(f"Show all options: {ctx.command_path} --help-all\n")


def _show_all(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        ctx.meta[HELP_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()
