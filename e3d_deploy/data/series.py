"""Series of frames that lie in one folder, such as colour and depth, told by their names. Needs no PyTorch."""

import os.path
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from e3d_deploy.data.hexadecimal import DECIMALS, DIGITS, hexadecimal_ends
from e3d_deploy.data.stamps import MONTH
from e3d_deploy.errors import ClipError

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)*")
_WORD_OF_DATE = re.compile(
    rf"(?<![^\W\d_])(?:{MONTH}|(mon|tue|wed|thu|fri|sat|sun|am|pm)(?:day|sday|nesday|rsday|urday)?)(?![^\W\d_])"
)
"""Month, day of the week, or half of a day, which counts like a number."""
_NUMBERED = re.compile(r"(?<![^\W\d_])(?:cam|camera|view|sensor|channel|band|mask)[-_ ]?\d\d?(?!\d)")
"""Word whose number is a name, as in cam0, if there is another number in the name of the file."""
_TO_LETTERS = str.maketrans("0123456789", "abcdefghij")
_SERIES = frozenset({
    "c", "ch", "chan", "channel", "z", "slice", "plane", "layer", "ev", "w", "s", "xy", "pos", "position", "cam",
    "camera", "view", "sensor", "band", "mask", "eye",
})  # fmt: skip
"""Words before a number that tells series apart, if another number counts frames."""
_FRAMES = frozenset({"t", "tp", "time", "timepoint", "step", "timestep", "f", "fr", "frame", "i", "im", "img", "image"})
"""Words before a number that counts frames."""
_SECONDS = "s"
"""Word of `_SERIES` that means seconds behind a number without a word."""
_WORD = re.compile(r"([^\W\d_]*)[\W_]*$")
SAME_SUFFIXES = {".jpeg": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}
FEWEST = 2
"""Counters that two series have in common at least."""
MOST = 26
"""Patterns of names in a folder at most that are taken for series; random names follow more."""
MOST_NAMED = 3
"""Series at most that a remark names, and pairs of frames that an error names."""

_Numbers = tuple[str, ...]
_Pattern = tuple[str, str]
"""Name without its numbers, and suffix."""


def check_one_series(folder: object, names: Sequence[str]) -> str | None:
    """Check that the frames of a folder are one clip, not two whose counters are the same.

    Names are of one series if they and their suffixes are alike without the numbers. A number that is the same in all
    names of a series is no counter.

    Args:
        names: in the order of the clip.

    Returns:
        A remark on a few series without the same counters; None if there is one series, or no pattern.

    Raises:
        ClipError: at least half of the counters of a series are those of another, as in 1_left.png and 1_right.png.
    """
    stems = {name: os.path.splitext(_named(name.casefold())) for name in names}
    patterns = {(_NUMBER.sub("\0", stem), suffix) for stem, suffix in stems.values()}
    if len(patterns) == 1:  # most folders, so this saves time
        numbers = {name: tuple(_NUMBER.findall(stem)) for name, (stem, _) in stems.items()}
        _check_numbers(folder, patterns.pop()[0], numbers)
        return None
    series = _series(names) if names else {}
    if not 1 < len(series) <= MOST:
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
            raise ClipError(f"{folder}: {_why_two(one, two)}")
    for (rest, _), members in series.items():
        _check_numbers(folder, rest, members)
    return _remark(series)


def _why_two(one: Mapping[_Numbers, str], two: Mapping[_Numbers, str]) -> str:
    """Return the reason to refuse two series, by the names of their counters; a small one is taken for copies."""
    if len(one) < len(two):
        one, two = two, one
    pairs = [f"{name} and {two[counter]}" for counter, name in one.items() if counter in two]
    if 2 * len(two) >= len(one):
        return f"holds frames of two series, such as {pairs[0]}; give each its own folder"
    more = f" and {len(pairs) - MOST_NAMED} more" if len(pairs) > MOST_NAMED else ""
    named = f"{', '.join(pairs[:MOST_NAMED])}{more}"
    return f"holds frames that may be there twice, {named}; remove the copies, or move them to a folder of their own"


