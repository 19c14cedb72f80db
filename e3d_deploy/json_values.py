"""Conversion of results to JSON values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any


def json_object(value: object) -> dict[str, Any]:
    """Convert a dataclass or mapping to a JSON object, like `json_values`."""
    found: dict[str, Any] = json_values(value)
    return found


def json_values(value: object) -> Any:
    """Convert a value to JSON values: dataclasses and mappings to objects, sequences to arrays, paths to text.

    NaN and infinite numbers become None, because JSON cannot represent them.
    """
    if is_dataclass(value):
        return {field.name: json_values(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): json_values(one) for name, one in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [json_values(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
