"""Options that several commands take, and values that they are written as."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from e3d_deploy.runtime.backends.specs import BACKENDS, RECOMMENDED, profiled

PATH = click.Path(path_type=Path)
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
THREADS = click.option("--threads", type=click.IntRange(min=1), help="Threads within a step.")
CONTEXT = click.option(
    "--context",
    "context_length",
    type=click.IntRange(min=1),
    help="Frames to look at; else those of the bundle or of training, or 10.",
)
HORIZON = click.option("--horizon", type=click.IntRange(min=1), help="Frames to predict; likewise.")
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


def counts(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """`1,2,4` as integers from 1 on."""
    found = numbers(context, parameter, text)
    if found is not None and min(found) < 1:
        raise click.BadParameter(f"{text!r} holds a number below 1")
    return found


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
