"""Timing in turn: alternating blocks of calls, A B A B …, so that load on the machine affects all sides alike."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

Clock = Callable[[], float]
"""Function that returns a time (s); `time.process_time` excludes the load of other processes."""
Found = TypeVar("Found")


def block(
    call: Callable[[], object], *, fewest: int = 1, seconds: float = 0.0, clock: Clock = time.perf_counter
) -> list[float]:
    """Call a function repeatedly; return the time of each call (s).

    Args:
        fewest: minimum number of calls. One call is enough if it takes at least `seconds`.
        seconds: minimum length of the block; 0 makes exactly `fewest` calls.
    """
    times: list[float] = []
    total = 0.0
    while True:
        started = clock()
        call()
        times.append(clock() - started)
        total += times[-1]
        alone = 0 < seconds <= times[0]
        if alone or (len(times) >= fewest and total >= seconds):
            return times


def in_turn(sides: Sequence[Callable[[int], Found]], rounds: int) -> list[list[Found]]:
    """Call the sides alternately, each `rounds` times; return the results of each side.

    Args:
        sides: functions that measure; called with the number of the call, from 1.
    """
    found: list[list[Found]] = [[] for _ in sides]
    for number in range(1, rounds + 1):
        for side, results in zip(sides, found, strict=True):
            results.append(side(number))
    return found
