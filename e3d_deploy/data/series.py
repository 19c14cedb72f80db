"""Recognize several series of pictures in one folder, such as colour and depth, by name. Needs no PyTorch."""

import math
import os.path
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from e3d_deploy.data.hexadecimal import DECIMALS, DIGITS, hexadecimal_ends
from e3d_deploy.data.stamps import DATED, DAY, HOURS, MAY_BE_TIME, MINUTE, MONTH, seconds_of_day
from e3d_deploy.errors import ClipError

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)*")
_WORD_OF_DATE = re.compile(
    rf"(?<![^\W\d_])(?:{MONTH}|(mon|tue|wed|thu|fri|sat|sun|am|pm)(?:day|sday|nesday|rsday|urday)?)(?![^\W\d_])"
)
"""Pattern of a month, a day of the week, or AM and PM, each of which counts like a number."""
CAMERAS = ("cam", "camera", "view", "sensor", "channel", "band", "mask")
"""Words for cameras and the like; the number after such a word does not count frames."""
NUMBERED = re.compile(rf"(?<![^\W\d_])(?:{'|'.join(CAMERAS)})[-_ ]?\d\d?(?!\d)")
"""Pattern of a word in `CAMERAS` with its number, as in cam0; used only if the name has a second number."""
_TO_LETTERS = str.maketrans("0123456789", "abcdefghij")
_SERIES = frozenset({
    "c", "ch", "chan", "channel", "z", "slice", "plane", "layer", "ev", "w", "s", "xy", "pos", "position", "cam",
    "camera", "view", "sensor", "band", "mask", "eye",
})  # fmt: skip
"""Words for series: the number after such a word names a series, if another number counts frames."""
_FRAMES = frozenset({"t", "tp", "time", "timepoint", "step", "timestep", "f", "fr", "frame", "i", "im", "img", "image"})
"""Words for frames: the number after such a word counts frames."""
_SECONDS = "s"
"""Word of `_SERIES` that means seconds if it follows a number without a word."""
_WORD = re.compile(r"([^\W\d_]*)[\W_]*$")
_UNITS = frozenset({"d", "day", "h", "hr", "hour", "m", "min", "minute", "s", "sec", "ms", "us", "ns"})
"""Words that make a number a part of a time, as in 1h30m05s and m01_s30."""
_LETTER = re.compile(r"[^\W\d_]")
RATES = (25, 30, 50)
"""Frame rates in which a name may count the frames of a second (frames per second)."""
SAME_SUFFIXES = {".jpeg": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}
FEWEST = 2
"""Smallest number of counters in common for which two series are refused."""
MAX_SERIES = 26
"""Maximum number of patterns of names that are treated as series; random names have more patterns."""
MAX_NAMED = 3
"""Maximum number of series that a remark names, and of pairs of pictures that an error names."""

_Numbers = tuple[str, ...]
_Pattern = tuple[str, str]
"""Name without its numbers, and suffix of the file."""


def check_one_series(folder: object, names: Sequence[str]) -> str | None:
    """Check that the pictures of a folder are one clip, not two clips with the same counters.

    Names belong to one series if they are equal, with their suffixes, apart from the numbers. Numbers that vary within
    a series are its counters.

    Args:
        folder: folder of the pictures, for errors.
        names: names of the pictures, in the order of the clip.

    Returns:
        A remark if there are a few series with different counters, or if the last number starts again and may be part
        of a time. None if there is one series, or if the names have no pattern.

    Raises:
        ClipError: at least half of the counters of one series are also counters of a second series, as in 1_left.png
            and 1_right.png.
        ClipError: the pictures belong to several sequences, as in 1_1.png, 1_2.png, 2_1.png.
    """
    stems = {name: os.path.splitext(_named(name.casefold())) for name in names}
    patterns = {(_NUMBER.sub("\0", stem), suffix) for stem, suffix in stems.values()}
    if len(patterns) == 1:  # the usual case, which needs no grouping
        numbers = {name: tuple(_NUMBER.findall(stem)) for name, (stem, _) in stems.items()}
        return _check_numbers(folder, patterns.pop()[0], numbers)
    series = _series(names) if names else {}
    if not 1 < len(series) <= MAX_SERIES:
        return None
    counters = {pattern: _counters(members) for pattern, members in series.items()}
    patterns_of: dict[_Numbers, list[_Pattern]] = defaultdict(list)
    for pattern, counted in counters.items():
        for counter in counted:
            patterns_of[counter].append(pattern)
    shared = Counter(pair for patterns in patterns_of.values() for pair in combinations(patterns, 2))
    for (first, second), count in shared.items():
        one, two = counters[first], counters[second]
        if count >= max(FEWEST, min(len(one), len(two)) / 2):
            raise ClipError(f"{folder}: {_why_refused(one, two)}")
    remarks = [_check_numbers(folder, rest, members) for (rest, _), members in series.items()]
    return _remark(series) or next(filter(None, remarks), None)


