"""Settings that determine the results of a run, stored in the run folder and read again when the run is resumed."""

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from e3d_deploy.config import ModelConfig, TrainConfig
from e3d_deploy.errors import CheckpointError, ConfigError
from e3d_deploy.files import sha256, write_file
from e3d_deploy.tensors import without_number

SETTINGS, COMMAND, STATE = "config.json", "command.json", "last.ckpt"
"""Files of a run folder: settings that determine its results, the command that began it, and its last saved state."""


def settings_of(
    model: ModelConfig,
    config: TrainConfig,
    data: Sequence[tuple[str, float]],
    valid: str | None,
    initial: Path | None,
    digits: Path | None,
    time_limit_s: float | None,
) -> dict[str, Any]:
    """Return the settings that determine the results of a run, as JSON values."""

    def named(path: Path | None) -> dict[str, Any] | None:
        return None if path is None else {"name": path.name, "sha256": _hash(path)}

    settings = {
        "model": model.to_dict(),
        "train": config.to_dict(),
        "data": list(data),
        "valid": valid,
        "initial": named(initial),
        "digits": named(digits),
        "time_limit_s": time_limit_s if config.schedule_by == "time" else None,
    }
    return json.loads(json.dumps(settings))  # type: ignore[no-any-return]


FREE_TO_CHANGE = ("steps", "validate_every", "validation_clips", "save_every", "log_every")
"""Settings that may change when a run is resumed."""
BEFORE: dict[str, Any] = {"burn_in": 0}
"""Values of settings for runs that were begun before these settings existed. A setting is listed here only if such a
run has to keep a value that differs from today's default."""


def as_begun(run: Path, config: TrainConfig) -> TrainConfig:
    """Return the settings with which a run is resumed.

    They are the settings of `config`, with one exception: a setting in `BEFORE` gets the value listed there if it did
    not exist when the run was begun, and if it has its default in `config`.
    """
    try:
        stored = dict(json.loads((run / SETTINGS).read_text())["train"])
    except (OSError, ValueError, KeyError, TypeError):
        return config  # the file is damaged, which `check_resumable` reports
    unasked = [name for name in BEFORE if name not in stored and getattr(config, name) == getattr(TrainConfig, name)]
    return replace(config, **{name: BEFORE[name] for name in unasked})


def check_resumable(run: Path, settings: dict[str, Any], *, same_weights: bool = False) -> bool:
    """Check that a run can be resumed with these settings; return True if the run is finished.

    Args:
        settings: settings to resume with, as returned by `settings_of`.
        same_weights: do not compare the initial weights, because the saved state replaces them.

    Raises:
        CheckpointError: the saved state or the settings of the run are damaged.
        ConfigError: a newer version wrote the settings, or the run was begun with different settings.
    """
    # The file of the settings does not contain fields that have their default.
    defaults = {one.name: one.default for one in fields(TrainConfig)}
    settings = {**settings, "train": {**defaults, **settings["train"]}}
    try:
        stored = json.loads((run / SETTINGS).read_text())
        stored = {"digits": None, **stored, "time_limit_s": settings["time_limit_s"]}
        stored["train"] = {**defaults, **BEFORE, **stored["train"]}
        if same_weights:
            stored["initial"] = settings["initial"]
        state = torch.load(run / STATE, map_location="cpu", weights_only=True, mmap=True)
        done, limit_s = int(state["global_step"]) >= settings["train"]["steps"], settings["time_limit_s"]
        if limit_s is not None and stored["train"]["schedule_by"] == "time":
            done = done or float(state["callbacks"]["Keeper"]["elapsed_s"]) >= limit_s
        one_cycle = stored["train"]["schedule"] == "onecycle" and stored["train"]["schedule_by"] == "steps"
        for name in FREE_TO_CHANGE:
            if not (one_cycle and name == "steps"):  # OneCycleLR cannot go beyond the steps that it was made for
                stored["train"][name] = settings["train"][name]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError, TypeError) as error:
        raise _damaged(run, error) from error
    _check_known(run, stored["train"])
    if stored != settings:
        changed = [
            name
            for part in ("model", "train")
            for name, value in settings[part].items()
            if stored.get(part, {}).get(name) != value
        ]
        changed += [part for part in ("data", "valid", "initial", "digits") if stored.get(part) != settings[part]]
        raise ConfigError(
            f"{run}: was begun with different options ({', '.join(changed)}); give the same options, or a new folder"
        )
    return bool(done)


