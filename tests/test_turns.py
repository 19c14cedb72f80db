"""Blocks of calls in turn, with a simulated clock."""

import pytest

from e3d_deploy.turns import block, in_turn
from tests.tools import Clock


class Paced(Clock):
    """Simulated clock that is advanced by calls of given lengths."""

    def __init__(self, *seconds: float) -> None:
        super().__init__()
        self.left = list(seconds)

    def call(self) -> None:
        """Advance the clock by the next of the given times."""
        self.now += self.left.pop(0)


@pytest.mark.parametrize(
    ("fewest", "seconds", "expected"),
    [
        (2, 0.0, [1, 5]),
        (1, 7.0, [1, 5, 2]),
        (3, 2.0, [1, 5, 2]),
        (3, 1.0, [1]),
    ],
)
def test_a_block_has_its_calls_and_its_length(fewest: int, seconds: float, expected: list[float]) -> None:
    """In the last block, the first call takes the whole time."""
    clock = Paced(1, 5, 2, 9)
    assert block(clock.call, fewest=fewest, seconds=seconds, clock=clock) == expected


def test_sides_measure_in_turn() -> None:
    order: list[str] = []

    def side(name: str) -> int:
        order.append(name)
        return len(order)

    found = in_turn([lambda number: side(f"a{number}"), lambda number: side(f"b{number}")], 2)
    assert order == ["a1", "b1", "a2", "b2"]
    assert found == [[1, 3], [2, 4]]
