"""Put files in the order of the numbers in their names. Needs no PyTorch.

Libraries for natural sorting read `frame-2` as minus two and `f1e3` as a thousand, or support no decimals. So the
meaning of the numbers is decided here, from all names of a folder together.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise, zip_longest
from pathlib import Path

from e3d_deploy.data.hexadecimal import DECIMALS, DIGITS, common_start, hexadecimal_ends
from e3d_deploy.data.stamps import DATED, seconds_of_day, sortable

_NUMBERS = re.compile(r"((?<!\d)(?<!\d\.)\d+\.\d+(?!\.?\d)|\d+)")
"""Pattern of a number; a number with a single point may be a decimal."""
_SUFFIX = re.compile(r"\.(?=\w*[^\W\d])\w+$")
"""Pattern of the suffix of a file, which contains a letter: `frame_1.25` has none."""
ROLLING_DIGITS = 3
"""Smallest number of digits of a counter that may wrap around."""
END = 0.01
"""A counter may have wrapped around only if it has numbers within this share of its range at both ends."""
CAMERA_DIGITS = 4
"""Number of digits of camera counters, even if they have more leading zeros: DSC00001 follows DSC09999."""
HASH_DIGITS = 6
"""Smallest number of digits of hexadecimal names that may be hashes."""
GAPS = 1000
"""Hexadecimal names may be hashes only if the mean distance of their values is larger than this."""
_LETTERS = re.compile(r"[^\W\d_]*")
UNITS = frozenset({"ns", "us", "µs", "ms", "s", "sec", "min", "h", "mm", "cm", "m", "km", "kb", "mb", "hz", "khz"})
"""Units that may follow a number; names with different units are not in order."""
_THOUSANDS = re.compile(r"[1-9]\d{0,2}\.\d{3}")
_AT_MOST_A_LETTER = re.compile(r"[a-z]?")
_YEAR = re.compile(r"(?:19|20)\d\d")
_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d([-._]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?=(?:\d{4}|\d{6})?(?!\d))")
"""Pattern of year, month and day; a time may follow."""
GAP = 1.5
"""Successive numbers have a gap between them if they differ by this many times the usual difference, or more.

