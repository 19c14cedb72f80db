"""Plan of the GPU benchmark: rows that fit into the time, ordered by value."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu.bench import Bench, Settings
from benchmarks.gpu.plan import Costs, Unit, described, plan
from benchmarks.gpu.sections import units


def unit(section: str, row: str, *, tier: int, cost_s: float) -> Unit:
    return Unit(section=section, row=row, tier=tier, cost_s=cost_s, work=dict)


UNITS = (
    unit("plain", "a", tier=1, cost_s=10),
    unit("plain", "b", tier=2, cost_s=10),
    unit("compiled", "c", tier=2, cost_s=100),
    unit("micro", "d", tier=3, cost_s=5),
)
COSTS = Costs(start_s=2)


def test_a_row_that_does_not_fit_leaves_its_time_to_later_rows() -> None:
    found = plan(UNITS, 40, COSTS)
    assert [one.row for one in found.kept] == ["a", "b", "d"]
    assert [one.row for one in found.left_out] == ["c"]
    assert found.seconds == 2 + 10 + 10 + 2 + 5
    assert [[one.row for one in rows] for rows in found.processes()] == [["a", "b"], ["d"]]


def test_the_most_valuable_rows_come_first_in_any_section() -> None:
    assert [one.row for one in plan(reversed(UNITS), 12, COSTS).kept] == ["a"]  # type: ignore[arg-type]
    assert plan(UNITS, 0, COSTS).kept == ()


def test_measured_times_replace_estimates(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"seconds": {"compiled: c": 3.0}, "starts": [1.0, 2.0, 9.0]}))
    costs = Costs.read(file)
    assert costs.start_s == 2
    assert [one.row for one in plan(UNITS, 40, costs).kept] == ["a", "b", "c", "d"]
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"gpu\.json: not a result file"):
        Costs.read(file)


def test_rows_that_are_left_out_are_listed_with_their_cost() -> None:
    shown = described(plan(UNITS, 40, COSTS), 40, COSTS)
    assert "    22 s  plain: a, b" in shown
    assert "left out, because 11 s are left" in shown
    assert "   100 s  compiled: c" in shown


@pytest.mark.parametrize(
    "content", ['{"starts": [NaN], "seconds": {}}', '{"starts": [], "seconds": {"a": -1}}', "[" * 200_000]
)
def test_invalid_times_are_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"not a result file of benchmarks\.gpu"):
        Costs.read(file)


def test_names_are_unique_and_contain_no_comma() -> None:
    """`--rows` and `--sections` separate names by commas."""
    listed = units(Bench(Settings()))
    assert len({one.name for one in listed}) == len(listed)
    assert not [one.name for one in listed if "," in one.name]


def test_listing_the_rows_makes_no_model() -> None:
    """The parent process must not touch the GPU."""
    bench = Bench(Settings())
    units(bench)
    assert "model" not in vars(bench)
