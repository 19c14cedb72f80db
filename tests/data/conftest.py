"""Fixture for all tests of data."""

import pytest


@pytest.fixture(autouse=True)
def _no_timed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suggest a run without timing a training step, which takes seconds; tests/training/test_estimate.py times one."""
    monkeypatch.setattr("e3d_deploy.commands.data.is_importable", lambda _: False)
