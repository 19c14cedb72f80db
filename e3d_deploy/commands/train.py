"""`e3d train`: trains a model."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from e3d_deploy.commands._help import GroupedCommand
from e3d_deploy.commands._options import is_given
from e3d_deploy.commands._output import next_command
from e3d_deploy.commands._process import randomness_kept
from e3d_deploy.commands._train_options import DEFAULTS, GROUPS, MORE_GROUPS, train_options
from e3d_deploy.config import PRESETS, RECIPES, ModelConfig, TrainConfig
from e3d_deploy.errors import ConfigError
from e3d_deploy.training.sizes import configs, fields_of

NAMED = {"recipe": RECIPES, "preset": PRESETS}
"""Values of the options that set several settings at once."""
EXAMPLES = (
    "e3d train -o runs/small --preset small",
    "e3d train -o runs/film --data clips/ --image-size 64x96 --time-limit 60",
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


@click.command(cls=GroupedCommand, groups=GROUPS, more=MORE_GROUPS, examples=EXAMPLES)
@train_options
def train(output: Path, resume: bool, resume_or_new: bool, **_: Any) -> None:
    """Train a model on Moving MNIST or on your own clips.

    The defaults are those of --recipe modern. The flags of run.py of google/e3d_lstm work too.
    """
    from e3d_deploy.workflows.places import check_apart

    with randomness_kept():
        from lightning.pytorch.utilities import rank_zero_only

        from e3d_deploy.training.callbacks import Interrupted
        from e3d_deploy.training.settings import STATE
        from e3d_deploy.training.train import MOVING_MNIST, resume_or_next
        from e3d_deploy.training.train import train as train_model

    given = {name: value for name, value in click.get_current_context().params.items() if is_given(name)}
    model_config, config, call = _resumed(output, given) if resume else _new(given)
    sources = [name for name, _ in call["data"] if name != MOVING_MNIST]  # generated, so it has no path
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
"""Settings that apply only if a second setting has certain values: the name of the second setting, and these values."""


def _new(given: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig, dict[str, Any]]:
    """Return the configurations of a new run and the other arguments of `training.train.train`."""
    values = {**DEFAULTS, **given}
    fields = fields_of(ModelConfig, values) | fields_of(TrainConfig, values)
    model, config = configs(values["preset"], values["recipe"], **fields)
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
