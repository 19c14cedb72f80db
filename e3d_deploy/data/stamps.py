"""Rewrite times, dates and numbers in names so that the names sort by value. Needs no PyTorch.

A rule is used only if every name of a folder matches it, and the numbers allow no other interpretation.
"""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

_NO_LETTER = r"(?![^\W\d_])"
_CLOCK = re.compile(rf"(?<!\d)(\d\d?)(?:([-.:_ ]?)(\d\d)(?:\2(\d\d)([.,]\d+)?)?)?[\W_]?([ap])\.?m{_NO_LETTER}")
"""Pattern of a 12-hour time: `9.05.01 AM`, `12-59pm`."""
_DAY_BEFORE = re.compile(r"(?<!\d)(?:19|20)\d\d([-._ ]?)\d\d?\1\d\d?[-._ ]$")
_MERIDIEM = re.compile(rf"\d[\W_]?([ap])\.?m{_NO_LETTER}")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH = rf"({'|'.join(_MONTHS)})(?:uary|ruary|ch|il|e|y|ust|t|tember|ober|ember)?"
"""Pattern of the name of a month; its group is the first three letters."""
_MONTH = re.compile(rf"(?<![^\W\d_]){MONTH}{_NO_LETTER}")
_DATE_IN_WORDS = re.compile(
    r"(?<!\d)(?:(\d\d?)[-._ ,]{0,2}\0(\d\d)|\0(\d\d)[-._ ,]{0,2}(\d\d?))[-._ ,]{0,2}((?:19|20)\d\d)(?!\d)"
)
"""Pattern of `30-Apr-2024` or `Apr 30, 2024`, after the month is replaced by a zero byte and its number."""
_DAY_AND_MONTH = re.compile(r"(?<!\d)(\d\d?)[-._ ]{0,2}\0(\d\d)(?![-._ ,]{0,2}\d)")
"""Pattern of `30 Apr` without a year, after the same replacement."""
_DATE = re.compile(r"(?<!\d)(?<!\d[-._ ])(\d\d?)([-._ ])(\d\d?)\2((?:19|20)\d\d)(?!\d)")
_COMPACT_DATE = re.compile(r"(?<!\d)(\d\d)()(\d\d)((?:19|20)\d\d)(?=(?:\d{6})?(?!\d))")
"""Pattern of `31122023`; a time may follow."""
_SHORT_DATE = re.compile(r"(?<!\d)(?<!\d[-._ ])(\d\d)([-._ ])(\d\d)\2(\d\d)(?!\d|\2\d)")
_YEAR_FIRST = re.compile(r"(?<!\d)(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?=(?:\d{6})?(?!\d))")
_COMPACT_SHORT_DATE = re.compile(r"(?<!\d)(\d\d)()(\d\d)(\d\d)(?!\d)")
_TIME_WITH_ZONE = re.compile(
    r"(?<!\d)((?:19|20)\d\d)([-_.]?)(\d\d)\2(\d\d)t(\d\d)([-_.:]?)(\d\d)\6(\d\d)((?:[.,]\d+)?)"
    r"([-+])(0\d|1[0-4])[-_.:]?(00|15|30|45)(?!\d)"
)
"""Pattern of `2024-10-27T02-30-00+0200`."""
_TIME_ALONE = re.compile(
    r"\A((?:\D|(?<!\d)\d(?!\d))*)(?<!\d)([01]\d|2[0-3])([-.:_ h]?)([0-5]\d)(?:[-.:_ m]?([0-5]\d))?(?!\d)"
)
"""Pattern of a time of day after a text without a date."""
_POWER = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)e([-+]?)(\d\d?)(?![^\W_])")
"""Pattern of a number with a power of ten: `1.5e-03`."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_COMMA = re.compile(r"(?<!\d)(?<!\d,)(\d+),(\d+)(?!\d|,\d)")
_PLUS = re.compile(r"\+(?=\d)")

DAYS, MONTHS = 31, 12
MINUTE, HOUR, DAY, HOURS = 60, 3600, 86400, 24
"""Seconds in a minute, an hour and a day, and hours in a day."""
PAUSE = 2 * HOUR
"""Times without a date may run over midnight only if there is a pause longer than this (s)."""

_MONTH_DAY = r"(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
_DAY_MONTH = r"(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])"
DATED = re.compile(
    r"[-+]?(?:(?:19|20)\d\d(?:0[1-9]|1[0-2]|[0-3]\d\d)?|[1-9]\d{8,}|"
    rf"(?:(?:19|20)?\d\d{_MONTH_DAY}|{_DAY_MONTH}\d\d)(?:\d{{4}}|\d{{6}})?)"
)
"""Pattern of a number that may be a date.

