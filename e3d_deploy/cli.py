"""The command `e3d`: reads options, calls one library function, shows what it returns.

The only place that prints or exits. Libraries come in inside the commands, so that `--help` is instant.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import click

from e3d_deploy import __version__
from e3d_deploy.errors import ConfigError, E3DError


class Failure(click.ClickException):
    """An expected failure: one line, and the exit code of its class."""

    def __init__(self, error: E3DError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code


class Commands(click.Group):
    """The one place that turns expected failures into a line and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except E3DError as error:
            if ctx.params.get("debug"):
                raise
            raise Failure(error) from error
        except ModuleNotFoundError as error:
            if ctx.params.get("debug"):
                raise
            raise Failure(missing(error)) from error


def missing(error: ModuleNotFoundError) -> E3DError:
    """A library that is not there, as an error that names the extra to install."""
    from e3d_deploy.doctor import extra_of
    from e3d_deploy.errors import BackendUnavailable

    extra = extra_of(error.name or "")
    if extra is None:
        raise error
    return BackendUnavailable(f"{error.name} is not installed; pip install 'e3d_deploy[{extra}]'")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="e3d")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:
    """E3D-LSTM video prediction, from training to the edge."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s", force=True)


def numbers(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    """`48,40` or `64x64` as integers."""
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of integers such as 64,64") from error


def source(text: str) -> tuple[str, float]:
    """`clips.npz:2` as a source and its share."""
    name, colon, share = text.rpartition(":")
    try:
        return (name, float(share)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0


PATH = click.Path(path_type=Path)


@main.command()
@click.option("-o", "--output", type=PATH, required=True, help="Run folder; gets model.safetensors.")
@click.option("--data", multiple=True, default=["moving-mnist"], metavar="SOURCE[:SHARE]",
              help="moving-mnist, or a file or folder of clips; several are mixed by their shares.")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder.")
@click.option("--image-size", default="64x64", callback=numbers, help="Height x width, pixels.")
@click.option("--channels", default=1, help="Colours of a frame.")
@click.option("--patch-size", default=4, help="Side of the square folded into channels, pixels.")
@click.option("--hidden", default="64,64,64,64", callback=numbers, help="Channels of each layer.")
@click.option("--kernel-size", default=5, help="Side of the convolutions, patches.")
@click.option("--history-length", default=20, help="Cell states kept for recall.")
@click.option("--norm-eps", default=1e-5, help="Added to the variance in the norms.")
@click.option("--semantics", type=click.Choice(["paper", "google"]), default="paper", help="Which E3D-LSTM.")
@click.option("--layer-norm/--no-layer-norm", default=True, help="Normalise the gates.")
@click.option("--context", "context_length", default=10, help="Frames given.")
@click.option("--horizon", default=10, help="Frames predicted.")
@click.option("--steps", default=80_000, help="Optimiser steps.")
@click.option("--batch-size", default=4, help="Clips in a step.")
@click.option("--learning-rate", default=1e-3, help="Highest learning rate.")
@click.option("--l1-weight", default=1.0, help="Weight of the absolute differences in the loss.")
@click.option("--sampling-stop-step", default=50_000, help="No true frame is shown after this step.")
@click.option("--ema-decay", default=0.9995, help="Decay of the moving average of the weights.")
@click.option("--gradient-clip", default=0.0, help="Largest gradient norm; 0 for none.")
@click.option("--steps-per-epoch", default=500, help="Steps between validations and checkpoints.")
@click.option("--seed", default=0, help="Decides weights, data and sampling.")
def train(output: Path, data: tuple[str, ...], resume: bool, **options: Any) -> None:
    """Train a model on Moving MNIST or on clips."""
    import dataclasses

    from e3d_deploy.config import ModelConfig, TrainConfig
    from e3d_deploy.training.train import train as train_model

    def part(config: type[Any]) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(config)}
        return {name: value for name, value in options.items() if name in names}

    path = train_model(
        ModelConfig(**part(ModelConfig)),
        TrainConfig(**part(TrainConfig)),
        output,
        data=[source(text) for text in data],
        resume=resume,
    )
    click.echo(path)
    click.echo(f"next: e3d export {path} -o {output.name}.e3d", err=True)
