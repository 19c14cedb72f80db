"""Checks of paths that a program passes to a function."""

import os
from pathlib import Path
from typing import Any

from e3d_deploy.errors import ConfigError


def check_path(name: str, value: Any) -> Path:
    """Return `value`, a text or a path object, as a path.

    Raises:
        ConfigError: `value` is neither text nor a path object, or contains a character that file names cannot contain.
    """
    try:
        text = os.fspath(value)
        os.fsencode(text)
    except (TypeError, UnicodeError):
        text = None
    if not isinstance(text, str) or "\0" in text:
        raise ConfigError(f"{name}: got {value!r}, expected text or a path, such as model.e3d")
    return Path(text)


def check_source(name: str, value: Any) -> str:
    """Return `value`, the text or the path of a data source, as text; the text of an address or a name is not changed.

    Raises:
        ConfigError: see `check_path`.
    """
    path = check_path(name, value)
    return value if isinstance(value, str) else str(path)
