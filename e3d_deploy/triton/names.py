"""Names of the models in a repository."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import ConfigError
from e3d_deploy.triton.config import Flavour

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""Pattern of valid model names: they are names of folders, and parts of the addresses of requests."""


def named_models(
    bundles: Sequence[Bundle], flavours: Sequence[Flavour], name: str | None
) -> dict[str, tuple[Bundle, Flavour]]:
    """Return the bundle and the flavour of each model, by the name of the model.

    Args:
        name: name of the model of the only bundle; None makes the names from the names of the bundles.

    Raises:
        ConfigError: `name` is invalid, or two models have the same name.
    """
    if name is not None and not NAME.fullmatch(name):
        raise ConfigError(
            f"name: got {name!r}, expected letters, digits, underscores, points and hyphens, the first a letter, digit "
            "or underscore; give another name"
        )
    found: dict[str, tuple[Bundle, Flavour]] = {}
    for bundle in bundles:
        stem = name or name_of(bundle.path)
        for flavour in dict.fromkeys(flavours):
            key = stem if flavour == "python" else f"{stem}_{flavour}"
            if key in found:
                _refuse_twin(found[key][0].path, bundle.path, key)
            found[key] = (bundle, flavour)
    return found


def _refuse_twin(one: Path, other: Path, name: str) -> NoReturn:
    if one.resolve() == other.resolve():
        raise ConfigError(f"{other}: is given twice; give it once")
    raise ConfigError(
        f"name: {one} and {other} both give the model {name}; rename one of the bundles, or pack them into two "
        "repositories"
    )


def name_of(bundle: Path) -> str:
    """Return the name of a bundle without its suffix, with underscores in place of characters that no model name has.

    A name that would start with a point or a hyphen starts with an underscore.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", bundle.resolve().name.removesuffix(".e3d"))
    return re.sub(r"^[.-]", "_", name) or "model"
