"""Order of files by the numbers in their names. Needs no PyTorch.

Libraries that sort naturally take `frame-2` for minus two, `f1e3` for a thousand, or no decimals at all, so the order
is decided here by all names of a folder together.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

_NUMBERS = re.compile(r"(\d+)")
_SUFFIX = re.compile(r"\.(?=\w*[^\W\d])\w+$")
"""Suffix of a file, which has a letter: `frame_1.25` has none."""
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True)
class Ordered:
    """Files in order."""

    files: tuple[Path, ...]
    remark: str | None
    """Order that was taken, where another one could be meant; None where there is no doubt."""


@dataclass(frozen=True)
class _Name:
    """A name as texts and the numbers between them."""

    file: Path
    stem: str
    texts: tuple[str, ...]
    digits: tuple[str, ...]
    signs: tuple[str, ...] = ()
    """`-` or nothing for each number."""


def in_order(files: Iterable[Path]) -> Ordered:
    """Return files in the order of their names.

    Case is ignored and numbers count by value, `-` being a sign only where no word or number comes before it. Names
    with one pattern and numbers such as 1.25 are decimals unless two would be equal, as 1.1 and 1.10. Names of one
    length without a pattern, such as hexadecimal ones, are sorted plainly.
    """
    names = _signed([_split(file) for file in files])
    if len({name.texts for name in names}) > 1:
        return _without_pattern(names)
    counted = sorted(names, key=_by_numbers)
    decimals = _decimal_places(names)
    if not decimals:
        return Ordered(_files(counted), _doubt_of_run(names, counted))
    values = {name: _by_value(name, decimals) for name in names}
    if max(Counter(values.values()).values()) > 1:
        return Ordered(_files(counted), None)
    valued = sorted(names, key=lambda name: (values[name], name.file.name))
    if valued == counted:
        return Ordered(_files(valued), None)
    first, second = _first_difference(valued, counted)
    return Ordered(_files(valued), f"numbers with a point are read as decimals: {first} comes before {second}")


def _split(file: Path) -> _Name:
    stem = _SUFFIX.sub("", file.name.casefold())
    parts = _NUMBERS.split(stem)
    return _Name(file, stem, tuple(parts[::2]), tuple(parts[1::2]))


def _signed(names: Sequence[_Name]) -> list[_Name]:
    """Return names whose minus signs belong to the numbers: they follow no word, or are missing in other names."""
    patterns = {name.texts for name in names}
    found = []
    for name in names:
        texts, signs = list(name.texts), []
        for place in range(len(name.digits)):
            text = texts[place]
            without = (*texts[:place], text[:-1], *texts[place + 1 :])
            alone = (text == "-" and place == 0) or (len(text) > 1 and not text[-2].isalnum())
            is_sign = text.endswith("-") and (alone or without in patterns)
            signs.append("-" if is_sign else "")
            if is_sign:
                texts[place] = text[:-1]
        found.append(_Name(name.file, name.stem, tuple(texts), name.digits, tuple(signs)))
    return found


def _by_numbers(name: _Name) -> tuple[object, ...]:
    return (*_parts(name), name.file.name)


def _parts(name: _Name) -> list[tuple[str, int]]:
    numbers = [int(sign + digits) for sign, digits in zip(name.signs, name.digits, strict=True)]
    return [*zip(name.texts, numbers, strict=False), (name.texts[-1], 0)]


def _points(name: _Name) -> list[list[int]]:
    """Return the runs of numbers joined by points, as places of the numbers."""
    runs: list[list[int]] = [[place] for place in range(len(name.digits))][:1]
    for place in range(1, len(name.digits)):
        if name.texts[place] == ".":
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _decimal_places(names: Sequence[_Name]) -> set[int]:
    """Return the places of numbers that are the fractions of the one before; longer runs are dates or versions."""
    return {run[1] for run in _points(names[0]) if len(run) == 2} if names else set()


def _by_value(name: _Name, decimals: set[int]) -> tuple[Decimal, ...]:
    values = []
    for place, (sign, digits) in enumerate(zip(name.signs, name.digits, strict=True)):
        if place not in decimals:
            fraction = name.digits[place + 1] if place + 1 in decimals else "0"
            values.append(Decimal(f"{sign}{digits}.{fraction}"))
    return tuple(values)


def _doubt_of_run(names: Sequence[_Name], counted: Sequence[_Name]) -> str | None:
    """Return a remark on numbers such as 12.30.5 whose last could be a fraction, if that would change the order."""
    fractions = {run[-1] for run in _points(names[0]) if len(run) > 2} if names else set()
    if not fractions:
        return None
    valued = sorted(names, key=lambda name: (_by_value(name, fractions), name.file.name))
    if valued == list(counted):
        return None
    first, second = _first_difference(counted, valued)
    return f"numbers with several points are read as whole numbers: {first} comes before {second}"


def _without_pattern(names: Sequence[_Name]) -> Ordered:
    plain = sorted(names, key=lambda name: (name.stem, name.file.name))
    natural = sorted(names, key=_by_numbers)
    if plain == natural:
        return Ordered(_files(plain), None)
    if len({len(name.stem) for name in names}) == 1:
        common = len(_common_start([name.stem for name in names]).rstrip("0123456789abcdef"))
        if all(_HEX.fullmatch(name.stem[common:]) for name in names):
            return Ordered(_files(plain), None)
    patterns = pairwise(natural)
    if all(one.stem < other.stem for one, other in patterns if one.texts != other.texts):
        return Ordered(_files(natural), None)
    first, second = _first_difference(natural, plain)
    return Ordered(
        _files(natural), f"names follow no one pattern, numbers in them decide: {first} comes before {second}"
    )


def _common_start(stems: Sequence[str]) -> str:
    first, last = min(stems), max(stems)
    length = next((k for k, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:length]


def _first_difference(taken: Sequence[_Name], other: Sequence[_Name]) -> tuple[str, str]:
    """Return the first two neighbours of an order that another one has the other way round."""
    places = {name: place for place, name in enumerate(other)}
    pairs = pairwise(taken)
    return next((one.file.name, two.file.name) for one, two in pairs if places[one] > places[two])


def _files(names: Sequence[_Name]) -> tuple[Path, ...]:
    return tuple(name.file for name in names)