The differences of rounded times vary less.
"""


@dataclass(frozen=True)
class Ordered:
    """Files in order, and a remark on the order."""

    files: tuple[Path, ...]
    remark: str | None
    """Doubts about the files: a different possible order, gaps, or two files of one picture; None without doubts."""


@dataclass(frozen=True)
class _Name:
    """Name of a file, divided into numbers and the texts between them."""

    file: Path
    stem: str
    texts: tuple[str, ...]
    digits: tuple[str, ...]
    signs: tuple[str, ...]
    """Sign of each number: `-` or nothing."""


def in_order(files: Iterable[Path]) -> Ordered:
    """Return files in the order of their names.

    Case is ignored, and numbers are ordered by value. `-` is a sign only if no word or number precedes it. Numbers such
    as 1.25 are decimals, unless two names would be equal, as with 1.1 and 1.10; numbers with several points, as in
    dates, are whole numbers. Names of equal length that end in hexadecimal numbers are sorted as text, other
    hexadecimal names by value if they are evenly spaced. Times and dates are read by `stamps.py`.
    """
    files = list(files)
    stems = [_SUFFIX.sub("", file.name.casefold()) for file in files]
    written, remark = sortable(stems)
    split = {file: _split(file, stem) for file, stem in zip(files, written, strict=True)}
    ordered = _by_pattern(_signed([*split.values()]))
    remarks = [text for text in (remark, ordered.remark) if text]
    names = [split[file] for file in ordered.files]
    further = [None if remarks else _doubt_of_names(names), _doubt_of_gaps(names), _doubt_of_twins(files, stems)]
    remarks += [text for text in further if text]
    return Ordered(ordered.files, "; ".join(remarks) or None)


def _by_pattern(names: Sequence[_Name]) -> Ordered:
    if len({name.texts for name in names}) > 1:
        return _without_pattern(names)
    counted = sorted(names, key=_by_counts)
    if not any("." in digits for name in names for digits in name.digits):
        return _rolled_over(counted) or Ordered(_files(counted), _doubt_of_run(counted))
    valued = sorted(names, key=_by_values)
    if len({tuple(_values(name)) for name in names}) < len(names):
        return Ordered(_files(counted), _doubt_of_decimals(counted, _by_thousands(names)))
    return Ordered(
        _files(valued),
        _doubt_of_decimals(valued, counted)
        or _doubt_of_decimals(valued, _by_thousands(names))
        or _doubt_of_run(valued),
    )


def _doubt_of_decimals(taken: Sequence[_Name], other: Sequence[_Name]) -> str | None:
    if not other or taken == other:
        return None
    first, second = _first_difference(taken, other)
    return f"numbers with a point are read as decimals: {first} comes before {second}"


def _by_thousands(names: Sequence[_Name]) -> list[_Name]:
    """Return names sorted with points as thousands separators, as in 999, 1.000; empty if one must be a decimal."""
    numbers = [digits for name in names for digits in name.digits if "." in digits]
    if not all(map(_THOUSANDS.fullmatch, numbers)):
        return []
    whole = {
        name: [int(sign + digits.replace(".", "")) for sign, digits in zip(name.signs, name.digits, strict=True)]
        for name in names
    }
    return sorted(names, key=lambda name: (whole[name], name.file.name))


def _split(file: Path, stem: str) -> _Name:
    parts = _NUMBERS.split(stem)
    return _Name(file, stem, tuple(parts[::2]), tuple(parts[1::2]), ("",) * (len(parts) // 2))


def _doubt_of_twins(files: Sequence[Path], stems: Sequence[str]) -> str | None:
    """Return a remark on two files whose names differ only in suffix or case, so that they may be the same picture."""
    if len(set(stems)) == len(stems):
        return None
    first: dict[str, Path] = {}
    pairs = ((first.setdefault(stem, file), file) for stem, file in zip(stems, files, strict=True))
    one, two = next((one, two) for one, two in pairs if one is not two)
    return f"{one.name} and {two.name} may be the same picture, and both are read as frames, so remove one"


def _doubt_of_names(names: Sequence[_Name]) -> str | None:
    """Return a remark if names have no clear order: no numbers, hashes, several units, or dates out of order."""
    first = f"{names[0].file.name} comes first" if names else ""
    ends = [name.digits[-1] if name.digits else "" for name in names]
    if _goes_back_in_date(names):
        return f"dates that follow other words or numbers do not decide the order: {first}"
    if len({name.texts for name in names}) == 1:
        has_years = all(map(_YEAR.fullmatch, ends)) and ends != sorted(ends)
        return f"years that follow other numbers do not decide the order: {first}" if has_years else None
    if len({name.digits for name in names}) <= 1 and not (any(ends) and hexadecimal_ends(_stems(names), DIGITS)):
        numbers = "with equal numbers" if any(ends) else "without numbers"
        is_alphabet = all(map(_AT_MOST_A_LETTER.fullmatch, _differences(_stems(names))))
        return None if is_alphabet else f"names {numbers} are sorted as text: {first}"
    if _are_hashes(names):
        return f"names look like hashes, which have no order, and are sorted as text: {first}"
    if _doubts_without_pattern(names):
        return f"names share no pattern and are sorted as text: {first}"
    units = {_LETTERS.match(name.texts[-1] if name.digits else "")[0] for name in names}  # type: ignore[index]
    return f"units after numbers are ignored: {first}" if len(units) > 1 and units <= UNITS else None


def _goes_back_in_date(names: Sequence[_Name]) -> bool:
    """Return True if every name has a date, and the first dates in the names are out of order."""
    dates = []
    for name in names:  # in most folders the first name has no date and ends the loop
        if (date := _DATE.search(name.stem)) is None:
            return False
        dates.append(re.sub(r"[-._]", "", date[0]))
    return dates != sorted(dates)


def _doubt_of_gaps(names: Sequence[_Name]) -> str | None:
    """Return a remark if the first number that varies is a counter with gaps; most differences must be equal."""
    if len({name.texts for name in names}) != 1:
        return None
    signed = ([sign + digits for sign, digits in zip(name.signs, name.digits, strict=True)] for name in names)
    counter = next((column for column in zip(*signed, strict=True) if len(set(column)) > 1), ())
    if len(set(counter)) < len(counter) or all(map(DATED.fullmatch, counter)):
        return None
    if not (gaps := _gaps([Decimal(value) for value in seconds_of_day(counter) or counter])):
        return None
    one, two = names[gaps[0]].file.name, names[gaps[0] + 1].file.name
    found = f"{len(gaps)} gaps, the first" if len(gaps) > 1 else "a gap"
    return f"the numbers have {found} between {one} and {two}, and windows ignore gaps"


def _gaps(values: Sequence[Decimal]) -> list[int]:
    """Return the positions of the numbers before a gap; empty if no difference is usual."""
    steps = [two - one for one, two in pairwise(values)]
    stride, count = Counter(steps).most_common(1)[0] if steps else (0, 0)
    if 2 * count <= len(steps) or not stride:
        return []
    return [place for place, step in enumerate(steps) if float(step / stride) >= GAP]


def _are_hashes(names: Sequence[_Name]) -> bool:
    ends = hexadecimal_ends(_stems(names))
    if ends is None or len({len(end) for end in ends}) > 1 or len(ends[0]) < HASH_DIGITS:
        return False
    values = sorted(int(end, 16) for end in ends)
    return not all(end.isdigit() for end in ends) and values[-1] - values[0] > GAPS * len(values)


def _differences(stems: Sequence[str]) -> list[str]:
    """Return names without their common start and end; letters at the beginning of the common end are kept."""
    start = len(common_start(stems))
    rests = [stem[start:] for stem in stems]
    end = len(_LETTERS.sub("", common_start([rest[::-1] for rest in rests])[::-1], count=1))
    return [rest[: len(rest) - end] for rest in rests]


def _doubts_without_pattern(names: Sequence[_Name]) -> bool:
    """Return True if each name has a pattern of its own, and none of the numbers is a counter."""
    if len({name.texts for name in names}) < len(names) or len(names) <= 2:
        return False
    columns = zip_longest(*(map(float, name.digits) for name in names), fillvalue=-1.0)
    counter = any(all(0 <= one < two for one, two in pairwise(column)) for column in columns)
    return not counter and hexadecimal_ends(_stems(names)) is None


def _rolled_over(counted: Sequence[_Name]) -> Ordered | None:
    """Return names in the order of a counter that wrapped around to 0, as IMG_0001 after IMG_9999; otherwise None.

    All numbers must have the same width. Some must be at the start and some at the end of the counter's range, with a
    gap of at least half the range.
    """
    widths = {len(name.digits[-1]) if name.digits else 0 for name in counted}
    if len({name.digits[:-1] for name in counted}) != 1 or len(widths) > 1 or min(widths) < ROLLING_DIGITS:
        return None
    values = [int(name.digits[-1]) for name in counted]
    size = 10 ** max(min(*widths, CAMERA_DIGITS), len(str(values[-1])))
    gap, place = max(((later - value, place) for place, (value, later) in enumerate(pairwise(values))), default=(0, 0))
    if 2 * gap < size or values[0] > size * END or values[-1] < size * (1 - END):
        return None
    rolled = [*counted[place + 1 :], *counted[: place + 1]]
    return Ordered(_files(rolled), f"the counter seems to start again at 0: {rolled[-1].file.name} comes last")


def _signed(names: Sequence[_Name]) -> list[_Name]:
    """Return names with minus signs moved to their numbers.

    A dash is a minus sign if no word precedes it, or if a name with the same pattern lacks it.
    """
    if not any("-" in name.stem for name in names):
        return list(names)
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


def _values(name: _Name) -> list[Decimal]:
    return [Decimal(sign + digits) for sign, digits in zip(name.signs, name.digits, strict=True)]


def _by_values(name: _Name) -> tuple[object, ...]:
    values = [*_values(name), Decimal(0)]
    return tuple(zip(name.texts, values, strict=True)), name.file.name


def _by_counts(name: _Name) -> tuple[object, ...]:
    """Return a sorting key by which 1.10 comes after 1.9."""
    counts = []
    for sign, digits in zip(name.signs, name.digits, strict=True):
        whole, _, part = digits.partition(".")
        counts.append((int(sign + whole), int(part or -1)))
    return tuple(zip(name.texts, [*counts, (0, 0)], strict=True)), name.file.name


def _doubt_of_run(names: Sequence[_Name]) -> str | None:
    """Return a remark on numbers such as 12.30.5 if reading the last part as a fraction would change the order."""
    places = [place for place, text in enumerate(names[0].texts[1:-1], start=1) if text == "."] if names else []
    if not places:
        return None
    last = places[-1]

    def key(name: _Name) -> tuple[object, ...]:
        values: list[Decimal] = _values(name)
        values[last] = Decimal("0." + name.digits[last].replace(".", ""))
        return (*values, name.file.name)

    fractions = sorted(names, key=key)
    if fractions == list(names):
        return None
    first, second = _first_difference(names, fractions)
    return f"numbers with several points are read as whole numbers: {first} comes before {second}"


def _without_pattern(names: Sequence[_Name]) -> Ordered:
    plain = sorted(names, key=lambda name: (name.stem, name.file.name))
    natural = sorted(names, key=_by_values)
    if (by_hexadecimal := _hexadecimal(names)) is not None:
        return Ordered(_files(by_hexadecimal), None)
    if plain == natural:
        return Ordered(_files(plain), _doubt_of_words(natural))
    if len({len(name.stem) for name in names}) == 1 and hexadecimal_ends(_stems(names), DIGITS) is not None:
        return Ordered(_files(plain), None)
    # Names that begin with different words, such as left_1 and right_1, form separate groups.
    starts = sorted(texts[0] for texts in {name.texts for name in names})
    if all(not later.startswith(start) for start, later in pairwise(starts)):
        return Ordered(_files(natural), _doubt_of_words(natural))
    first, second = _first_difference(natural, plain)
    return Ordered(_files(natural), f"names share no pattern, so their numbers decide: {first} comes before {second}")


def _stems(names: Sequence[_Name]) -> list[str]:
    return [name.stem for name in names]


def _hexadecimal(names: Sequence[_Name]) -> list[_Name] | None:
    """Return hexadecimal names such as 9, a, 10, sorted by value; None unless hexadecimal and evenly spaced."""
    for digits in (DECIMALS, DIGITS):
        ends = hexadecimal_ends(_stems(names), digits)
        if ends is None or any(end[0] == "0" != end for end in ends):
            continue
        value = {name: int(end, 16) for name, end in zip(names, ends, strict=True)}
        ordered = sorted(names, key=value.__getitem__)
        if len(names) > 2 and len({value[later] - value[name] for name, later in pairwise(ordered)}) == 1:
            return ordered
    return None


def _doubt_of_words(natural: Sequence[_Name]) -> str | None:
    """Return a remark on names with one number each, if the numbers decrease where the word changes."""
    numbers = [value for name in natural for value in _values(name)]
    single = all(len(name.digits) == 1 for name in natural)
    if not single or numbers == sorted(numbers):
        return None
    place = next(place for place, (one, two) in enumerate(pairwise(numbers)) if one > two)
    return f"words decide before numbers: {natural[place].file.name} comes before {natural[place + 1].file.name}"


def _first_difference(taken: Sequence[_Name], other: Sequence[_Name]) -> tuple[str, str]:
    """Return the names of the first two neighbours in `taken` that are reversed in `other`."""
    places = {name: place for place, name in enumerate(other)}
    pairs = pairwise(taken)
    return next((one.file.name, two.file.name) for one, two in pairs if places[one] > places[two])


def _files(names: Sequence[_Name]) -> tuple[Path, ...]:
    return tuple(name.file for name in names)
