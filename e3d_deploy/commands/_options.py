"""Options that several commands share, and parsers of their values."""

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from e3d_deploy.commands._help import Option, option
from e3d_deploy.runtime.backends.specs import BACKENDS, RECOMMENDED, profiled

MAX_FRAMES = 10_000
"""Maximum context, horizon, rollout length and state age that a command accepts (frames)."""
OUTPUTS = {"--output", "--raw-output", "--jsonl"}
"""Options whose paths are written and therefore need not be readable."""


class _Path(click.Path):
    """Path that must not be empty. An existing path must be readable, unless it is an output path."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.

        Raises:
            OSError: the system cannot look up the path, or the existing file or folder cannot be read.
        """
        text = os.fspath(value)
        if not text:
            self.fail("got an empty text, expected a path.", param, ctx)
        try:
            os.stat(text)
        except (FileNotFoundError, NotADirectoryError):
            return super().convert(value, param, ctx)
        if not (param is not None and OUTPUTS.intersection(param.opts)) and not os.access(text, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), text)
        return super().convert(value, param, ctx)


class Source(_Path):
    """Path, address or `-`, as `parse_address` accepts them, kept as text."""

    name = "source"

    def __init__(self) -> None:
        super().__init__(readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text; check a path like the paths of other options."""
        text = os.fspath(value)
        return text if text == "-" or "://" in text else str(super().convert(value, param, ctx))


PATH = _Path(path_type=Path, readable=False)
BUNDLE = click.argument("bundle", type=PATH)
BUNDLE_OR_MODEL = click.argument("model", metavar="BUNDLE_OR_MODEL", type=PATH)
BUNDLE_OUTPUT = option("-o", "--output", type=PATH, required=True, metavar="NAME.e3d", help="Bundle folder to write.")


class _BackendOption(Option):
    """Option whose help is composed when it is shown, so that it also names backends that a program registered."""

    def __init__(self, *args: Any, write: Callable[[], str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.write = write

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the names of backends that begin with the typed text."""
        names = ("auto", *BACKENDS) if self.default == "auto" else BACKENDS
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        self.help = self.write()
        return super().get_help_record(ctx)


BACKEND = click.option(
    "--backend",
    default="auto",
    metavar="NAME",
    cls=_BackendOption,
    write=lambda: f"Backend: auto, or one of {', '.join(BACKENDS)}.",
)
PROFILED = click.option(
    "--backend", default=RECOMMENDED, metavar="NAME", cls=_BackendOption, write=lambda: f"Backend: {profiled()}."
)


class Count(click.IntRange):
    """Whole number up to a limit, above which the work would take too long or too much memory."""

    def __init__(self, most: int, *, least: int = 1) -> None:
        super().__init__(min=least, max=most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; refuse other values with the range that is expected."""
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"got {value}, expected a whole number from {self.min} to {self.max:,}.", param, ctx)


def threads_here(_: click.Context, __: click.Parameter, count: int | None) -> int | None:
    """Refuse more threads than `check_threads` allows for the cores of this machine."""
    if count is None:
        return None
    from e3d_deploy.runtime.backends.registry import check_threads

    return check_threads(count)


THREADS = option(
    "--threads",
    type=click.IntRange(min=1),
    callback=threads_here,
    help="CPU threads that one step uses.",
    show_default="chosen by the library",
)
CONTEXT = option(
    "--context",
    "context_length",
    type=Count(MAX_FRAMES),
    help="Context: number of frames before the forecast.",
    show_default="as trained, or 10",
)
HORIZON = option(
    "--horizon", type=Count(MAX_FRAMES), help="Number of frames to predict.", show_default="as trained, or 10"
)
EVERY = option("--every", type=int, metavar="N", help="Use every N-th frame of the source.")
RESAMPLE = option(
    "--resample",
    type=float,
    metavar="FPS",
    help="Resample the source to FPS frames per second; drops or repeats frames.",
)
RENEWAL = option(
    "--renewal",
    metavar="RULE",
    help="Rule that replaces old states: none, refresh:M (M states of different ages) or replay (the last frames are "
    "replayed for each forecast).",
    show_default="chosen by the measured decay",
)
LAYOUT = option(
    "--layout",
    metavar="AXES",
    help="Axes of arrays, such as NTHW: N (or B) clips, T frames, C channels, H height, W width.",
    show_default="inferred from the shape",
)
SKIP_BAD = option("--skip-bad", is_flag=True, help="Skip unreadable files with a warning.")


def is_given(name: str) -> bool:
    """Return True if the user gave an option of the running command.

    Args:
        name: name of the option's parameter.
    """
    defaults = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    return click.get_current_context().get_parameter_source(name) not in defaults


def check_zoom(output: Path | None) -> None:
    """Refuse --zoom if no picture is written."""
    if is_given("zoom") and (output is None or output.suffix.lower() == ".npz"):
        kind = "without -o" if output is None else "with .npz"
        raise click.UsageError(f"--zoom enlarges videos and pictures, and has no effect {kind}; leave it out")


def json_option(text: str = "Print the result as JSON.") -> Callable[[Any], Any]:
    """Return the option `--json` with a help text."""
    return option("--json", "json_", is_flag=True, help=text)


def overwrite_option(what: str) -> Callable[[Any], Any]:
    """Return the option `--overwrite`, for a command that otherwise refuses to replace existing files."""
    return option("--overwrite", is_flag=True, help=f"Replace an existing {what}.")


class Finite(click.FloatRange):
    """Range of finite numbers. The range of click also accepts NaN and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def numbers(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Parse integers such as `48,40` or `64x64`."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise click.BadParameter(f"got {text!r}, expected whole numbers such as 64,64 or 64x64") from error


def names(_: click.Context, __: click.Parameter, text: str) -> tuple[str, ...]:
    """Parse names such as `torch,onnxruntime`; refuse empty and repeated names."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise click.BadParameter(f"got {text!r}, expected names separated by commas")
    if len(set(found)) < len(found):
        raise click.BadParameter(f"got {text!r}, expected each name once")
    return tuple(found)


def counts(most: int) -> Callable[[click.Context, click.Parameter, str | None], tuple[int, ...] | None]:
    """Return a callback that parses integers such as `1,2,4`, each from 1 to `most`."""

    def read(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
        found = numbers(context, parameter, text)
        if found is not None and min(found) < 1:
            raise click.BadParameter(f"got {text!r}, expected numbers of 1 or more")
        if found is not None and max(found) > most:
            raise click.BadParameter(f"got {text!r}, expected numbers up to {most:,}")
        return found

    return read


def milliseconds(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Parse a time such as `33ms` or `0.5s`; return milliseconds."""
    if text is None:
        return None
    number = text.removesuffix("ms") if text.endswith("ms") else text.removesuffix("s")
    try:
        value = float(number) * (1 if text.endswith("ms") else 1000)
    except ValueError:
        value = 0.0
    if not (text.endswith("s") and 0 < value < float("inf")):
        raise click.BadParameter(f"got {text!r}, expected a time above 0 with its unit, such as 33ms or 0.5s")
    return value
