"""Configurations: checks of values, derived sizes, and JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e3d_deploy.config import EngineConfig, ModelConfig, TrainConfig
from e3d_deploy.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": (64,)}, r"image_size: got \(64,\), expected height and width in pixels"),
        ({"image_size": (64, 64, 1)}, r"image_size: got \(64, 64, 1\), expected height and width"),
        ({"image_size": (0, 64)}, r"image_size: got \(0, 64\), expected height and width"),
        ({"patch_size": 5}, r"patch_size: 5 does not divide the frame of \(64, 64\) pixels; choose a common divisor"),
        ({"image_size": (64, 30)}, r"patch_size: 4 does not divide the frame of \(64, 30\) pixels"),
        ({"patch_size": 0}, "patch_size: 0 does not divide"),
        ({"hidden": ()}, r"hidden: got \(\), expected at least one layer"),
        ({"hidden": (8, 0)}, r"hidden: got \(8, 0\), expected at least one layer, each of 1 channel or more"),
        ({"kernel_size": 4}, "kernel_size: got 4, expected an odd number"),
        ({"kernel_size": -1}, "kernel_size: got -1, expected an odd number"),
        ({"channels": 0}, "channels: got 0, expected 1 or more"),
        ({"window_length": 1}, "window_length: got 1, expected 2 or more"),
        ({"history_length": 0}, "history_length: got 0, expected 1 or more"),
        ({"norm_eps": 0.0}, "norm_eps: got 0.0, expected more than 0"),
        ({"norm_eps": float("nan")}, "norm_eps: got nan, expected more than 0"),
        ({"semantics": "openai"}, "semantics: got 'openai', expected one of paper, google, openstl"),
        ({"stride": 0}, "stride: got 0, expected 1"),
        ({"stride": 2}, "stride: got 2, expected 1; a larger stride needs the semantics openstl"),
        ({"semantics": "openstl", "window_length": 3}, "window_length: got 3, expected 2 with the semantics openstl"),
        (
            {"semantics": "openstl", "hidden": (4, 6)},
            r"hidden: got \(4, 6\), expected equal sizes with the semantics openstl",
        ),
    ],
    ids=str,
)
def test_model_config_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *[
            ({name: 0}, f"{name}: got 0, expected 1 or more")
            for name in ("context_length", "horizon", "steps", "batch_size", "accumulate", "save_every", "log_every")
        ],
        ({"ema_decay": 1.0}, "ema_decay: got 1.0, expected 0 or more and less than 1"),
        ({"ema_decay": -0.1}, "ema_decay: got -0.1, expected 0 or more and less than 1"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0, expected more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate: got nan, expected more than 0"),
        ({"schedule_by": "hours"}, "schedule_by: got 'hours', expected one of steps, time"),
        ({"optimizer": "sgd"}, "optimizer: got 'sgd', expected one of adamw, adam, muon, released-adam"),
        ({"batch_size": 4, "accumulate": 3}, "accumulate: got 3, expected a divisor of the batch size, 4 clips"),
        ({"sampling_stop_step": -1}, "sampling_stop_step: got -1, expected 0 or more"),
    ],
    ids=str,
)
def test_train_config_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**fields)


def test_model_config_survives_json() -> None:
    config = ModelConfig(
        image_size=(48, 80),
        channels=3,
        patch_size=8,
        hidden=(3, 5, 7),
        kernel_size=3,
        window_length=3,
        history_length=6,
        layer_norm=False,
        norm_eps=1e-12,
        semantics="google",
    )
    assert config.to_dict()["hidden"] == [3, 5, 7]
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", ModelConfig.FIRST.split())
def test_a_field_that_was_always_written_may_not_be_missing(name: str) -> None:
    fields = ModelConfig().to_dict()
    del fields[name]
    with pytest.raises(ConfigError, match=f"^config: lacks {name}; the file is damaged, make it again$"):
        ModelConfig.from_dict(fields)


def test_unknown_fields_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown field colour, heads, written by a newer e3d_deploy; update"):
        ModelConfig.from_dict({"heads": 4, "colour": "red", "channels": 1})


@dataclass(frozen=True, kw_only=True)
class NewerModelConfig(ModelConfig):
    """Config of a later version, with an additional field."""

    heads: int = 4


def test_a_newer_field_is_written_only_when_it_is_not_the_default() -> None:
    assert NewerModelConfig(channels=3).to_dict() == ModelConfig(channels=3).to_dict()
    assert ModelConfig.from_dict(NewerModelConfig(channels=3).to_dict()) == ModelConfig(channels=3)
    with pytest.raises(ConfigError, match="unknown field heads, written by a newer e3d_deploy; update e3d_deploy"):
        ModelConfig.from_dict(NewerModelConfig(heads=8).to_dict())


def test_the_fields_of_the_first_version_are_always_written() -> None:
    golden = Path(__file__).parent / "golden" / "faccf7a" / "tiny.e3d" / "manifest.json"
    assert (
        set(ModelConfig().to_dict()) == set(json.loads(golden.read_text())["config"]) == set(ModelConfig.FIRST.split())
    )
    assert set(EngineConfig().to_dict()) == set(EngineConfig.FIRST.split())
    assert set(TrainConfig().to_dict()) == set(TrainConfig.FIRST.split())
    assert TrainConfig(burn_in_steps=3, cuda_graph=True).to_dict().keys() - set(TrainConfig.FIRST.split()) == {
        "burn_in_steps",
        "cuda_graph",
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": 64}, "hidden: got 64, expected a list of whole numbers"),
        ({"hidden": [64, 1.5]}, "hidden: got 1.5, expected a whole number"),
        ({"image_size": None}, "image_size: got None, expected a list of whole numbers"),
        ({"patch_size": "4"}, "patch_size: got '4', expected a whole number"),
        ({"layer_norm": "x"}, "layer_norm: got 'x', expected true or false"),
        ({"norm_eps": "small"}, "norm_eps: got 'small', expected more than 0"),
        ({"norm_eps": float("inf")}, "norm_eps: got inf, expected more than 0"),
        ({"semantics": ["paper"]}, r"semantics: got \['paper'\], expected one of"),
    ],
    ids=str,
)
def test_fields_of_the_wrong_kind_are_config_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        ModelConfig.from_dict(ModelConfig().to_dict() | fields)


def test_lists_become_tuples_so_that_configs_can_be_compared() -> None:
    config = ModelConfig(image_size=[32, 48], hidden=[4, 6])  # type: ignore[arg-type]
    assert config == ModelConfig(image_size=(32, 48), hidden=(4, 6))
    assert hash(config) == hash(ModelConfig(image_size=(32, 48), hidden=(4, 6)))


def test_sizes_are_derived() -> None:
    config = ModelConfig(image_size=(48, 80), channels=3, patch_size=8, hidden=(3, 5, 7))
    assert config.patch_channels == 192
    assert config.grid_size == (6, 10)
    assert TrainConfig(context_length=7, horizon=4).clip_length == 11


def test_memory_comes_from_the_layer_below_and_first_from_the_top() -> None:
    assert ModelConfig(hidden=(3, 5, 7)).memory_channels == (7, 3, 5)
    assert ModelConfig(hidden=(3,)).memory_channels == (3,)


def test_memory_that_is_always_zero_has_the_channels_of_the_top_layer() -> None:
    assert ModelConfig(hidden=(3, 5, 7), semantics="google").memory_channels == (7, 7, 7)
