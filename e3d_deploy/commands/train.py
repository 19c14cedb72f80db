"""`e3d train`: trains a model."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._options import LAYOUT, MOST_FRAMES, PATH, Count, Finite, is_given, numbers
from e3d_deploy.commands._output import next_command
from e3d_deploy.commands._process import randomness_kept
from e3d_deploy.config import PRESETS, RECIPES, ModelConfig, Semantics, TrainConfig
from e3d_deploy.errors import ConfigError
from e3d_deploy.training.sizes import configs, fields_of

HINTS = get_type_hints(TrainConfig)
NAMED = {"recipe": RECIPES, "preset": PRESETS}
"""Values of the options that set several settings at once."""
DEFAULTS = {"recipe": "modern", "preset": "full"}
"""Default values of these options."""
GROUPS = {
    "Run": ("output", "recipe", "preset", "initial", "resume", "resume_or_new", "time_limit"),
    "Data": ("data", "valid", "image_size", "channels", "fit", "skip_bad"),
    "Network": ("hidden", "patch_size"),
    "Length and batch": ("context_length", "horizon", "steps", "batch_size", "learning_rate"),
    "Speed and memory": ("precision", "accumulate", "recompute", "devices", "workers"),
    "Output and log": ("validate_every", "save_every", "parts", "tensorboard"),
}
MORE_GROUPS = {
    "More on data": ("digits", "layout", "seed"),
    "More on the network": (
        "kernel_size",
        "window_length",
        "history_length",
        "layer_norm",
        "norm_eps",
        "semantics",
        "stride",
    ),
    "Loss and optimizer": (
        "loss",
        "l1_weight",
        "optimizer",
        "beta1",
        "beta2",
        "weight_decay",
        "gradient_clip",
        "reverse_input",
    ),
    "Learning rate schedule": ("schedule", "schedule_by", "warmup_steps"),
    "Scheduled sampling": (
        "sampling",
        "sampling_start",
        "sampling_decrease",
        "sampling_stop_step",
        "sampling_hold_steps",
        "sampling_decay_steps",
    ),
    "Averaging of the weights": ("average", "ema_decay", "ema_warmup"),
    "Burn-in and decay of the state": ("burn_in", "burn_in_steps", "measure_decay"),
    "More on validation and output": ("validation_clips", "log_every", "samples", "sample_count", "parts_every"),
    "More on speed": ("compile", "cuda_graph", "nodes"),
}
EXAMPLES = (
    "e3d train -o runs/small --preset small",
    "e3d train -o runs/film --data clips/ --image-size 64x96 --time-limit 60",
)


def setting(
    field: str, text: str, *, flag: str = "", most: int | None = None, default_text: str | None = None
) -> Callable[[Any], Any]:
    """Return an option for a field of TrainConfig whose default is the value of the recipe.

    Args:
        field: name of the field.
        text: help of the option.
        flag: name of the option, if it differs from the field.
        most: largest value that the option accepts.
        default_text: default in words, for a field whose default is None.
    """
    default = next(one.default for one in dataclasses.fields(TrainConfig) if one.name == field)
    name = "--" + (flag or field).replace("_", "-")
    if isinstance(default, bool):
        shown = f"{'' if default else 'no-'}{name[2:]}"
        return option(f"{name}/--no-{name[2:]}", field, default=None, help=text, show_default=shown)
    hint = HINTS[field]
    number = float if float in (hint, *get_args(hint)) else int
    kind = click.Choice(get_args(hint)) if isinstance(default, str) else number if most is None else Count(most)
    return option(
        name,
        field,
        type=kind,
        default=None,
        metavar="NUMBER" if kind is float else None,
        help=text,
        show_default=default_text if default is None else str(default),
    )


def source(text: str) -> tuple[str, float]:
    """Parse a source and its share, such as `clips.npz:2`; the share is 1 if the text has none.

    A text that names an existing path is not split, because file names may contain colons.
    """
    name, colon, share = text.rpartition(":")
    if not text:
        raise click.BadParameter("got an empty text, expected moving-mnist, a file or a folder", param_hint="--data")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        number = float(share)
    except ValueError:  # a colon in the name
        return text, 1.0
    if not (math.isfinite(number) and number > 0 and name):
        raise click.BadParameter(f"got {text!r}, expected a share above 0, such as {name}:2", param_hint="--data")
    return name, number


def size(preset: str) -> str:
    """Describe a preset for the help."""
    if not (values := PRESETS[preset]):
        return "the defaults"
    hidden = ",".join(map(str, values["hidden"]))
    return f"hidden {hidden}, patch {values['patch_size']}, {values['steps']} steps of {values['batch_size']} clips"


@click.command(cls=GroupedCommand, groups=GROUPS, more=MORE_GROUPS, examples=EXAMPLES)
@option("-o", "--output", type=PATH, required=True, help="Run folder; receives model.safetensors.")
@option(
    "--data",
    multiple=True,
    default=["moving-mnist"],
    metavar="SOURCE[:SHARE]",
    help="moving-mnist, a file or a folder; repeat to mix several.",
)
@option(
    "--valid-data",
    "valid",
    metavar="SOURCE",
    help="Validation data.",
    show_default="held-out clips",
)
@option("--skip-bad", is_flag=True, help="Skip unreadable files with a warning.")
@option(
    "--digits",
    type=PATH,
    help="Digit images (.npz) for the Moving MNIST training clips.",
    show_default="digits of the package",
)
@option("--init", "initial", type=PATH, help="Model file or checkpoint to start from.")
@option("--resume", is_flag=True, help="Resume the run in the run folder.")
@option(
    "--resume-or-new",
    is_flag=True,
    help="Resume the run of these options, or start it in the first free folder: NAME, NAME-2 and so on.",
)
@option(
    "--recipe",
    type=click.Choice(list(RECIPES)),
    default=DEFAULTS["recipe"],
    help="Set of training settings.",
)
@option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Size of network and run. " + "; ".join(f"{name}: {size(name)}" for name in PRESETS) + ".",
)
@option("--image-size", default="64x64", callback=numbers, metavar="HxW", help="Frame height x width (pixels).")
@option("--channels", default=1, help="Channels of a frame: 1 gray, 3 RGB.")
@option("--patch-size", default=4, help="Patch side (pixels).")
@option("--hidden", default="64,64,64,64", callback=numbers, metavar="N,N,…", help="Hidden channels of each layer.")
@option("--kernel-size", default=5, help="Kernel size of the convolutions (patches).")
@option("--window-length", default=2, help="Window of the 3D convolutions (frames).")
@option("--history-length", default=20, help="Number of past cell states that recall attends to.")
@option("--norm-eps", default=1e-5, metavar="NUMBER", help="Constant added to the variance in the norms.")
@option(
    "--semantics", type=click.Choice(get_args(Semantics)), default="paper", help="E3D-LSTM implementation to follow."
)
@option("--stride", default=1, help="Stride of the convolutions; values above 1 require --semantics openstl.")
@option("--layer-norm/--no-layer-norm", default=True, help="Normalise the gates.")
@setting("context_length", "Context frames.", flag="context", most=MOST_FRAMES)
@setting("horizon", "Frames to predict.", most=MOST_FRAMES)
@setting("steps", "Optimizer steps.")
@setting("batch_size", "Clips per optimizer step.")
@setting("accumulate", "Micro-batches per optimizer step.")
@setting("loss", "Reduction of the loss: mean, or sum over the batch.")
@setting("l1_weight", "Weight of the absolute differences in the loss.")
@setting("optimizer", "Optimizer.")
@setting("beta1", "Decay of the mean gradient per step.")
@setting("beta2", "Decay of the mean squared gradient per step.")
@setting("weight_decay", "Weight decay (adamw and muon only).")
@setting("learning_rate", "Peak learning rate.")
@setting("schedule", "Learning rate schedule.")
@setting(
    "schedule_by", "Progress that the schedules follow. With time, --time-limit is required and --steps is a maximum."
)
@setting("warmup_steps", "Warm-up steps (cosine only).")
@setting("sampling", "Scheduled sampling method.")
@setting("sampling_start", "Probability of a true frame at step 0 (scheduled only).")
@setting(
    "sampling_decrease",
    "Decrease per step of the probability of a true frame (scheduled only).",
    default_text="reaches 0 at --sampling-stop-step",
)
@setting(
    "sampling_stop_step",
    "First step at which the network sees no true frame after the context.",
    default_text="half of --steps",
)
@setting(
    "sampling_hold_steps",
    "Steps before the probabilities of true frames change (reverse only).",
    default_text="half of --sampling-stop-step",
)
@setting("sampling_decay_steps", "Time constant of the change within the context (steps, reverse only).")
@setting("reverse_input", "Follow each step by a second one on the same clips in reverse order.")
@setting("ema_decay", "Decay of the moving average of the weights per step.")
@setting("ema_warmup", "Start the moving average with a smaller decay.")
@setting("average", "Validate and save the moving average of the weights.")
@setting("gradient_clip", "Largest norm of the gradients; 0 disables clipping.")
@setting("precision", "Precision; auto: bf16 if the GPU has it.")
@setting("recompute", "Save memory by recomputing activations.")
@setting("compile", "Compile the cells with torch.compile.")
@setting("cuda_graph", "Replay each training pass as a CUDA graph (one GPU, no --accumulate).")
@setting("validate_every", "Steps between validations.")
@setting("validation_clips", "Clips per validation; 0 uses all.")
@setting("save_every", "Steps between saved states.")
@setting("log_every", "Steps between lines of the log.")
@setting("burn_in", "Maximum burn-in frames before the context; 0 disables burn-in.")
@setting(
    "burn_in_steps",
    "Number of last steps with burn-in; requires burn-in.",
    default_text="a tenth of --steps",
)
@setting("fit", "Way to fit pictures of another aspect ratio.")
@LAYOUT
@setting("seed", "Seed of weights, data, sampling and burn-in.")
@option(
    "--devices",
    type=click.IntRange(min=1),
    help="Processes, one per device.",
    show_default="1, or as torchrun set",
)
@option("--nodes", type=click.IntRange(min=1), default=1, help="Machines that train together.")
@option(
    "--workers",
    type=click.IntRange(min=0),
    help="Data loading processes per device.",
    show_default="0, or up to 8 with a GPU",
)
@option(
    "--time-limit",
    metavar="MINUTES",
    type=Finite(min=0, min_open=True),
    help="Save and stop after this time (minutes).",
)
@option(
    "--decay/--no-decay",
    "measure_decay",
    default=True,
    help="Measure the decay of the state at the end (about 5 % of the run).",
)
@option("--parts", type=PATH, help="Folder for float16 weights in files of at most 16 MiB.")
@option(
    "--parts-every",
    metavar="MINUTES",
    type=Finite(min=0, min_open=True),
    help="Minutes between saved sets of parts; requires --parts.",
    show_default="1",
)
@option("--tensorboard", is_flag=True, help="Also log for TensorBoard.")
@option("--samples", type=PATH, help="Folder for pictures of validations, as google/e3d_lstm writes them.")
@option(
    "--sample-count",
    type=click.IntRange(min=0),
    default=10,
    help="Batches per validation whose pictures are written; requires --samples.",
)
def train(output: Path, resume: bool, resume_or_new: bool, **_: Any) -> None:
    """Train a model on Moving MNIST or on your own clips.

    The defaults are those of --recipe modern. The flags of run.py of google/e3d_lstm work too.
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
    sources = [name for name, _ in call["data"] if name != MOVING_MNIST]  # never a path
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
        if (output / STATE).exists():  # without a saved state there is nothing to resume
            next_command("train", "-o", output, "--resume")
        if not isinstance(interrupt, Interrupted):
            raise
        click.echo("interrupted", err=True)
        raise click.exceptions.Exit(128 + interrupt.number) from None
    if getattr(rank_zero_only, "rank", 0) == 0:  # only one process prints the result
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
"""Options, other than settings, that a resumed run restores. Other options depend on the machine."""
PART_OF = {
    "weight_decay": ("optimizer", ("adamw", "muon")),
    "warmup_steps": ("schedule", ("cosine",)),
    "sampling_start": ("sampling", ("scheduled",)),
    "sampling_decrease": ("sampling", ("scheduled",)),
    "sampling_hold_steps": ("sampling", ("reverse",)),
    "sampling_decay_steps": ("sampling", ("reverse",)),
}
"""Settings that apply only with certain values of another setting: that setting and these values."""