def _remark(series: Mapping[_Pattern, Mapping[str, _Numbers]]) -> str | None:
    """Return a remark on a few series of different patterns, one of which has several frames."""
    joined: dict[str, list[str]] = defaultdict(list)
    for (pattern, _), members in series.items():
        joined[pattern] += members
    if not 1 < len(joined) <= MOST_NAMED or max(map(len, joined.values())) == 1:
        return None
    parts = ", ".join(f"{len(members)} like {members[0]}" for members in joined.values())
    return f"frames of {len(joined)} kinds of names are taken as one clip: {parts}"


def _series(names: Sequence[str]) -> Mapping[_Pattern, Mapping[str, _Numbers]]:
    """Return the numbers of each name, by the rest of the name and its suffix."""
    split = [os.path.splitext(name.casefold()) for name in names]
    is_hex = _counts_in_hex([stem for stem, _ in split])
    found: dict[_Pattern, dict[str, _Numbers]] = defaultdict(dict)
    for name, (stem, suffix) in zip(names, split, strict=True):
        counted = _WORD_OF_DATE.sub(lambda word: f"\0{int(word[1] or word[2], 36)}\0", _named(stem))
        pattern, numbers = ("", (stem,)) if is_hex else (_NUMBER.sub("\0", counted), tuple(_NUMBER.findall(counted)))
        found[pattern, SAME_SUFFIXES.get(suffix, suffix)][name] = numbers
    return found


def _named(stem: str) -> str:
    """Return a name in which numbers that are names are letters."""

    def in_letters(found: re.Match[str]) -> str:
        others = stem[: found.start()] + stem[found.end() :]
        return found[0].translate(_TO_LETTERS) if any(map(str.isdigit, others)) else found[0]

    return _NUMBERED.sub(in_letters, stem)


def _counters(members: Mapping[str, _Numbers]) -> Mapping[_Numbers, str]:
    """Return the names of a series by their numbers without those that are the same in all."""
    varying = [place for place, values in enumerate(zip(*members.values(), strict=True)) if len(set(values)) > 1]
    return {tuple(numbers[place] for place in varying): name for name, numbers in members.items()}


@dataclass(frozen=True)
class _Field:
    """Numbers at one place of the names of a series, in the order of the clip."""

    word: str
    """Letters before the numbers; empty if there are none behind the number before."""
    texts: tuple[str, ...]

    @property
    def is_counter(self) -> bool:
        """True if no number is there twice, so that it tells the frames apart by itself."""
        return len(set(self.texts)) == len(self.texts)


def _check_numbers(folder: object, pattern: str, members: Mapping[str, _Numbers]) -> None:
    """Check that the names of one pattern are no series that numbers alone tell apart.

    Raises:
        ClipError: as `check_one_series`.
    """
    words = [_WORD.search(text)[1] for text in pattern.split("\0")]  # type: ignore[index]
    places = zip(words, zip(*members.values(), strict=True), strict=False)
    fields = [_Field(word, texts) for word, texts in places if len(set(texts)) > 1]
    names = list(members)
    if len(fields) == 1:
        _check_written_once(folder, names, fields[0])
    if not any(field.is_counter for field in fields):
        _check_named(folder, names, fields)


def _check_written_once(folder: object, names: Sequence[str], counter: _Field) -> None:
    """Check that no two names have the same number, as 1 and 01."""
    if not all(text.lstrip("+-").isdecimal() for text in counter.texts):
        return
    one: dict[_Numbers, str] = {}
    two: dict[_Numbers, str] = {}
    for name, text in zip(names, counter.texts, strict=True):
        number = (str(int(text)),)
        (two if number in one else one)[number] = name
    if two:
        raise ClipError(f"{folder}: {_why_two(one, two)}")


def _check_named(folder: object, names: Sequence[str], fields: Sequence[_Field]) -> None:
    """Check that no word before a number tells series apart, as in t0_c0, t0_c1, t1_c0."""
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
                raise ClipError(f"{folder}: {_why_two(one, two)}")


def _counts_in_hex(stems: Sequence[str]) -> bool:
    """Return True for counters such as 09, 0a and 9, a, in which a letter is a digit, unlike in 1a and 1b."""
    for digits in (DECIMALS, DIGITS):
        if (ends := hexadecimal_ends(stems, digits)) is None:
            continue
        if len({len(end) for end in ends}) == 1:
            return any(map(str.isdigit, ends))
        values = {int(end, 16) for end in ends}
        return max(values) - min(values) < 2 * len(values)
    return False
