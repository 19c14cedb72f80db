"""Checks of arguments before any work begins, and the time limit of a call."""

import math
import operator
import time
from collections.abc import Sequence
from typing import Any

from e3d_deploy.errors import ConfigError, StreamError


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """Return `value` as an int; a Python or NumPy integer is accepted, a bool is not.

    Args:
        name: name of the argument, for the error.

    Raises:
        ConfigError: `value` is not an integer, or is below `least`.
    """
    try:
        count = operator.index(value) if not isinstance(value, bool) else None
    except TypeError:
        count = None
    if count is None or count < least:
        raise ConfigError(f"{name}: got {value!r}, expected a whole number of {least} or more")
    return count


def check_counts(*, least: int = 1, **values: Any) -> None:
    """Check several whole numbers by the names of their arguments; None, which stands for a default, is accepted.

    Raises:
        ConfigError: a value is neither None nor a whole number of at least `least`.
    """
    for name, value in values.items():
        if value is not None:
            check_count(name, value, least=least)


def check_list(name: str, value: Any) -> None:
    """Refuse a text, and a value that is not a sequence.

    Raises:
        ConfigError: `value` is not a list, a tuple or another sequence.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        example = f", such as [{value!r}]" if isinstance(value, str | int | float) else ""
        raise ConfigError(f"{name}: got {value!r}, expected a list{example}")


def check_number(name: str, value: Any, *, least: float | None = None) -> float:
    """Return `value` as a float; a bool is not accepted.

    Args:
        name: name of the argument, for the error.
        least: smallest accepted value; None accepts all numbers above 0.

    Raises:
        ConfigError: `value` is not a finite number, or is too small.
    """
    try:
        number = float(value) if not isinstance(value, bool | str | bytes) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (number <= 0 if least is None else number < least):
        expected = "above 0" if least is None else f"of {least:g} or more"
        raise ConfigError(f"{name}: got {value!r}, expected a finite number {expected}")
    return number


def check_ms(name: str, value: Any) -> float | None:
    """Return `value`, a time in milliseconds, as a float; None, which means no limit, is returned unchanged.

    Raises:
        ConfigError: `value` is neither None nor a finite number of 0 or more.
    """
    if value is None:
        return None
    try:
        time_ms = float(value) if not isinstance(value, bool | str | bytes) else math.nan
    except (TypeError, ValueError, OverflowError):
        time_ms = math.nan
    if not 0 <= time_ms < math.inf:
        raise ConfigError(f"{name}: got {value!r}, expected a finite number of milliseconds of 0 or more, or None")
    return time_ms


class Timeout:
    """Time limit of a call; the time runs from the creation of the object.

    Args:
        timeout_ms: duration (ms); None sets no limit.

    Raises:
        ConfigError: `timeout_ms` is not a finite number of 0 or more.
    """

    __slots__ = ("_end", "_timeout_ms")

    def __init__(self, timeout_ms: float | None) -> None:
        self._timeout_ms = check_ms("timeout_ms", timeout_ms)
        self._end = math.inf if self._timeout_ms is None else time.monotonic() + self._timeout_ms / 1000

    def left(self) -> float | None:
        """Return the time left (s), 0 once the limit has passed; None without a limit."""
        return None if self._timeout_ms is None else max(0.0, self._end - time.monotonic())

    @property
    def left_ms(self) -> float | None:
        """Time left (ms), to be passed on as the `timeout_ms` of a nested call; None without a limit."""
        left = self.left()
        return None if left is None else 1000 * left

    @property
    def over(self) -> bool:
        """True once the limit has passed."""
        return self._timeout_ms is not None and time.monotonic() >= self._end

    def error(self, what: str) -> StreamError:
        """Return the error for a call that exceeded the limit.

        Args:
            what: name of the call, such as `predict`.
        """
        return StreamError(f"{what}: not done within {self._timeout_ms:g} ms; allow more time, or try again")
