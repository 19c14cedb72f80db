"""`e3d help`: prints help on a command or a topic."""

import inspect
import signal

import click

from e3d_deploy import errors
from e3d_deploy.commands._help import GroupedCommand

REMEDIES = {
    0: ("success", "The command did its work."),
    1: ("failure while running", "Follow the message. `e3d --debug COMMAND` shows the traceback."),
    2: ("invalid option, configuration, path or input", "Correct what the message names."),
    3: ("failed check", "See the verdict on stderr. The result was printed as usual."),
    4: ("missing library or device", "Run the command in the message, or see `e3d doctor`."),
    5: ("damaged or unsuitable file", "Make the file again with the command in the message."),
    6: ("lost video source, peer or server", "Check the camera, address, peer or server, and start again."),
    7: ("exhausted memory, disk or limit", "Use a smaller batch or model, free space, or raise the limit."),
}
"""Meaning of each exit code, and what to do about it."""
SHELLS = {
    "bash": ("~/.bashrc", 'eval "$(_E3D_COMPLETE=bash_source e3d)"'),
    "zsh": ("~/.zshrc", 'eval "$(_E3D_COMPLETE=zsh_source e3d)"'),
    "fish": ("~/.config/fish/completions/e3d.fish", "_E3D_COMPLETE=fish_source e3d | source"),
}
"""Start-up file of each shell, and the line that makes it complete the words of `e3d`."""


@click.command("help", cls=GroupedCommand, examples=("e3d help exit-codes", "e3d help completion"))
@click.argument("topic", nargs=-1)
@click.pass_context
def help_(ctx: click.Context, topic: tuple[str, ...]) -> None:
    """Show help on a command or a topic.

    TOPIC is exit-codes, completion or a command, such as train or data inspect.
    """
    if len(topic) == 1 and topic[0] in TOPICS:
        click.echo(TOPICS[topic[0]](ctx.make_formatter()))
        return
    shown = ctx.find_root()
    for name in topic:
        command = shown.command
        found = command.get_command(shown, name) if isinstance(command, click.Group) else None
        if found is None:
            topics = ", ".join((*TOPICS, *getattr(ctx.find_root().command, "commands", {})))
            raise click.UsageError(f"got the unknown topic {' '.join(topic)!r}, expected one of: {topics}")
        shown = click.Context(found, parent=shown, info_name=name)
    click.echo(shown.get_help())


def exit_codes(formatter: click.HelpFormatter) -> str:
    """Return the table of exit codes, with the errors of `errors.py` that end with each code."""
    formatter.write_text("Exit codes of all commands. An error is one line on stderr that says what to do.")
    for code, (meaning, remedy) in REMEDIES.items():
        with formatter.section(f"Exit code {code} ({meaning})"):
            formatter.write_text(remedy)
            if named := [(error.__name__, first_line(error)) for error in errors_of(code)]:
                formatter.write_dl(named)
    with formatter.section("Exit codes above 128 (ended by a signal)"):
        formatter.write_text(
            "128 plus the number of the signal. `e3d stream` and `e3d predict` stop after the current frame or clip; a "
            "second signal stops them at once."
        )
        signals = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))
        formatter.write_dl([(str(128 + one), signal.Signals(one).name) for one in sorted(filter(None, signals))])
    return formatter.getvalue().rstrip("\n")


def completion(formatter: click.HelpFormatter) -> str:
    """Return how to switch on completion in each shell."""
    formatter.write_text(
        "Completion of commands, options, backends and paths with the Tab key. Add the line of your shell to its "
        "start-up file, and open a new terminal. bash must be version 4.4 or newer. If zsh prints `command not found: "
        "compdef`, put `autoload -Uz compinit && compinit` above the line."
    )
    for shell, (file, line) in SHELLS.items():
        with formatter.section(f"{shell}, in {file}"):
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")
    return formatter.getvalue().rstrip("\n")


TOPICS = {"exit-codes": exit_codes, "completion": completion}
"""Topics in addition to the commands, with the functions that write them."""


def errors_of(code: int) -> list[type[errors.E3DError]]:
    """Return the classes of `errors.py` with an exit code, in the order of the file."""
    classes = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.E3DError)]
    return [one for one in classes if one is not errors.E3DError and one.exit_code == code]


def first_line(error: type[errors.E3DError]) -> str:
    """Return the first line of the docstring of an error."""
    return inspect.getdoc(error).partition("\n")[0]  # type: ignore[union-attr]  # tests/test_docstrings.py requires one
