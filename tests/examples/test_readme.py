"""The table of the examples: every program is listed, with its length."""

import re

from tests.examples.conftest import EXAMPLES

LIMITS = {"edge_app/edge_app.py": 120, "many_cameras.py": 100, "rest_client.py": 80, "live_client.py": 80}
"""Lengths that programs must stay below (lines): an example is read before it is used."""


def test_programs_are_listed_with_their_lengths_and_stay_short() -> None:
    programs = {str(path.relative_to(EXAMPLES)): path for path in EXAMPLES.rglob("*.py")}
    assert set(programs) == set(LIMITS)
    lengths = {name: len(path.read_text().splitlines()) for name, path in programs.items()}
    assert [name for name, length in lengths.items() if length >= LIMITS[name]] == []
    rows = re.findall(r"^\| \[`(.+?)`\].*\| (\d*) \|$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    listed = {name: int(lines) for name, lines in rows if lines}
    assert listed == {name.replace("edge_app.py", ""): length for name, length in lengths.items()}
