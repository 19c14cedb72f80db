"""Results as JSON values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any


def json_object(value: object) -> dict[str, Any]:
    """Return a dataclass or mapping as `json_values` does."""
    found: dict[str, Any] = json_values(value)
    return found


def json_values(value: object) -> Any:
    """Return a value as JSON values: dataclasses and mappings as objects, sequences as arrays, paths as text.

    A number that is not finite becomes None, as JSON has none.
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