def _new(given: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig, dict[str, Any]]:
    """Return the configurations of a new run and the other arguments of `training.train.train`."""
    values = {**DEFAULTS, **given}
    model, config = configs(**values)
    _check_used(given, config, TrainConfig.of_recipe(values["recipe"]))
    return model, config, _call(values)


def _check_used(given: Mapping[str, Any], config: TrainConfig, recipe: TrainConfig) -> None:
    """Refuse settings that a new run would not use, unless their value is that of the recipe."""
    for name, (decider, users) in PART_OF.items():
        actual = getattr(config, decider)
        if actual not in users and getattr(config, name) != getattr(recipe, name):
            flag, needed = (f"--{one.replace('_', '-')}" for one in (name, decider))
            expected = " or ".join(users)
            raise click.UsageError(f"{flag} requires {needed} {expected}, and this run has {actual}; leave {flag} out")
    if given.get("burn_in_steps") and not config.burn_in:
        raise click.UsageError(
            "--burn-in-steps requires burn-in, and this run has none; give --burn-in too, or neither"
        )
    if "sample_count" in given and "samples" not in given:
        raise click.UsageError("--sample-count requires --samples FOLDER; give both, or neither")


def _resumed(run: Path, given: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig, dict[str, Any]]:
    """Return the configurations of a run to resume and the other arguments of `training.train.train`.

    Options that are not given keep the values of the run.

    Raises:
        ConfigError: the folder has no run, or the path of its digits is unknown.
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
            f"{run}: was started with --digits {begun.digits}, whose path is unknown; give --digits again"
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
    """Return the settings that change if the given recipe or preset differs from that of the run.

    Fields that only other recipes or presets set are returned with their default values.
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
    """Return the arguments of `training.train.train` other than the two configurations."""
    from e3d_deploy.training.train import MOVING_MNIST, Machine

    minutes, every = options.get("time_limit"), options.get("parts_every")
    if every is not None and options.get("parts") is None:
        raise click.UsageError("--parts-every requires --parts FOLDER; give both, or neither")
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
