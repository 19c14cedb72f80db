"""Series of frames that lie in one folder, such as colour and depth, told by their names. Needs no PyTorch."""

import os.path
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
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
    if len({_NUMBER.sub("\0", _named(name.casefold())) for name in names}) <= 1:  # most folders, so this saves time
        return None
    series = _series(names)
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
