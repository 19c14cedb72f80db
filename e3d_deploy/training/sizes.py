"""Sizes of networks and runs that suit the size of the frames. Needs no PyTorch."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from e3d_deploy.config import PRESETS, ModelConfig, TrainConfig
from e3d_deploy.errors import ConfigError

MAX_PATCHES = 1024
"""Maximum number of patches per frame with a suggested patch size. The work of recall grows with the square of this
number."""


def configs(preset: str, recipe: str = "modern", **changes: Any) -> tuple[ModelConfig, TrainConfig]:
    """Return the configurations of a preset and a recipe.

    Args:
        changes: fields of `ModelConfig` and `TrainConfig` to set.

    Raises:
        ConfigError: the preset, the recipe or a field is unknown, or a value is invalid.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset: got {preset!r}, expected one of {', '.join(PRESETS)}")
    known = fields_of(ModelConfig, changes) | fields_of(TrainConfig, changes)
    for name in changes.keys() - known.keys():
        raise ConfigError(f"{name}: is no field of ModelConfig or TrainConfig; check its spelling")
    values = {**PRESETS[preset], **changes}
    model = ModelConfig(**fields_of(ModelConfig, values))
    return model, TrainConfig.of_recipe(recipe, **fields_of(TrainConfig, values))


def fields_of(config: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values whose names are fields of a configuration."""
    names = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if name in names}


def size_arguments(preset: str, image_size: tuple[int, int]) -> tuple[str, ...]:
    """Return the options of `e3d train` for a preset.

    They contain a patch size only if the patch size of the preset does not suit the frames.
    """
    usual = configs(preset)[0].patch_size
    patch = fitting_patch(image_size, at_most=usual)
    return ("--preset", preset, *(() if patch in (usual, None) else ("--patch-size", str(patch))))


def fitting_patch(image_size: tuple[int, int], *, at_most: int) -> int | None:
    """Return a patch size that divides a frame into at most `MAX_PATCHES` patches.

    Args:
        image_size: height and width of a frame (pixels).
        at_most: preferred maximum.

    Returns:
        The largest such size up to `at_most`; if there is none, the smallest above it; None if no patch size fits.
    """
    height, width = image_size
    both = math.gcd(height, width)
    sides = [side for side in range(1, both + 1) if both % side == 0]
    few = [side for side in sides if height * width / side**2 <= MAX_PATCHES]
    smaller = [side for side in few if side <= at_most]
    return max(smaller) if smaller else min(few, default=None)