def _why_refused(one: Mapping[_Numbers, str], two: Mapping[_Numbers, str]) -> str:
    """Return why two series are not one clip; a much smaller series is called duplicates.

    Args:
        one: names of the first series, by counter.
        two: names of the second series, by counter.
    """
    if len(one) < len(two):
        one, two = two, one
    pairs = [f"{name} and {two[counter]}" for counter, name in one.items() if counter in two]
    if 2 * len(two) >= len(one):
        return f"holds frames of two series, such as {pairs[0]}; give each its own folder"
    more = f" and {len(pairs) - MAX_NAMED} more" if len(pairs) > MAX_NAMED else ""
    named = f"{', '.join(pairs[:MAX_NAMED])}{more}"
    return f"holds frames that may be duplicates, {named}; remove the copies, or move them to a folder of their own"


def _remark(series: Mapping[_Pattern, Mapping[str, _Numbers]]) -> str | None:
    """Return a remark if there are a few series of different patterns, and one of them has several pictures."""
    joined: dict[str, list[str]] = defaultdict(list)
    for (pattern, _), members in series.items():
        joined[pattern] += members
    if not 1 < len(joined) <= MAX_NAMED or max(map(len, joined.values())) == 1:
        return None
    parts = ", ".join(f"{len(members)} like {members[0]}" for members in joined.values())
    return f"files with {len(joined)} kinds of names are read as one clip: {parts}"


def _series(names: Sequence[str]) -> Mapping[_Pattern, Mapping[str, _Numbers]]:
    """Group names by series, with the numbers in each name.

    The key of a series is the name without numbers, and the suffix.
    """
    split = [os.path.splitext(name.casefold()) for name in names]
    is_hex = _counts_in_hex([stem for stem, _ in split])
    found: dict[_Pattern, dict[str, _Numbers]] = defaultdict(dict)
    for name, (stem, suffix) in zip(names, split, strict=True):
        counted = _WORD_OF_DATE.sub(lambda word: f"\0{int(word[1] or word[2], 36)}\0", _named(stem))
        pattern, numbers = ("", (stem,)) if is_hex else (_NUMBER.sub("\0", counted), tuple(_NUMBER.findall(counted)))
        found[pattern, SAME_SUFFIXES.get(suffix, suffix)][name] = numbers
    return found


def _named(stem: str) -> str:
    """Return a name in which letters replace the digits of a camera's number."""

    def in_letters(found: re.Match[str]) -> str:
        others = stem[: found.start()] + stem[found.end() :]
        return found[0].translate(_TO_LETTERS) if any(map(str.isdigit, others)) else found[0]

    return NUMBERED.sub(in_letters, stem)


def _counters(members: Mapping[str, _Numbers]) -> Mapping[_Numbers, str]:
    """Return the names of a series by counter; the counter is the numbers that are not the same in all names."""
    varying = [place for place, values in enumerate(zip(*members.values(), strict=True)) if len(set(values)) > 1]
    return {tuple(numbers[place] for place in varying): name for name, numbers in members.items()}


@dataclass(frozen=True)
class _Field:
    """The numbers at one position in the names of a series, in the order of the clip."""

    word: str
    """Letters before the number and after the preceding number; empty if there are none."""
    texts: tuple[str, ...]
    has_time: bool
    """True if a date is among the neighbouring numbers."""

    @property
    def is_counter(self) -> bool:
        """True if no number occurs twice, so that these numbers alone identify the frames."""
        return len(set(self.texts)) == len(self.texts)

    @property
    def is_whole(self) -> bool:
        """True if all numbers are whole."""
        return all(text.lstrip("+-").isdecimal() for text in self.texts)

    @property
    def values(self) -> list[int]:
        """The numbers as integers; a dash before each of them is a separator, not a sign."""
        values = [int(text) for text in self.texts]
        return values if max(values) > 0 else [-value for value in values]

    @property
    def widths(self) -> set[int]:
        """Distinct numbers of digits in the texts."""
        return {len(text.lstrip("+-")) for text in self.texts}


