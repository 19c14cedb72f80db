"""Fixture for all tests of data."""

import pytest


@pytest.fixture(autouse=True)
def _no_timed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not time a training step, which takes seconds, when a command suggests settings; test_estimate.py times it."""
    monkeypatch.setattr("e3d_deploy.commands.data.is_importable", lambda _: False)
