"""The command `e3d`: assembles the commands and turns exceptions into an error message and an exit code.

Only this module and `commands` print or exit. Results go to stdout, progress and remarks to stderr. Commands import
libraries in their body, so that `--help` is instant.
"""

import errno
import os
import sys
import threading
import traceback
from typing import Any

import click

from e3d_deploy import __version__, released_flags
from e3d_deploy.commands import (
    benchmark,
    build,
    cache,
    data,
    demo,
    diff,
    doctor,
    evaluate,
    export,
    help,
    import_,
    inspect,
    join,
    pack,
    predict,
    profile,
    refit,
    serve,
    stream,
    train,
    unpack,
    verify,
)
from e3d_deploy.commands._failures import explain, system_error
from e3d_deploy.commands._process import as_guest, exit_code, terminable
from e3d_deploy.commands._renamed import present_names
from e3d_deploy.commands._streams import lasting

GROUPS: dict[str, tuple[click.Command, ...]] = {
    "Train or import": (data.data, train.train, join.join, import_.import_),
    "Export and build engines": (export.export, build.build, refit.refit, cache.cache),
    "Verify and measure": (verify.verify, evaluate.evaluate, benchmark.benchmark, profile.profile),
    "Forecast": (demo.demo, predict.predict, stream.stream, serve.serve),
    "Inspect and package": (inspect.inspect, diff.diff, pack.pack, unpack.unpack, doctor.doctor),
    "Help": (help.help_,),
}
"""Commands by task, in the order of `e3d --help` and of the README."""

COMPLETE = "_E3D_COMPLETE"
"""Environment variable in which a shell asks for completions; click derives its name from the program's."""
NOT_PRINTED = (
    "the result was not printed completely; files that the command wrote are kept; free space and run it again"
)


class Commands(click.Group):
    """Group of the commands; turns exceptions into an error message and an exit code."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by task."""
        room = formatter.width - 6 - max(map(len, self.commands))
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(command.name or "", command.get_short_help_str(room)) for command in commands])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Name the further help."""
        formatter.write_paragraph()
        formatter.write("See e3d COMMAND --help for options, and e3d help exit-codes for exit codes.\n")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Translate former names of options and, for `train`, the flags of google/e3d_lstm."""
        if args:
            args, remarks = released_flags.translate(args[1:]) if args[0] == "train" else present_names(args)
            for remark in remarks if not ctx.resilient_parsing else ():
                click.echo(remark, err=True)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command. If its output cannot be printed, the command still completes its work."""
        if COMPLETE in os.environ:  # a shell asks for completions, which click writes as bytes
            return super().main(*args, **extra)
        with lasting() as out:
            try:
                result = super().main(*args, **extra)
            except SystemExit as end:
                out.flush()
                if out.lost is None or out.lost.errno == errno.EPIPE or end.code:
                    raise  # the reader closed the pipe, or the command failed
                click.echo(f"Error: stdout: {out.lost.strerror}; {NOT_PRINTED}", err=True)
                raise SystemExit(system_error(out.lost)[1]) from out.lost
            if out.lost is not None and out.lost.errno != errno.EPIPE:
                raise out.lost
            return result

    def invoke(self, ctx: click.Context) -> object:
        try:
            with as_guest(debug=bool(ctx.params.get("debug"))), terminable():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # handled by click
        except KeyboardInterrupt as interrupt:
            from e3d_deploy.export.engines.watch import BUILDING

            click.echo("interrupted", err=True)
            if any(thread.name == BUILDING for thread in threading.enumerate()):
                sys.stderr.flush()
                os._exit(exit_code(interrupt))  # a normal exit would crash while TensorRT builds
            raise click.exceptions.Exit(exit_code(interrupt)) from None
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            message, code = explain(error)
            click.echo(f"Error: {message}", err=True)
            raise click.exceptions.Exit(code) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="e3d")
@click.option("--debug", is_flag=True, help="Show tracebacks and log messages.")
def main(debug: bool) -> None:
    """Train, export and run E3D-LSTM video prediction."""


for commands in GROUPS.values():
    for command in commands:
        main.add_command(command)
