"""Sizes of networks and runs that suit frames; needs no PyTorch."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from e3d_deploy.config import PRESETS, ModelConfig, TrainConfig

MOST_PATCHES = 1024
"""Patches of a frame above which a larger patch is suggested: the work of recall grows with their square."""


def configs(preset: str, recipe: str = "modern", **changes: Any) -> tuple[ModelConfig, TrainConfig]:
    """Return the configurations of a preset and a recipe, with changes; other names are passed over."""
    values = {**PRESETS[preset], **changes}
    model = ModelConfig(**fields_of(ModelConfig, values))
    return model, TrainConfig.of_recipe(recipe, **fields_of(TrainConfig, values))


def fields_of(config: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are fields of a configuration."""
    names = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if name in names}


def size_arguments(preset: str, image_size: tuple[int, int]) -> tuple[str, ...]:
    """Return the options of `e3d train` for a preset, with a patch that suits the frames where its own does not."""
    usual = configs(preset)[0].patch_size
    patch = fitting_patch(image_size, at_most=usual)
    return ("--preset", preset, *(() if patch in (usual, None) else ("--patch-size", str(patch))))


def fitting_patch(image_size: tuple[int, int], *, at_most: int) -> int | None:
    """Return the patch side that divides a frame into few enough patches, `at_most` or the next one; None if none."""
    height, width = image_size
    both = math.gcd(height, width)
    sides = [side for side in range(1, both + 1) if both % side == 0]
    few = [side for side in sides if height * width / side**2 <= MOST_PATCHES]
    smaller = [side for side in few if side <= at_most]
    return max(smaller) if smaller else min(few, default=None)
