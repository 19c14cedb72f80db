"""Options that several commands take, and values that they are written as."""

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from e3d_deploy.runtime.backends.specs import BACKENDS, RECOMMENDED, profiled

MOST_FRAMES = 10_000
"""Longest context, horizon or rollout that a command takes, and oldest state (frames)."""
OUTPUTS = {"--output", "--raw-output", "--jsonl"}
"""Options whose paths are written, and need not be readable."""


class _Path(click.Path):
    """A path that the system can look up, and can read if it is there and not the output."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; let errors of the system become the command's own."""
        text = os.fspath(value)
        if not text:
            self.fail("got an empty text; give a path.", param, ctx)
        try:
            os.stat(text)
        except (FileNotFoundError, NotADirectoryError):
            return super().convert(value, param, ctx)
        if not (param is not None and OUTPUTS.intersection(param.opts)) and not os.access(text, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), text)
        return super().convert(value, param, ctx)


class Source(_Path):
    """A path, or an address or `-`, as `parse_address` takes them; as text."""

    name = "source"

    def __init__(self) -> None:
        super().__init__(readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text; a path is looked up as others are."""
        text = os.fspath(value)
        return text if text == "-" or "://" in text else str(super().convert(value, param, ctx))


PATH = _Path(path_type=Path, readable=False)
BUNDLE = click.argument("bundle", type=PATH)
BUNDLE_OR_MODEL = click.argument("model", metavar="BUNDLE_OR_MODEL", type=PATH)
BUNDLE_OUTPUT = click.option(
    "-o", "--output", type=PATH, required=True, metavar="NAME.e3d", help="Folder of the bundle."
)


class _BackendOption(click.Option):
    """An option whose help is written when it is shown, so that it names all backends that are registered then."""

    def __init__(self, *args: Any, write: Callable[[], str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.write = write

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        self.help = self.write()
        return super().get_help_record(ctx)


BACKEND = click.option(
    "--backend", default="auto", cls=_BackendOption, write=lambda: f"auto, or one of {', '.join(BACKENDS)}."
)
PROFILED = click.option("--backend", default=RECOMMENDED, cls=_BackendOption, write=lambda: f"{profiled()}.")


class Count(click.IntRange):
    """A whole number up to a limit, beyond which the work would not end or not fit."""

    def __init__(self, most: int, *, least: int = 1) -> None:
        super().__init__(min=least, max=most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number, or say what is expected."""
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"got {value}, expected a whole number from {self.min} to {self.max:,}.", param, ctx)


def threads_here(_: click.Context, __: click.Parameter, count: int | None) -> int | None:
    """Check a number of threads against the machine's cores."""
    if count is None:
        return None
    from e3d_deploy.runtime.backends.registry import check_threads

    return check_threads(count)


THREADS = click.option("--threads", type=click.IntRange(min=1), callback=threads_here, help="Threads within a step.")
CONTEXT = click.option(
    "--context",
    "context_length",
    type=Count(MOST_FRAMES),
    help="Frames to look at; else those of the bundle or of training, or 10.",
)
HORIZON = click.option("--horizon", type=Count(MOST_FRAMES), help="Frames to predict; likewise.")
EVERY = click.option("--every", type=int, metavar="N", help="Take every N-th frame of the source.")
RESAMPLE = click.option(
    "--resample",
    type=float,
    metavar="FPS",
    help="Take the frames nearest in time to FPS a second, dropping or repeating some.",
)
LAYOUT = click.option(
    "--layout",
    metavar="LETTERS",
    help="Axes of arrays: N (or B) clips, T frames, C colours, H, W, such as NTHW; else found out by their shapes.",
)
SKIP_BAD = click.option("--skip-bad", is_flag=True, help="Leave out what cannot be read, and say so.")


def is_given(name: str) -> bool:
    """Return True if an option of the command that runs was given, by the name of its parameter."""
    defaults = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    return click.get_current_context().get_parameter_source(name) not in defaults


def check_zoom(output: Path | None) -> None:
    """Refuse --zoom where no picture is written."""
    if is_given("zoom") and (output is None or output.suffix.lower() == ".npz"):
        kind = "without -o" if output is None else "with .npz"
        raise click.UsageError(f"--zoom enlarges videos and pictures, and means nothing {kind}; leave it out")


def json_option(text: str = "As JSON.") -> Callable[[Any], Any]:
    """`--json`, and what of the result it shows."""
    return click.option("--json", "json_", is_flag=True, help=text)


def overwrite_option(what: str) -> Callable[[Any], Any]:
    """`--overwrite`, for a command that otherwise leaves what is there alone."""
    return click.option("--overwrite", is_flag=True, help=f"Replace a {what} that is there.")


class Finite(click.FloatRange):
    """A range without infinity and NaN, which click takes for numbers in it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


def numbers(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """`48,40` or `64x64` as integers."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of integers such as 64,64") from error


def names(_: click.Context, __: click.Parameter, text: str) -> tuple[str, ...]:
    """`torch,onnxruntime` as names, each once."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise click.BadParameter(f"{text!r} is not a list of names with commas between them")
    if len(set(found)) < len(found):
        raise click.BadParameter(f"{text!r} names one twice")
    return tuple(found)


def counts(most: int) -> Callable[[click.Context, click.Parameter, str | None], tuple[int, ...] | None]:
    """Return what reads `1,2,4` as integers from 1 to `most`."""

    def read(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
        found = numbers(context, parameter, text)
        if found is not None and min(found) < 1:
            raise click.BadParameter(f"{text!r} holds a number below 1")
        if found is not None and max(found) > most:
            raise click.BadParameter(f"{text!r} holds a number above {most:,}; give smaller ones")
        return found

    return read


def milliseconds(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """`33ms` or `0.5s` as milliseconds."""
    if text is None:
        return None
    number = text.removesuffix("ms") if text.endswith("ms") else text.removesuffix("s")
    try:
        value = float(number) * (1 if text.endswith("ms") else 1000)
    except ValueError:
        value = 0.0
    if not (text.endswith("s") and 0 < value < float("inf")):
        raise click.BadParameter(f"{text!r} is no time above 0 with its unit, such as 33ms or 0.5s")
    return value
