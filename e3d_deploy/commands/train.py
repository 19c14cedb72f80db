"""`e3d train`."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

from e3d_deploy.commands._options import LAYOUT, MOST_FRAMES, PATH, Count, Finite, is_given, numbers
from e3d_deploy.commands._output import next_command
from e3d_deploy.commands._process import randomness_kept
from e3d_deploy.config import PRESETS, RECIPES, ModelConfig, Semantics, TrainConfig
from e3d_deploy.errors import ConfigError
from e3d_deploy.training.sizes import configs, fields_of

HINTS = get_type_hints(TrainConfig)
NAMED = {"recipe": RECIPES, "preset": PRESETS}
"""Options that stand for several settings."""
DEFAULTS = {"recipe": "modern", "preset": "full"}
"""Names that such an option has if it is not given."""


def setting(field: str, text: str, *, flag: str = "", most: int | None = None) -> Callable[[Any], Any]:
    """An option for a field of TrainConfig, which the recipe decides if it is not given.

    Args:
        most: largest value that it takes.
    """
    default = next(one.default for one in dataclasses.fields(TrainConfig) if one.name == field)
    name = "--" + (flag or field).replace("_", "-")
    if isinstance(default, bool):
        return click.option(f"{name}/--no-{name[2:]}", field, default=None, help=text, show_default=str(default))
    hint = HINTS[field]
    number = float if float in (hint, *get_args(hint)) else int
    kind = click.Choice(get_args(hint)) if isinstance(default, str) else number if most is None else Count(most)
    return click.option(
        name, field, type=kind, default=None, help=text, show_default=None if default is None else str(default)
    )


def source(text: str) -> tuple[str, float]:
    """Return a source and its share: `clips.npz:2`, or a name alone, which may hold colons."""
    name, colon, share = text.rpartition(":")
    if not text:
        raise click.BadParameter("got no name; give moving-mnist, a file or a folder", param_hint="--data")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        number = float(share)
    except ValueError:  # a colon in the name
        return text, 1.0
    if not (math.isfinite(number) and number > 0 and name):
        raise click.BadParameter(f"{text!r}: the share is no number above 0, such as {name}:2", param_hint="--data")
    return name, number


def size(preset: str) -> str:
    """Describe a preset for the help."""
    if not (values := PRESETS[preset]):
        return "the defaults"
    hidden = ",".join(map(str, values["hidden"]))
    return f"hidden {hidden}, patch {values['patch_size']}, {values['steps']} steps of {values['batch_size']} clips"


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
@click.option("--resume", is_flag=True, help="Go on with the run in the folder, with its settings.")
@click.option(
    "--resume-or-new", is_flag=True, help="Go on if the folder holds this run; else begin in NAME-2, NAME-3, …"
)
@click.option(
    "--recipe",
    type=click.Choice(list(RECIPES)),
    default=DEFAULTS["recipe"],
    help="What the settings below are if not given.",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Size of network and run if not given: " + "; ".join(f"{name}: {size(name)}" for name in PRESETS) + ".",
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
@setting("context_length", "Frames given.", flag="context", most=MOST_FRAMES)
@setting("horizon", "Frames predicted.", most=MOST_FRAMES)
@setting("steps", "Optimizer steps; with --schedule-by time at most.")
@setting("batch_size", "Clips in a step, over all processes and parts.")
@setting("accumulate", "Parts that a step's clips are computed in.")
@setting("loss", "Means, or sums over the batch.")
@setting("l1_weight", "Weight of the absolute differences in the loss.")
@setting("optimizer", "Optimizer of the weights.")
@setting("beta1", "Decay of the mean gradient.")
@setting("beta2", "Decay of the mean squared gradient.")
@setting("weight_decay", "Weight decay of adamw and muon.")
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
@setting("fit", "How pictures of another shape become frames: change it, cut off what is beyond, or add black bars.")
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
def train(output: Path, resume: bool, resume_or_new: bool, **_: Any) -> None:
    """Train a model on Moving MNIST or on clips.

    Takes the flags of google/e3d_lstm run.py too, by their names with underscores.
    """
    from e3d_deploy.commands._places import check_apart

    with randomness_kept():
        from lightning.pytorch.utilities import rank_zero_only

        from e3d_deploy.training.callbacks import Interrupted
        from e3d_deploy.training.settings import STATE
        from e3d_deploy.training.train import MOVING_MNIST, resume_or_next
        from e3d_deploy.training.train import train as train_model

    given = {name: value for name, value in click.get_current_context().params.items() if is_given(name)}
    model_config, config, call = _resumed(output, given) if resume else _new(given)
    sources = [name for name, _ in call["data"] if name != MOVING_MNIST]  # which is generated, whatever is called so
    read = [*sources, call["valid"], call["digits"], call["initial"]]
    for folder in (output, call["machine"].parts):
        check_apart(folder, *read)
    check_apart(call["machine"].samples, *read, holds_clips=True)
    if resume_or_new:
        output, resume = resume_or_next(model_config, config, output, **call)

    say = partial(click.echo, err=True)
    try:
        path = train_model(model_config, config, output, resume=resume, progress=say, **call)
    except KeyboardInterrupt as interrupt:
        if (output / STATE).exists():  # a second signal may come before the first state is saved
            next_command("train", "-o", output, "--resume")
        if not isinstance(interrupt, Interrupted):
            raise
        click.echo("interrupted", err=True)
        raise click.exceptions.Exit(128 + interrupt.number) from None
    if getattr(rank_zero_only, "rank", 0) == 0:  # each process comes here
        click.echo(path)
        next_command("export", path, "-o", f"{output.name}.e3d")


KEPT = (
    "recipe",
    "preset",
    "skip_bad",
    "digits",
    "parts",
    "parts_every",
    "tensorboard",
    "samples",
    "sample_count",
    "measure_decay",
)
"""Options that a resumed run takes besides its settings; the others are those of a machine."""
PART_OF = {
    "weight_decay": ("optimizer", ("adamw", "muon")),
    "warmup_steps": ("schedule", ("cosine",)),
    "sampling_start": ("sampling", ("scheduled",)),
    "sampling_decrease": ("sampling", ("scheduled",)),
    "sampling_hold_steps": ("sampling", ("reverse",)),
    "sampling_decay_steps": ("sampling", ("reverse",)),
}
"""Settings that training uses with some values of another setting only."""


def _new(given: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig, dict[str, Any]]:
    """Return the configurations of a new run, and the other arguments of `training.train.train`."""
    values = {**DEFAULTS, **given}
    model, config = configs(**values)
    _check_used(given, config, TrainConfig.of_recipe(values["recipe"]))
    return model, config, _call(values)


def _check_used(given: Mapping[str, Any], config: TrainConfig, recipe: TrainConfig) -> None:
    """Refuse options that a new run would not use; a setting that has the recipe's value anyway may be given."""
    for name, (decider, users) in PART_OF.items():
        actual = getattr(config, decider)
        if actual not in users and getattr(config, name) != getattr(recipe, name):
            option, of = (f"--{one.replace('_', '-')}" for one in (name, decider))
            raise click.UsageError(f"{option} is of {of} {' or '.join(users)}, and this run has {actual}; leave it out")
    if given.get("burn_in_steps") and not config.burn_in:
        raise click.UsageError("--burn-in-steps is of a burn-in, and this run has none; give --burn-in too, or neither")
    if "sample_count" in given and "samples" not in given:
        raise click.UsageError("--sample-count is of --samples FOLDER: give both, or neither.")


