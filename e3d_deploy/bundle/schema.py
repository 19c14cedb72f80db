"""Frozen dataclasses for the objects of a JSON file; their annotations are the schema for reading and writing."""

import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

EXPECTED = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Base of the classes that describe an object of the file; a subclass adds the fields.

    A field without a default is required. A field with a default is optional, and is written only if its value
    differs from the default.
    """

    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the file that this version does not know; they are written back unchanged."""

    @classmethod
    def from_json(cls, value: object, where: str = "") -> Self:
        """Create the object from a decoded JSON value.

        Args:
            where: path of the object in the file, such as `graphs[0]`, for messages.

        Raises:
            ValueError: A field is missing or has the wrong type; the error names the field.
        """
        if not isinstance(value, Mapping):
            raise ValueError(f"{where or 'file'}: got {reprlib.repr(value)}, expected an object")
        kind: type = cls
        hints = _hints(kind)
        if missing := sorted(name for name in required(cls) if name not in value):
            raise ValueError(f"{where}{': ' if where else ''}lacks {', '.join(missing)}")
        prefix = f"{where}." if where else ""
        known = {name: _read(hints[name], value[name], prefix + name) for name in hints if name in value}
        return cls(**known, extra={name: one for name, one in value.items() if name not in hints})

    def to_json(self) -> dict[str, Any]:
        """Return the object as JSON values, unknown fields last."""
        result = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name != "extra" and not _is_default(one, value):
                result[one.name] = _write(value)
        return result | dict(self.extra)


def required(entry: type[Entry]) -> list[str]:
    """Return the names of the required fields of a class."""
    return [one.name for one in fields(entry) if one.default is MISSING and one.default_factory is MISSING]


@cache
def _hints(entry: type) -> dict[str, Any]:
    """Return the annotations of the fields of a class, except `extra`, by name."""
    return {name: hint for name, hint in get_type_hints(entry).items() if name != "extra"}


def _is_default(one: Any, value: object) -> bool:
    if one.default_factory is not MISSING:
        return bool(value == one.default_factory())
    return one.default is not MISSING and bool(value == one.default)


def _read(hint: Any, value: object, where: str) -> Any:
    """Check a decoded JSON value against an annotation; convert lists to tuples, and objects to entries."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is UnionType:
        if value is None and NoneType in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not NoneType]
        if len(kinds) > 1 and type(value) not in kinds:
            raise ValueError(_mismatch(where, value, " or ".join(EXPECTED[kind] for kind in kinds)))
        return _read(type(value) if len(kinds) > 1 else kinds[0], value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(_mismatch(where, value, "a list"))
        return tuple(_read(arguments[0], one, f"{where}[{number}]") for number, one in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(_mismatch(where, value, "an object"))
        return {name: _read(arguments[1], one, f"{where}.{name}") for name, one in value.items()}
    if issubclass(hint, Entry):
        return hint.from_json(value, where)
    # Compare types exactly: `bool` is a subclass of `int` in Python, but not a number in JSON. An `int` is a valid
    # `float`.
    if type(value) is not hint and not (hint is float and type(value) is int):
        raise ValueError(_mismatch(where, value, EXPECTED[hint]))
    return value


def _write(value: Any) -> Any:
    if isinstance(value, Entry):
        return value.to_json()
    if isinstance(value, tuple):
        return [_write(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _write(one) for name, one in value.items()}
    return value


def _mismatch(where: str, value: object, expected: str) -> str:
    return f"{where}: got {reprlib.repr(value)}, expected {expected}"
