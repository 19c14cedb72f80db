"""Translation of the command line of google/e3d_lstm `run.py` into options of `e3d`.

No flag of the released code is also an option of `e3d`, so a command line may use both. The options of `e3d` come last
and take precedence.
"""

import os
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

from e3d_deploy.errors import ConfigError

DEFAULTS = {
    "is_training": "True",
    "dataset_name": "mnist",
    "train_data_paths": "",
    "valid_data_paths": "",
    "save_dir": "",
    "gen_frm_dir": "",
    "input_length": "10",
    "total_length": "20",
    "img_width": "64",
    "img_channel": "1",
    "patch_size": "1",
    "reverse_input": "False",
    "model_name": "e3d_lstm",
    "pretrained_model": "",
    "num_hidden": "64,64,64,64",
    "filter_size": "5",
    "layer_norm": "True",
    "scheduled_sampling": "True",
    "sampling_stop_iter": "50000",
    "sampling_start_value": "1.0",
    "sampling_changing_rate": "0.00002",
    "lr": "0.001",
    "batch_size": "8",
    "max_iterations": "80000",
    "display_interval": "1",
    "test_interval": "1000",
    "snapshot_interval": "1000",
    "num_save_samples": "10",
    "n_gpu": "1",
    "allow_gpu_growth": "True",
}
"""Flags of the released code and their defaults."""
ALIASES = {"sampling_delta_per_iter": "sampling_changing_rate"}
"""Names of flags that the README and scripts of the released code use, but its program does not accept."""
YES, NO = ("true", "t", "1", "yes"), ("false", "f", "0", "no")


class Translation(NamedTuple):
    """Arguments of `e3d`, and remarks for the user."""

    arguments: list[str]
    remarks: list[str]


