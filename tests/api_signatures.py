"""Signatures of the stable API as text. `python -m tests.api_signatures` writes them to api_signatures.txt."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from e3d_deploy import api

FILE = Path(__file__).with_suffix(".txt")
INDENT = "    "


def described() -> str:
    """Return each public name with its parameters and defaults, and for classes, with their public members."""
    return "\n".join(line for name in api.__all__ for line in _lines(name, getattr(api, name))) + "\n"


def _lines(name: str, one: Any) -> Iterator[str]:
    if not inspect.isclass(one):
        yield _call(name, one)
    elif issubclass(one, Exception):
        yield f"class {name}({', '.join(base.__name__ for base in one.__bases__)}): exit code {one.exit_code}"  # type: ignore[attr-defined]
    else:
        yield _call(f"class {name}", one)
        yield from sorted(_members(one))


def _members(kind: type[Any]) -> Iterator[str]:
    """Yield the public methods and properties that the package defines."""
    for name in dir(kind):
        found = inspect.getattr_static(kind, name)
        function = found.__func__ if isinstance(found, classmethod | staticmethod) else found
        if name.startswith("_") or not _module(function).startswith("e3d_deploy"):
            continue
        yield INDENT + (_call(name, function) if inspect.isfunction(function) else name)


def _module(found: Any) -> str:
    """Return the module that defines a method or a property; an empty text for fields of a dataclass."""
    found = getattr(found, "fget", None) or getattr(found, "func", None) or found
    return getattr(found, "__module__", None) or ""


def _call(name: str, function: Callable[..., Any]) -> str:
    parameters = [
        one.replace(annotation=inspect.Parameter.empty, default=_shown(one.default))
        for one in inspect.signature(function).parameters.values()
        if one.name not in ("self", "cls")
    ]
    return name + str(inspect.Signature(parameters))


def _shown(default: Any) -> Any:
    """Return a default whose text is the same in every run."""
    if default in (None, inspect.Parameter.empty) or isinstance(default, bool | int | float | str | tuple):
        return default
    if default.__class__.__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
        return _Text("factory()")
    return _Text(default.__name__ if callable(default) else type(default).__name__)


class _Text(str):
    """Text that is shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


if __name__ == "__main__":
    FILE.write_text(described())
