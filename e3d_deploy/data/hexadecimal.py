"""Hexadecimal numbers in names. Needs no PyTorch."""

import os
import re
from collections.abc import Sequence

DECIMALS, DIGITS = "0123456789", "0123456789abcdef"
_NUMBER = re.compile(r"[0-9a-f]+")


def common_start(stems: Sequence[str]) -> str:
    """Return the letters that all names begin with."""
    return os.path.commonprefix(stems)  # noqa: RUF071 (letter by letter is meant)


def hexadecimal_ends(stems: Sequence[str], digits: str = "") -> list[str] | None:
    """Return what follows the common start of names; None unless it is a hexadecimal number in each.

    Args:
        digits: letters that belong to the numbers where the common start ends with them.
    """
    start = len(common_start(stems).rstrip(digits))
    ends = [stem[start:] for stem in stems]
    return ends if all(map(_NUMBER.fullmatch, ends)) else None