def _resumed(run: Path, given: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig, dict[str, Any]]:
    """Return what `_new` does for a run that was begun, whose options need not be given again.

    Raises:
        ConfigError: nothing to resume, or digits whose place is not known.
        CheckpointError: the files of the run are damaged.
    """
    from e3d_deploy.training.settings import Begun, Command

    begun, kept = Begun.read(run), Command.read(run)
    values = {**_named(given, kept.options), **given}
    model = dataclasses.replace(begun.model, **fields_of(ModelConfig, values))
    config = dataclasses.replace(begun.train, **fields_of(TrainConfig, values))
    options = {**{name: value for name, value in kept.options.items() if name in KEPT}, **given}
    if begun.digits is not None and "digits" not in options:
        raise ConfigError(
            f"{run}: was begun with --digits {begun.digits}, whose place is not known; give --digits again"
        )
    call = _call(options)
    if "data" not in given:
        call["data"] = list(begun.data)
    if "valid" not in given:
        call["valid"] = begun.valid
    if "time_limit" not in given and config.schedule_by == "time":
        call["machine"] = dataclasses.replace(call["machine"], time_limit_s=begun.time_limit_s)
    return model, config, call


def _named(given: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a given recipe or preset stands for, unless the run was begun with the same one.

    Settings that only another one names count too: they have their defaults then.
    """
    from e3d_deploy.training.settings import FREE_TO_CHANGE

    others = [name for name in NAMED if name in given and given[name] != kept.get(name)]
    if not others:
        return {}
    fields = {field for name in others for values in NAMED[name].values() for field in values}
    names = {name: given.get(name, kept.get(name, default)) for name, default in DEFAULTS.items()}
    model, config = configs(**names)
    settings = {**vars(model), **vars(config)}
    return {field: settings[field] for field in fields.difference(FREE_TO_CHANGE)}


def _call(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `training.train.train` that are no configuration of network or training."""
    from e3d_deploy.training.train import MOVING_MNIST, Machine

    minutes, every = options.get("time_limit"), options.get("parts_every")
    if every is not None and options.get("parts") is None:
        raise click.UsageError("--parts-every is for --parts FOLDER; give both, or neither")
    paths = {name: Path(options[name]) for name in ("digits", "parts", "samples") if options.get(name) is not None}
    absolute = {name: str(path.absolute()) for name, path in paths.items()}
    machine = Machine(
        **fields_of(Machine, {**options, **paths}),
        time_limit_s=None if minutes is None else 60 * minutes,
        **({} if every is None else {"parts_every_s": 60 * every}),
    )
    return {
        "data": [source(text) for text in options.get("data", (MOVING_MNIST,))],
        "valid": options.get("valid"),
        "skip_bad": options.get("skip_bad", False),
        "initial": options.get("initial"),
        "digits": paths.get("digits"),
        "machine": machine,
        "options": {name: value for name, value in {**options, **absolute}.items() if name in KEPT},
    }
