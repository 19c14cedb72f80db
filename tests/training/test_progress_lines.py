"""Progress of a run: plain lines, the warning of a run that takes days, and the progress bar."""

import io
import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from torch import Tensor

from e3d_deploy.config import TrainConfig
from e3d_deploy.progress import duration, silent
from e3d_deploy.training.callbacks import Bar
from e3d_deploy.training.pace import Pace
from e3d_deploy.training.progress_lines import ProgressLines
from e3d_deploy.training.train import Machine, _callbacks
from tests.tools import Clock, Terminal


class Run:
    """Fake trainer and module with the attributes that `ProgressLines` reads."""

    is_global_zero = True
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.global_step = 0
        self.callback_metrics: dict[str, Tensor] = {"train_loss": torch.tensor(0.25)}


def lines_of(
    config: TrainConfig, step_s: float, *, limit_s: float | None = None, steps: int | None = None
) -> list[str]:
    """Return the progress lines of a run with steps of the given duration."""
    clock, said = Clock(), list[str]()
    pace = Pace(config, limit_s=limit_s, clock=clock)
    lines, run = ProgressLines(config, pace, said.append, clock=clock), Run()
    anything: Any = run
    lines.on_train_start(anything, anything)
    for batch in range((steps or config.steps) * config.accumulate):
        clock.now += step_s / config.accumulate
        run.global_step = (batch + 1) // config.accumulate
        lines.on_train_batch_end(anything, anything, {}, torch.zeros(1), batch)
    return said


@pytest.mark.parametrize(
    ("terminal", "variables", "shown"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)
def test_a_bar_needs_a_terminal_that_can_erase(
    monkeypatch: pytest.MonkeyPatch, terminal: io.StringIO, variables: dict[str, str], shown: bool
) -> None:
    """A terminal without colours gets a bar without colours, as from other commands."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", terminal)
    config = TrainConfig()
    keeper: Any = SimpleNamespace(pace=Pace(config, limit_s=None))
    averaging: Any = None
    ours = _callbacks(config, Machine(), averaging, keeper, silent)
    assert any(isinstance(one, Bar) for one in ours) is shown


def test_a_bar_without_colours_writes_no_colour_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    written = {}
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        monkeypatch.setattr(sys, "stderr", Terminal())
        bar: Any = Bar(10)
        Console(**bar._console_kwargs).print("text", style="red")
        written[value] = bar._console_kwargs["file"].getvalue()
    assert "\x1b[31m" in written[""]
    assert "\x1b[31m" not in written["1"]


def test_a_bar_shows_only_two_values(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = {"v_num": 0, "train_loss": 0.2, "train_mse": 9.1, "valid_mse": 6.0}
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *_: logged)
    anything: Any = None
    assert Bar(10).get_metrics(anything, anything) == {"loss": 0.2, "valid_mse": 6.0}
    del logged["valid_mse"]
    assert Bar(10).get_metrics(anything, anything) == {"loss": 0.2}


def test_a_run_of_one_step_shows_its_speed() -> None:
    assert lines_of(TrainConfig(steps=1), 2.0) == ["step 1 of 1: loss 0.25, 2 sequences/s, 0 s left"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lines_are_written_at_the_first_step_the_last_and_every_half_minute(accumulate: int) -> None:
    said = lines_of(TrainConfig(steps=50, batch_size=4, accumulate=accumulate), 2.0)
    assert said == [
        "step 1 of 50: loss 0.25",
        "step 16 of 50: loss 0.25, 2 sequences/s, 68 s left",
        "step 31 of 50: loss 0.25, 2 sequences/s, 38 s left",
        "step 46 of 50: loss 0.25, 2 sequences/s, 8 s left",
        "step 50 of 50: loss 0.25, 2 sequences/s, 0 s left",
    ]
    assert all(line.isascii() for line in said)


def test_a_time_limit_limits_the_remaining_time() -> None:
    assert lines_of(TrainConfig(steps=50), 2.0, limit_s=60.0, steps=16)[1].endswith("28 s left")
    by_time = TrainConfig(steps=50_000, schedule_by="time")
    lines = ["step 1: loss 0.25", "step 16: loss 0.25, 2 sequences/s, 9 min left"]
    assert lines_of(by_time, 2.0, limit_s=590.0, steps=16) == lines


def test_a_run_that_takes_days_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    lines_of(TrainConfig(steps=80_000), 10.0, steps=5)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages == [
        "at 10 s per step the remaining 79998 steps take 9.26 days; end the run at any time with Ctrl-C or "
        "--time-limit MINUTES, or begin a smaller one with --preset tiny or small, or train on a GPU"
    ]


def test_a_run_of_hours_or_one_that_a_limit_ends_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    lines_of(TrainConfig(steps=8000), 10.0, steps=5)
    lines_of(TrainConfig(steps=80_000), 10.0, steps=5, limit_s=3600.0)
    assert caplog.messages == []


def test_durations_are_shown_in_readable_units() -> None:
    times = [0.2, 45.4, 99.4, 100, 90 * 60, 100 * 60, 86_000, 86_400, 20 * 86_400]
    expected = ["0 s", "45 s", "99 s", "2 min", "90 min", "1 h 40 min", "23 h 53 min", "1 days", "20 days"]
    assert [duration(one) for one in times] == expected