It is a year, which its month or the day of the year may follow; the time since 1970; or year, month and day in either
order, which a time may follow.
"""
MAY_BE_TIME = re.compile(
    rf"(?<!\d)(?:\d\d([-:._ ])\d\d\1\d\d|(?:0[1-9]|1\d|2[0-3])(?:[0-5]\d){{2}}|{_MONTH_DAY}(?=\D+\d))(?!\d)"
)
"""Pattern of digits that may be a time or a date.

They are three groups of two digits; a time of day from 1 o'clock, because counters begin at 0; or a month and day
before another number.
"""
_TIME_OF_DAY = re.compile(r"[-+]?([01]\d|2[0-3])([0-5]\d)([0-5]\d)?")


def seconds_of_day(texts: Sequence[str]) -> list[int] | None:
    """Return numbers such as 1230 and 123059 as times of day (s); None if a number is not a time of day."""
    if not all(matches := [_TIME_OF_DAY.fullmatch(text) for text in texts]):
        return None
    parts = [map(int, match.groups("0")) for match in matches if match]
    return [hours * HOUR + minutes * MINUTE + seconds for hours, minutes, seconds in parts]


def sortable(stems: Sequence[str]) -> tuple[list[str], str | None]:
    """Rewrite names so that their numbers sort in the intended order.

    Args:
        stems: names in lower case, without suffixes.

    Returns:
        The names, and a remark if another order is possible.
    """
    remarks: list[str] = []
    found = list(stems)
    for rule in (_zones, _clock, _midnight, _months, _dates, _powers, _commas, _signs):
        found, remark = rule(found)
        remarks += [remark] if remark else []
    return found, "; ".join(remarks) or None


_Found = tuple[list[str], str | None]


def _all(pattern: re.Pattern[str], stems: Sequence[str]) -> list[re.Match[str]]:
    """Return the first match in each name; empty if a name has no match."""
    found = []
    for stem in stems:  # in most folders the first name has no match and ends the loop
        if (match := pattern.search(stem)) is None:
            return []
        found.append(match)
    return found


def _replaced(matches: Sequence[re.Match[str]], text: Callable[[re.Match[str]], str]) -> list[str]:
    return [match.string[: match.start()] + text(match) + match.string[match.end() :] for match in matches]


def _zones(stems: list[str]) -> _Found:
    """Convert times with different offsets from UTC to UTC."""
    matches = _all(_TIME_WITH_ZONE, stems)
    if len({match.group(10, 11, 12) for match in matches}) < 2:
        return stems, None
    try:
        return _replaced(matches, _in_utc), None
    except ValueError:  # not a date, such as 31 June
        return stems, None


def _in_utc(match: re.Match[str]) -> str:
    year, _, month, day, hour, _, minute, second, fraction, sign, *offset = match.groups()
    moment = datetime.fromisoformat(f"{year}-{month}-{day}T{hour}:{minute}:{second}{sign}{':'.join(offset)}")
    return f"{moment.astimezone(UTC):%Y-%m-%dt%H-%M-%S}{fraction}"


def _midnight(stems: list[str]) -> _Found:
    """Remark on times without a date that may run over midnight: some are early, some are late, with hours between."""
    matches = _all(_TIME_ALONE, stems)
    if len({match[1] for match in matches}) != 1:
        return stems, None
    times = sorted(
        (int(match[2]) * HOUR + int(match[4]) * MINUTE + int(match[5] or 0), match[0].removeprefix(match[1]))
        for match in matches
    )
    (first, earliest), (last, latest) = times[0], times[-1]
    longest = max((two - one for (one, _), (two, _) in pairwise(times)), default=0)
    if first >= HOUR or last < DAY - HOUR or longest <= max(DAY - last + first, PAUSE):
        return stems, None
    return stems, f"times without a date are read as times of one day: {earliest} comes before {latest}"


def _clock(stems: list[str]) -> _Found:
    """Convert 12-hour times to 24-hour times."""
    matches = _all(_CLOCK, stems)
    if matches and all(map(_is_time, matches)):
        return _replaced(matches, _of_24_hours), None
    marks = {match[1] for stem in stems for match in _MERIDIEM.finditer(stem)}
    return stems, "AM and PM are ignored, because not all names have a clear time before them" if len(
        marks
    ) > 1 else None


def _is_time(match: re.Match[str]) -> bool:
    """Return True for a valid time that does not continue numbers, as 05-01-09-05 AM does; a date may precede it."""
    before = match.string[: match.start()]
    follows_number = len(before) > 1 and before[-2].isdigit() and before[-1] in "-.:_ "
    goes_on = follows_number and match[2] in (None, "", before[-1]) and not _DAY_BEFORE.search(before)
    return not goes_on and 1 <= int(match[1]) <= 12 and all(int(part or 0) < 60 for part in match.group(3, 4))


def _of_24_hours(match: re.Match[str]) -> str:
    hour = int(match[1]) % 12 + (12 if match[6] == "p" else 0)
    return ":".join([f"{hour:02}", match[3] or "00", match[4] or "00"]) + (match[5] or "").replace(",", ".")


def _months(stems: list[str]) -> _Found:
    """Replace names of months by numbers, and dates with them by year, month and day."""
    matches = _all(_MONTH, stems)
    if len({match[1] for match in matches}) < 2:
        return stems, None
    numbered = _replaced(matches, lambda match: f"\0{_MONTHS.index(match[1]) + 1:02}")
    dates = _all(_DATE_IN_WORDS, numbered)
    if dates:
        return _replaced(dates, lambda date: f"{date[5]}-{date[2] or date[3]}-{int(date[1] or date[4]):02}"), None
    days = _all(_DAY_AND_MONTH, numbered)
    numbered = _replaced(days, lambda day: f"{day[2]}-{int(day[1]):02}") or numbered
    return [stem.replace("\0", "") for stem in numbered], None


def _dates(stems: list[str]) -> _Found:
    """Replace dates that end with the year by year, month and day; a number above 12 in any name must be the day."""
    matches = _all(_DATE, stems) or ([] if _all(_YEAR_FIRST, stems) else _all(_COMPACT_DATE, stems))
    firsts, seconds = ([int(match[place]) for match in matches] for place in (1, 3))
    if not matches:
        return stems, _doubt_of_short_dates(stems)
    if not 1 <= min(firsts + seconds) <= max(firsts + seconds) <= DAYS:
        return stems, None
    by_day = _replaced(matches, lambda date: f"{date[4]}-{int(date[3]):02}-{int(date[1]):02}")
    by_month = _replaced(matches, lambda date: f"{date[4]}-{int(date[1]):02}-{int(date[3]):02}")
    if max(firsts) > MONTHS:
        return (by_day if max(seconds) <= MONTHS else stems), None
    if max(seconds) > MONTHS:
        return by_month, None
    places = range(len(stems))
    agree = sorted(places, key=lambda place: by_day[place]) == sorted(places, key=lambda place: by_month[place])
    return by_day, None if agree else f"dates such as {matches[0][0]} are read day first"


def _doubt_of_short_dates(stems: list[str]) -> str | None:
    """Return a remark if numbers may be day, month and year, because the last hardly varies, but are read otherwise."""
    matches = _all(_SHORT_DATE, stems) or _all(_COMPACT_SHORT_DATE, stems)
    days, months, years = ([int(match[place]) for match in matches] for place in (1, 3, 4))
    if not matches or len(set(months)) * len(set(days)) == 1 or max(years) - min(years) > 1 or min(years) == 0:
        return None
    if not 1 <= min(days + months) <= max(days) <= DAYS or max(months) > MONTHS or len(set(months)) == 1:
        return None
    by_day, by_date = zip(days, months, years, strict=True), zip(years, months, days, strict=True)
    places = range(len(stems))
    if sorted(places, key=[*by_day].__getitem__) == sorted(places, key=[*by_date].__getitem__):
        return None
    return f"numbers such as {matches[0][0]} are not read as day, month and year"


def _powers(stems: list[str]) -> _Found:
    """Replace powers of ten by decimals, if a signed exponent shows that `e` is not just a letter.

    Python writes 1e-05, but 0.0001. So names without a power are allowed if all names have one pattern afterwards.
    """
    found = [_POWER.search(stem) for stem in stems] if any("e-" in stem or "e+" in stem for stem in stems) else []
    if any(match[2] for match in found if match):
        pairs = zip(stems, found, strict=True)
        written = [_replaced([match], _decimal)[0] if match else stem for stem, match in pairs]
        if None not in found or len({_NUMBER.sub("0", stem) for stem in written}) == 1:
            return written, None
    matches = _all(_POWER, stems)
    doubtful = all(len({match[place] for match in matches}) > 1 for place in (1, 3))
    return stems, f"numbers such as {matches[0][0]} are not read as powers of ten" if doubtful else None


def _decimal(match: re.Match[str]) -> str:
    return format(Decimal(match[0]), "f")


def _commas(stems: list[str]) -> _Found:
    """Replace decimal commas by points; drop commas before three digits, where both meanings give the same order."""
    matches = [match for stem in stems for match in _COMMA.finditer(stem)]
    if not matches:
        return stems, None
    before_thousands = all(len(match[2]) == 3 and match[1][0] != "0" for match in matches)
    return [_COMMA.sub(r"\1\2" if before_thousands else r"\1.\2", stem) for stem in stems], None


def _signs(stems: list[str]) -> _Found:
    """Drop plus signs if there are also minus signs, in ASCII or Unicode."""
    stems = [stem.replace("\N{MINUS SIGN}", "-") for stem in stems]
    if any("+" in stem for stem in stems) and any("-" in stem for stem in stems):
        return [_PLUS.sub("", stem) for stem in stems], None
    return stems, None
