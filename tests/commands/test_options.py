"""Every field of a configuration can be set on the command line."""

import dataclasses
from typing import Any

import pytest

from e3d_deploy.cli import main
from e3d_deploy.config import EngineConfig, ModelConfig, TrainConfig
from e3d_deploy.policies import Budget, parse_budget
from e3d_deploy.training.train import Machine

RENAMED = {
    ("build", "workspace_bytes"): "workspace_mb",
    ("train", "parts_every_s"): "parts_every",
    ("train", "time_limit_s"): "time_limit",
}
"""Options that set a field in another unit, by command and field."""
EXCUSED = {("train", "progress"): "the command always shows its bar; programs that call `train` may switch it off"}
"""Fields without an option, by command and field, with the reason."""
COMMANDS: list[tuple[str, type[Any]]] = [
    ("train", ModelConfig),
    ("train", TrainConfig),
    ("train", Machine),
    ("build", EngineConfig),
]


@pytest.mark.parametrize(("command", "config"), COMMANDS)
def test_every_field_is_an_option(command: str, config: type[Any]) -> None:
    options = {option.name for option in main.commands[command].params}
    fields = {field.name for field in dataclasses.fields(config)}
    missing = {name for name in fields if RENAMED.get((command, name), name) not in options}
    excused = {name for of, name in EXCUSED if of == command and name in fields}
    assert missing == excused


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Budget)])
def test_every_field_of_a_budget_can_be_named(name: str) -> None:
    assert parse_budget(f"{name}=0.5") == Budget(**{name: 0.5})
    (option,) = (one for one in main.commands["export"].params if one.name == "budget")
    assert name in getattr(option, "help", "")
