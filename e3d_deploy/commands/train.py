"""`e3d train`."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

from e3d_deploy.commands._options import LAYOUT, PATH, Finite, numbers
from e3d_deploy.commands._output import next_command
from e3d_deploy.commands._process import randomness_kept
from e3d_deploy.config import RECIPES, Semantics, TrainConfig

HINTS = get_type_hints(TrainConfig)


def setting(field: str, text: str, *, flag: str = "") -> Callable[[Any], Any]:
    """An option for a field of TrainConfig, which the recipe decides if it is not given."""
    default = next(one.default for one in dataclasses.fields(TrainConfig) if one.name == field)
    name = "--" + (flag or field).replace("_", "-")
    if isinstance(default, bool):
        return click.option(f"{name}/--no-{name[2:]}", field, default=None, help=text, show_default=str(default))
    hint = HINTS[field]
    number = float if float in (hint, *get_args(hint)) else int
    kind = click.Choice(get_args(hint)) if isinstance(default, str) else number
    return click.option(
        name, field, type=kind, default=None, help=text, show_default=None if default is None else str(default)
    )


def source(text: str) -> tuple[str, float]:
    """`clips.npz:2` as a source and its share; a file or folder of that very name comes first."""
    if os.path.exists(text):
        return text, 1.0
    name, colon, share = text.rpartition(":")
    try:
        return (name, float(share)) if colon else (text, 1.0)
    except ValueError:  # a colon in the name
        return text, 1.0


@click.command()
@click.option("-o", "--output", type=PATH, required=True, help="Run folder; gets model.safetensors.")
@click.option(
    "--data",
    multiple=True,
    default=["moving-mnist"],
    metavar="SOURCE[:SHARE]",
    help="moving-mnist, or a file or folder, as `e3d data inspect` reads them; several are mixed by their shares.",
)
@click.option("--valid-data", "valid", metavar="SOURCE", help="To validate on; else what the data holds out.")
@click.option("--skip-bad", is_flag=True, help="Leave out pictures and videos that cannot be read, and say so.")
@click.option("--digits", type=PATH, help="Digits (.npz) to make Moving MNIST of, for training; else the package's.")
@click.option("--init", "initial", type=PATH, help="Model or checkpoint whose weights to begin with.")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder.")
@click.option(
    "--resume-or-new", is_flag=True, help="Go on if the folder holds this run; else begin in NAME-2, NAME-3, …"
)
@click.option(
    "--recipe", type=click.Choice(list(RECIPES)), default="modern", help="What the settings below are if not given."
)
@click.option("--image-size", default="64x64", callback=numbers, help="Height x width, pixels.")
@click.option("--channels", default=1, help="Colours of a frame.")
@click.option("--patch-size", default=4, help="Side of the square folded into channels, pixels.")
@click.option("--hidden", default="64,64,64,64", callback=numbers, help="Channels of each layer.")
@click.option("--kernel-size", default=5, help="Side of the convolutions, patches.")
@click.option("--window-length", default=2, help="Frames in the window that the 3D convolutions see.")
@click.option("--history-length", default=20, help="Cell states kept for recall.")
@click.option("--norm-eps", default=1e-5, help="Added to the variance in the norms.")
@click.option("--semantics", type=click.Choice(get_args(Semantics)), default="paper", help="Which E3D-LSTM.")
@click.option("--stride", default=1, help="Of the convolutions, with --semantics openstl.")
@click.option("--layer-norm/--no-layer-norm", default=True, help="Normalise the gates.")
@setting("context_length", "Frames given.", flag="context")
@setting("horizon", "Frames predicted.")
@setting("steps", "Optimizer steps; with --schedule-by time at most.")
@setting("batch_size", "Clips in a step, over all processes and parts.")
@setting("accumulate", "Parts that a step's clips are computed in.")
@setting("loss", "Means, or sums over the batch.")
@setting("l1_weight", "Weight of the absolute differences in the loss.")
@setting("optimizer", "Who makes steps of gradients.")
@setting("beta1", "Decay of the mean gradient.")
@setting("beta2", "Decay of the mean squared gradient.")
@setting("weight_decay", "Of adamw.")
@setting("learning_rate", "Highest learning rate.")
@setting("schedule", "Of the learning rate.")
@setting("schedule_by", "Progress that the schedules follow; time needs --time-limit.")
@setting("warmup_steps", "Steps in which it rises, of cosine.")
@setting("sampling", "When true frames are shown.")
@setting("sampling_start", "Chance of a true frame at the start.")
@setting("sampling_decrease", "By how much it falls a step; else so that it is 0 at the stop.")
@setting("sampling_hold_steps", "Steps before the chances of reverse change; else half of the stop.")
@setting("sampling_stop_step", "No true frame is shown after this step; else half of the steps.")
@setting("sampling_decay_steps", "Of the exponential of reverse.")
@setting("reverse_input", "A second step on each batch, played backwards.")
@setting("ema_decay", "Decay of the moving average of the weights.")
@setting("ema_warmup", "Let that decay begin small.")
@setting("average", "Validate and save the moving average.")
@setting("gradient_clip", "Largest gradient norm; 0 for none.")
@setting("precision", "auto: bf16 on a GPU that has it.")
@setting("recompute", "Activation checkpointing over time: less memory, a third more work.")
@setting("compile", "Compile the cells with torch.compile.")
@setting("cuda_graph", "Replay each training pass as a CUDA graph; on one GPU.")
@setting("validate_every", "Steps between validations.")
@setting("validation_clips", "Clips of a validation; 0 for all.")
@setting("save_every", "Steps between saved states.")
@setting("log_every", "Steps between lines of the log.")
@setting("burn_in", "Most frames before the context that only carry the state; 0 for none.")
@setting("burn_in_steps", "Last steps that have them; else a tenth.")
@setting("fit", "Of pictures of another shape than the frames.")
@LAYOUT
@setting("seed", "Decides weights, data, sampling and burn-in.")
@click.option("--devices", type=click.IntRange(min=1), help="Processes, each on a device; else one, or torchrun's.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, help="Machines.")
@click.option("--workers", type=click.IntRange(min=0), help="Processes that load data; else 0, up to 8 for a GPU.")
@click.option("--time-limit", metavar="MINUTES", type=Finite(min=0, min_open=True), help="Then save and end.")
@click.option(
    "--decay/--no-decay",
    "measure_decay",
    default=True,
    help="Measure at the end how a stream's state ages, in at most about 5 % of the run.",
)
@click.option("--parts", type=PATH, help="Folder for the weights as float16, in files of at most 16 MiB.")
@click.option(
    "--parts-every", metavar="MINUTES", type=Finite(min=0, min_open=True), help="Time between two sets; else 1."
)
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard too.")
@click.option("--samples", type=PATH, help="Folder for pictures of validations, as the released code writes them.")
@click.option("--sample-count", type=click.IntRange(min=0), default=10, help="Batches that get such pictures.")
def train(
    output: Path,
    data: tuple[str, ...],
    valid: str | None,
    skip_bad: bool,
    initial: Path | None,
    digits: Path | None,
    resume: bool,
    resume_or_new: bool,
    recipe: str,
    **options: Any,
) -> None:
    """Train a model on Moving MNIST or on clips.

    Takes the flags of google/e3d_lstm run.py too, by their names with underscores.
    """
    with randomness_kept():
        from lightning.pytorch.utilities import rank_zero_only

        from e3d_deploy.training.train import Machine, resume_or_next
        from e3d_deploy.training.train import train as train_model
    from e3d_deploy.config import ModelConfig

    def part(config: type[Any]) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(config)}
        return {name: value for name, value in options.items() if name in names and value is not None}

    model_config, config = ModelConfig(**part(ModelConfig)), TrainConfig.of_recipe(recipe, **part(TrainConfig))
    minutes, every = options["time_limit"], options["parts_every"]
    if every is not None and options["parts"] is None:
        raise click.UsageError("--parts-every is for --parts FOLDER; give both, or neither")
    machine = Machine(
        **part(Machine),
        time_limit_s=None if minutes is None else 60 * minutes,
        **({} if every is None else {"parts_every_s": 60 * every}),
    )
    call: dict[str, Any] = {
        "data": [source(text) for text in data],
        "valid": valid,
        "skip_bad": skip_bad,
        "initial": initial,
        "digits": digits,
        "machine": machine,
    }
    if resume_or_new:
        output, resume = resume_or_next(model_config, config, output, **call)
    try:
        path = train_model(
            model_config, config, output, resume=resume, progress=lambda text: click.echo(text, err=True), **call
        )
    except KeyboardInterrupt:
        if (output / "last.ckpt").exists():
            next_command("train", "-o", output, "--resume", how=" with the same options")
        raise
    if getattr(rank_zero_only, "rank", 0) == 0:  # each process comes here
        click.echo(path)
        next_command("export", path, "-o", f"{output.name}.e3d")