def translate(arguments: Sequence[str]) -> Translation:
    """Translate the arguments of `e3d train` into `train …`, or into `evaluate …` if the flags switch training off.

    Arguments without a flag of the released code are returned unchanged. If there is such a flag, all settings that are
    not given have the values of the released code, including its recipe, its memory and its epsilon.

    Raises:
        ConfigError: a flag has no value or an invalid one, or a required flag is missing.
    """
    flags, ours = _split(arguments)
    if not flags:
        return Translation(["train", *arguments], [])
    values = {**DEFAULTS, **flags}
    if values["model_name"] != "e3d_lstm":
        raise ConfigError(f"--model_name: got {values['model_name']}, expected e3d_lstm, the only model")
    if values["dataset_name"] not in ("mnist", "action"):
        raise ConfigError(f"--dataset_name: got {values['dataset_name']}, expected mnist or action")
    if "allow_gpu_growth" in flags:
        remarks = ["--allow_gpu_growth is ignored: PyTorch always allocates memory as it needs it"]
    else:
        remarks = []
    given = {word.partition("=")[0] for word in ours}
    if not _boolean(values, "is_training"):
        return Translation([*_evaluation(values, given), *ours], remarks)
    remarks.append(
        "flags of the released code select its recipe, its memory that stays zero and its epsilon; give "
        "--semantics paper for the memory of the paper"
    )
    if _number(values, "filter_size") != 5:
        remarks.append(f"--filter_size {values['filter_size']} is used here, although the released code always uses 5")
    return Translation([*_training(values, given), *ours], remarks)


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the flags of the released code with their values, and all other arguments."""
    flags: dict[str, str] = {}
    ours: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.lstrip("-").partition("=")
        name = ALIASES.get(name, name)
        if not argument.startswith("-") or name not in DEFAULTS:
            ours.append(argument)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                if name not in flags and DEFAULTS[name] in ("True", "False"):
                    flags[name] = "True"
                    continue
                raise ConfigError(f"--{name}: needs a value, such as --{name} {DEFAULTS[name] or 'PATH'}")
            value = rest.pop(0)
        flags[name] = value
    return flags, ours


def _training(values: Mapping[str, str], given: Set[str]) -> list[str]:
    context_length, total_length = _number(values, "input_length"), _number(values, "total_length")
    # With reverse_input the released code takes two optimizer steps per iteration: one on the clips and one on their
    # reversed frames.
    passes = 2 if _boolean(values, "reverse_input") else 1
    devices = _number(values, "n_gpu")
    options = {
        "--recipe": "google",
        "--semantics": "google",
        "--norm-eps": "1e-12",
        "--history-length": str(total_length),
        "--validation-clips": "0",
        "--image-size": f"{values['img_width']}x{values['img_width']}",
        "--channels": values["img_channel"],
        "--patch-size": values["patch_size"],
        "--hidden": values["num_hidden"],
        "--kernel-size": values["filter_size"],
        "--context": str(context_length),
        "--horizon": str(total_length - context_length),
        "--sampling-start": values["sampling_start_value"],
        "--sampling-decrease": values["sampling_changing_rate"],
        "--sampling-stop-step": values["sampling_stop_iter"] if _boolean(values, "scheduled_sampling") else "0",
        "--learning-rate": values["lr"],
        "--batch-size": str(devices * _number(values, "batch_size")),  # batch_size is the number of clips per GPU
        "--steps": str(passes * _number(values, "max_iterations")),
        "--log-every": str(passes * _number(values, "display_interval")),
        "--validate-every": str(passes * _number(values, "test_interval")),
        "--save-every": str(passes * _number(values, "snapshot_interval")),
    }
    if devices != 1:
        options["--devices"] = str(devices)
    # Options of `e3d` take precedence. --data may be given several times and the sources are mixed, so it is added only
    # if it is not given.
    if not given & {"-o", "--output"}:
        options["-o"] = _path(values, "save_dir")
    if "--data" not in given:
        options["--data"] = _paths(values, "train_data_paths")
    if "--valid-data" not in given:
        options["--valid-data"] = _paths(values, "valid_data_paths")
    if values["gen_frm_dir"]:
        options |= {"--samples": _path(values, "gen_frm_dir"), "--sample-count": values["num_save_samples"]}
    if values["pretrained_model"]:
        options["--init"] = _path(values, "pretrained_model")
    switches = ["--resume-or-new", "--layer-norm" if _boolean(values, "layer_norm") else "--no-layer-norm"]
    if passes == 2:
        switches.append("--reverse-input")
    return ["train", *(word for option in options.items() for word in option), *switches]


def _evaluation(values: Mapping[str, str], given: Set[str]) -> list[str]:
    context_length, total_length = _number(values, "input_length"), _number(values, "total_length")
    options = {
        "--image-size": f"{values['img_width']}x{values['img_width']}",
        "--patch-size": values["patch_size"],
        "--channels": values["img_channel"],
        "--history-length": str(total_length),
        "--context": str(context_length),
        "--horizon": str(total_length - context_length),
        "--convention": "original",
    }
    if "--data" not in given:
        options["--data"] = _paths(values, "valid_data_paths")
    if values["gen_frm_dir"]:
        options |= {"-o": _path(values, "gen_frm_dir"), "--samples": values["num_save_samples"]}
    model = _path(values, "pretrained_model")
    return ["evaluate", model, *(word for option in options.items() for word in option)]


def _path(values: Mapping[str, str], name: str) -> str:
    if not values[name]:
        raise ConfigError(f"--{name}: is missing; give a path")
    return os.path.expanduser(values[name])  # unchanged if the user has no home folder


def _paths(values: Mapping[str, str], name: str) -> str:
    """Return the paths in a value, joined by commas, with the home folder in place of each leading `~`."""
    _path(values, name)
    return ",".join(os.path.expanduser(part) for part in values[name].split(","))


def _number(values: Mapping[str, str], name: str) -> int:
    try:
        return int(values[name])
    except ValueError as error:
        raise ConfigError(f"--{name}: got {values[name]!r}, expected a whole number") from error


def _boolean(values: Mapping[str, str], name: str) -> bool:
    value = values[name].lower()
    if value not in (*YES, *NO):
        raise ConfigError(f"--{name}: got {values[name]!r}, expected True or False")
    return value in YES
