"""Hexadecimal numbers in names. Needs no PyTorch."""

import os
import re
from collections.abc import Sequence

DECIMALS, DIGITS = "0123456789", "0123456789abcdef"
_NUMBER = re.compile(r"[0-9a-f]+")


def common_start(stems: Sequence[str]) -> str:
    """Return the longest common prefix of the names."""
    return os.path.commonprefix(stems)  # noqa: RUF071 (letter by letter is meant)


def hexadecimal_ends(stems: Sequence[str], digits: str = "") -> list[str] | None:
    """Return what follows the common start of the names; None unless that is a hexadecimal number in every name.

    Args:
        stems: names without suffixes.
        digits: digits that belong to the numbers if the common start ends with them.
    """
    start = len(common_start(stems).rstrip(digits))
    ends = [stem[start:] for stem in stems]
    return ends if all(map(_NUMBER.fullmatch, ends)) else None