def _check_numbers(folder: object, pattern: str, members: Mapping[str, _Numbers]) -> str | None:
    """Check that names of one pattern are not several series or sequences, which differ only in numbers.

    Returns:
        A remark, see `check_one_series`.

    Raises:
        ClipError: there are several series or sequences.
    """
    names, fields = list(members), [field for field in _fields(pattern, members) if len(set(field.texts)) > 1]
    if len(fields) == 1:
        _check_written_once(folder, names, fields[0])
    if len(fields) < 2 or any(field.is_counter for field in fields):
        return None
    _check_named(folder, names, fields)
    is_date = _WORD_OF_DATE.search(names[0].casefold()) is not None
    return None if is_date or not all(field.is_whole for field in fields) else _check_sequences(folder, names, fields)


def _fields(pattern: str, members: Mapping[str, _Numbers]) -> list[_Field]:
    """Return the numbers of a series by their position in the names."""
    columns = [*zip(*members.values(), strict=True)]
    texts = pattern.split("\0")[: len(columns)]
    groups: list[list[int]] = []
    for place, text in enumerate(texts):
        if place and (text.strip("-_. ") == "t" or _LETTER.search(text) is None):
            groups[-1].append(place)
        else:
            groups.append([place])
    has_time = [any(all(map(DATED.fullmatch, columns[place])) for place in group) for group in groups for _ in group]
    words = [_WORD.search(text)[1] for text in texts]  # type: ignore[index]
    return [_Field(*field) for field in zip(words, columns, has_time, strict=True)]


def _check_written_once(folder: object, names: Sequence[str], counter: _Field) -> None:
    """Check that no two names have the same number in different spellings, as 1 and 01.

    Raises:
        ClipError: two names have the same number.
    """
    if not counter.is_whole:
        return
    one: dict[_Numbers, str] = {}
    two: dict[_Numbers, str] = {}
    for name, text in zip(names, counter.texts, strict=True):
        number = (str(int(text)),)
        (two if number in one else one)[number] = name
    if two:
        raise ClipError(f"{folder}: {_why_refused(one, two)}")


def _check_named(folder: object, names: Sequence[str], fields: Sequence[_Field]) -> None:
    """Check that pictures do not differ only in a number after a word for series, as in t0_c0, t0_c1, t1_c0.

    Raises:
        ClipError: pictures differ only in such a number.
    """
    for field in fields:
        others = [other for other in fields if other is not field]
        words = {other.word for other in others} & (_FRAMES if field.word == _SECONDS else {*_FRAMES, ""})
        if field.word not in _SERIES or not words:
            continue
        groups: dict[str, dict[_Numbers, str]] = defaultdict(dict)
        for name, text, *counter in zip(names, field.texts, *(other.texts for other in others), strict=True):
            groups[text][tuple(counter)] = name
        one, *rest = sorted(groups.values(), key=len, reverse=True)
        for two in rest:
            if len(one.keys() & two.keys()) >= max(FEWEST, len(two) / 2):
                raise ClipError(f"{folder}: {_why_refused(one, two)}")


