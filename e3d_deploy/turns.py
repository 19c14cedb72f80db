"""Timing in turn: blocks of calls, A B A B …, so that a machine that slows down slows all sides alike."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

Clock = Callable[[], float]
"""Seconds from some moment on; `time.process_time` where other processes load the machine."""
Found = TypeVar("Found")


def block(
    call: Callable[[], object], *, fewest: int = 1, seconds: float = 0.0, clock: Clock = time.perf_counter
) -> list[float]:
    """Call one after the other; return the time of each call (s).

    Args:
        fewest: number of calls at least, unless the first alone fills the block.
        seconds: length of the block; 0 makes just `fewest` calls.
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
    """Let each side measure once a round, in their order; return what each found.

    Args:
        sides: called with the number of the round, from 1.
    """
    found: list[list[Found]] = [[] for _ in sides]
    for number in range(1, rounds + 1):
        for side, results in zip(sides, found, strict=True):
            results.append(side(number))
    return found