def _hash(initial: Path) -> str | None:
    """Return the SHA-256 of a file; None for a TensorFlow checkpoint, which consists of several files."""
    return sha256(initial) if initial.is_file() else None


@dataclass(frozen=True, kw_only=True)
class Command:
    """Working folder and command line options of a run that `SETTINGS` does not contain."""

    folder: Path | None = None
    """Working folder in which the run was begun; None if an older version began the run. Relative names of sources that
    do not exist in the current folder are looked up there."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options by name, as JSON values."""

    def write(self, run: Path) -> None:
        """Write the command into a run folder."""
        entries = {"folder": None if self.folder is None else str(self.folder), "options": dict(self.options)}
        write_file(run / COMMAND, (json.dumps(entries, indent=2) + "\n").encode())

    @classmethod
    def read(cls, run: Path) -> "Command":
        """Return the command of a run; an empty command if an older version began the run.

        Raises:
            CheckpointError: the file of the command is damaged.
        """
        try:
            entries = json.loads((run / COMMAND).read_text())
            folder = None if entries["folder"] is None else Path(entries["folder"])
            return cls(folder=folder, options=dict(entries["options"]))
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{run / COMMAND}: is damaged ({error}); delete it, and give options such as --digits and --parts again"
            ) from error

    def located(self, source: str) -> str:
        """Return the name of a source, relative to the folder of the command if it exists only there."""
        if self.folder is None or os.path.exists(source):
            return source
        for parts in ([source], source.split(",")):  # two files of Moving MNIST are named with a comma between them
            names = [os.path.join(self.folder, part) for part in parts]
            if all(map(os.path.exists, names)):
                return ",".join(names)
        return source


@dataclass(frozen=True, kw_only=True)
class Begun:
    """Settings that a run was begun with."""

    model: ModelConfig
    train: TrainConfig
    data: tuple[tuple[str, float], ...]
    valid: str | None
    digits: str | None
    """Name of the file of digits; None for the digits of the package."""
    time_limit_s: float | None
    """Time limit that the schedules follow (seconds); None if they follow the steps."""

    @classmethod
    def read(cls, run: Path) -> "Begun":
        """Return the settings of a run that can be resumed.

        Raises:
            ConfigError: the run has no saved state, or a newer version wrote its settings.
            CheckpointError: the file of the settings is damaged.
        """
        if not (run / STATE).exists():
            raise ConfigError(f"{run}: nothing to resume, {STATE} does not exist; train without --resume")
        try:
            stored = json.loads((run / SETTINGS).read_text())
            train = {**BEFORE, **stored["train"]}
            _check_known(run, train)
            return cls(
                model=ModelConfig.from_dict(stored["model"]),
                train=TrainConfig(**train),
                data=tuple((str(text), float(share)) for text, share in stored["data"]),
                valid=stored["valid"],
                digits=(stored.get("digits") or {}).get("name"),
                time_limit_s=stored.get("time_limit_s"),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise _damaged(run, error) from error


def _damaged(run: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{run}: cannot be resumed, its {STATE} or {SETTINGS} is damaged ({without_number(error)})")


def _check_known(run: Path, train: Mapping[str, Any]) -> None:
    if unknown := sorted(set(train) - {one.name for one in fields(TrainConfig)}):
        raise ConfigError(
            f"{run}: {SETTINGS}: unknown field {', '.join(unknown)}, written by a newer e3d_deploy; update e3d_deploy"
        )