def _check_sequences(folder: object, names: Sequence[str], fields: Sequence[_Field]) -> str | None:
    """Check that the last number does not start again whenever an earlier number changes, unless it is part of a time.

    Returns:
        A remark if the last number may be part of a time.

    Raises:
        ClipError: there are several sequences, or a grid of numbers, in which either number may count frames.
    """
    *before, last = fields
    rows = [*zip(*(field.values for field in fields), strict=True)]
    turns = [place for place, (one, two) in enumerate(pairwise(rows), start=1) if one[:-1] != two[:-1]]
    steps = Counter(two[-1] - one[-1] for one, two in pairwise(rows) if one[:-1] == two[:-1])
    is_grid = len(rows) == math.prod(len(set(field.texts)) for field in fields)
    if not steps or not (is_grid or _starts_again(rows, turns, steps)):
        return None
    in_time = any(field.has_time for field in before)
    if last.word in _UNITS or (in_time and (last.has_time or last.word not in _FRAMES)):
        return None
    stride = steps.most_common(1)[0][0]
    readings = _readings(before[-1], last, stride)
    sure = [is_sure for values, radix, is_sure in readings if _keeps_stride(rows, turns, values, radix)]
    if any(sure):
        return None
    if sure or in_time or _may_be_time(names, before[-1], last):
        return f"the last number starts again at {names[turns[0]]}, but all frames are read as one clip"
    series = f"series, such as {names[0]} and {names[1]}, or of several " if is_grid and not last.word else ""
    raise ClipError(
        f"{folder}: holds frames of several {series}sequences, such as {names[0]} and {names[turns[0]]}; give each its "
        "own folder"
    )


def _starts_again(rows: Sequence[tuple[int, ...]], turns: Sequence[int], steps: Mapping[int, int]) -> bool:
    """Return True if the last number usually does not grow at turns, but usually grows by one stride between turns.

    Turns are the positions at which an earlier number changes.
    """
    count = sum(steps.values())
    if 2 * count <= len(turns):
        return False
    stride = max(steps, key=steps.__getitem__)
    back = sum(rows[turn][-1] <= rows[turn - 1][-1] for turn in turns)
    return stride > 0 and 2 * steps[stride] > count and 2 * back > len(turns)


_Reading = tuple[Sequence[int], int, bool]
"""Reading of the last two numbers as one: values of the last number, radix, and True if the reading is certain.

The radix is the value that makes one unit of the number before: 60 for minutes after hours. A reading is not certain if
two independent counters would look the same.
"""


def _readings(before: _Field, last: _Field, stride: int) -> list[_Reading]:
    """Return the ways to read the last two numbers as one: with decimals, or as hours, minutes, seconds or frames."""
    if last.word:
        return []
    values, width, digits = last.values, max(last.widths), max(before.widths)
    powers = [10**width] if len(last.widths) == 1 else [10, 100, 1000]
    found: list[_Reading] = [(values, radix, stride > 1) for radix in powers]
    if width <= 2 and digits <= 4:
        found += [(values, MINUTE, stride > 1 or digits <= 2), (values, HOURS, stride > 1)]
    if width <= 2 and digits <= 2:
        found += [(values, radix, False) for radix in RATES]
    if (seconds := seconds_of_day(last.texts)) is not None:
        found.append((seconds, DAY, True))
    return [reading for reading in found if reading[1] > max(reading[0])]


def _may_be_time(names: Sequence[str], before: _Field, last: _Field) -> bool:
    """Return True if names look like dates or times, or have a word that does not say if its number counts frames."""
    has_hours = seconds_of_day(last.texts) is not None and len({value // 100 for value in last.values}) > 1
    is_named = before.word in _UNITS or last.word not in {*_FRAMES, ""}
    return is_named or has_hours or all(map(MAY_BE_TIME.search, names))


def _keeps_stride(rows: Sequence[tuple[int, ...]], turns: Sequence[int], values: Sequence[int], radix: int) -> bool:
    """Return True if the last two numbers, read as one number with a radix, keep their usual stride at the turns."""
    steps = Counter(values[place] - values[place - 1] for place in {*range(1, len(rows))}.difference(turns))
    pairs = [(turn, rows[turn - 1], rows[turn]) for turn in turns]
    carries = sorted(
        (two[-2] - one[-2]) * radix + values[turn] - values[turn - 1]
        for turn, one, two in pairs
        if one[:-2] == two[:-2]
    )
    return bool(carries) and 0 < 2 * carries[len(carries) // 2] <= 3 * steps.most_common(1)[0][0]


def _counts_in_hex(stems: Sequence[str]) -> bool:
    """Return True for counters such as 09, 0a or 9, a, in which a letter is a digit; False for 1a and 1b."""
    for digits in (DECIMALS, DIGITS):
        if (ends := hexadecimal_ends(stems, digits)) is None:
            continue
        if len({len(end) for end in ends}) == 1:
            return any(map(str.isdigit, ends))
        values = {int(end, 16) for end in ends}
        return max(values) - min(values) < 2 * len(values)
    return False
