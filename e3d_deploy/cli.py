"""The command `e3d`: puts the commands together, and turns failures into a line and an exit code.

Only this module and `commands` print or exit. Libraries come in inside the commands, so that `--help` is instant.
Results go to stdout, progress and remarks to stderr.
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
from e3d_deploy.commands._process import as_guest, exit_code, terminable
from e3d_deploy.commands._streams import lasting
from e3d_deploy.errors import BackendUnavailable, ConfigError, E3DError, ResourceLimit

GROUPS: dict[str, tuple[click.Command, ...]] = {
    "Train, or import weights": (data.data, train.train, join.join, import_.import_),
    "Export, and build engines": (export.export, build.build, refit.refit, cache.cache),
    "Prove and measure": (verify.verify, evaluate.evaluate, benchmark.benchmark, profile.profile),
    "Forecast": (demo.demo, predict.predict, stream.stream, serve.serve),
    "Look, compare, carry": (inspect.inspect, diff.diff, pack.pack, unpack.unpack, doctor.doctor),
}
"""Commands by task, as `e3d --help` and the README list them."""

NOT_PRINTED = "the result was not printed whole, and files that the command wrote stand; print it where there is room"
REMEDIES = {
    errno.ENOENT: (ConfigError.exit_code, "give the path of a file or folder that is there"),
    errno.ENOTDIR: (ConfigError.exit_code, "give a path whose folders are folders"),
    errno.EISDIR: (ConfigError.exit_code, "give the name of a file"),
    errno.ENAMETOOLONG: (ConfigError.exit_code, "give a shorter name"),
    errno.ELOOP: (ConfigError.exit_code, "give a path that is no link to itself"),
    errno.EACCES: (ConfigError.exit_code, "change its permissions or those of its folders, or give another path"),
    errno.EPERM: (ConfigError.exit_code, "change its permissions or those of its folders, or give another path"),
    errno.EROFS: (ConfigError.exit_code, "give a path on a disk that can be written"),
    errno.ENOSPC: (ResourceLimit.exit_code, "make room, or write to another disk"),
    errno.EDQUOT: (ResourceLimit.exit_code, "make room, or write to another disk"),
    errno.EFBIG: (ResourceLimit.exit_code, "raise the limit on the size of files (`ulimit -f`), or write elsewhere"),
    errno.EMFILE: (ResourceLimit.exit_code, "raise the limit on open files (`ulimit -n`)"),
    errno.ENFILE: (ResourceLimit.exit_code, "close other programs, or raise the system's limit on open files"),
    errno.EIO: (1, "check the disk or device, or copy the file from another place"),
}
"""Exit code and remedy by error number of the system."""


class Commands(click.Group):
    """The one place that turns failures into a line and an exit code."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by task."""
        room = formatter.width - 6 - max(map(len, self.commands))
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(command.name or "", command.get_short_help_str(room)) for command in commands])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Let `train` take the command line of google/e3d_lstm."""
        if args[:1] == ["train"]:
            args, remarks = released_flags.translate(args[1:])
            for remark in remarks:
                click.echo(remark, err=True)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command; what it did stands when its output cannot be printed."""
        with lasting() as out:
            try:
                result = super().main(*args, **extra)
            except SystemExit as end:
                out.flush()
                if out.lost is None or out.lost.errno == errno.EPIPE or end.code:
                    raise  # the reader had enough, or the command ends with an error of its own
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
            raise  # click knows what to do
        except KeyboardInterrupt as interrupt:
            from e3d_deploy.export.engines.watch import BUILDING

            click.echo("interrupted", err=True)
            if any(thread.name == BUILDING for thread in threading.enumerate()):
                sys.stderr.flush()
                os._exit(exit_code(interrupt))  # with TensorRT still at work, an orderly end would be a crash
            raise click.exceptions.Exit(exit_code(interrupt)) from None
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            message, code = explain(error)
            click.echo(f"Error: {message}", err=True)
            raise click.exceptions.Exit(code) from error


def explain(error: Exception) -> tuple[str, int]:
    """An exception as the line and exit code that a user gets."""
    if isinstance(error, E3DError):
        return (str(error), error.exit_code)
    if isinstance(error, ModuleNotFoundError):
        from e3d_deploy.libraries import extra_of, pip_install

        if extra := extra_of(error.name or ""):
            return (f"{error.name} is not installed; {pip_install(extra)}", BackendUnavailable.exit_code)
    said = str(error).partition("\n")[0]  # PyTorch appends a stack of C++
    from e3d_deploy.runtime.faults import clear

    if isinstance(clear(error), ResourceLimit):
        return (f"out of memory ({said}); take a smaller batch or model", ResourceLimit.exit_code)
    if isinstance(error, OSError):
        return system_error(error)
    return (f"unexpected {type(error).__name__}: {said}; `e3d --debug …` shows where", 1)


def system_error(error: OSError) -> tuple[str, int]:
    """Return the line and exit code of an error of the operating system."""
    code, remedy = REMEDIES.get(error.errno or 0, (1, "see whether it can be read and written, and try again"))
    name = error.filename
    if isinstance(name, int):
        name = f"descriptor {name}"
    elif isinstance(name, bytes):
        name = os.fsdecode(name)
    said = str(error.strerror or error)
    # The system's own words hold no semicolon: with one, the error is ours and says already what to do.
    return f"{name or 'a file or device'}: {said if '; ' in said else f'{said}; {remedy}'}", code


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="e3d")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries log.")
def main(debug: bool) -> None:
    """E3D-LSTM video prediction, from training to the edge."""


for commands in GROUPS.values():
    for command in commands:
        main.add_command(command)
