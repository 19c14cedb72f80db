"""Progress of a training run, by steps or by time."""

import pytest
import torch
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from e3d_deploy.config import TrainConfig
from e3d_deploy.training.pace import Pace, cosine, one_cycle
from tests.tools import Clock

BY_TIME = TrainConfig(schedule_by="time", steps=1000)
ONE_CYCLE = (
    1e-3  # of the highest learning rate, and of beta1; measured 2e-4, because PyTorch's cycle is one step shorter
)


def test_share_of_the_steps_needs_no_clock() -> None:
    clock = Clock()
    pace = Pace(TrainConfig(steps=1000), limit_s=10, clock=clock)
    clock.now += 5
    pace.end_step()
    assert [pace.share(step) for step in (0, 250, 1000, 2000)] == [0, 0.25, 1, 1]
    assert not pace.late
    clock.now += 5
    assert pace.late
    assert pace.state_dict() == {}


def test_share_of_the_time_is_constant_in_the_first_step_and_then_grows_linearly() -> None:
    clock = Clock()
    pace = Pace(BY_TIME, limit_s=100, clock=clock)
    clock.now += 60  # the first step compiles
    assert pace.share(0) == 0
    pace.end_step()
    shares = []
    for step in range(1, 5):
        shares.append(pace.share(step))
        assert not pace.late
        clock.now += 10
        pace.end_step()
    assert shares == pytest.approx([0.001, 0.25, 0.5, 0.75])  # the first one is the share of the steps, 1 of 1,000
    assert pace.share(5) == 1
    assert pace.late


def test_a_first_step_as_long_as_the_limit_is_the_last() -> None:
    clock = Clock()
    pace = Pace(BY_TIME, limit_s=10, clock=clock)
    clock.now += 11
    pace.end_step()
    assert pace.share(1) == 1
    assert pace.late


def test_steps_can_end_a_schedule_before_the_time_limit() -> None:
    pace = Pace(BY_TIME, limit_s=1e9, clock=Clock())
    pace.end_step()
    assert [pace.share(step) for step in (1, 500, 1000)] == [0.001, 0.5, 1]


def test_a_resumed_run_keeps_its_share_and_has_the_remaining_time() -> None:
    clock = Clock()
    first = Pace(BY_TIME, limit_s=100, clock=clock)
    first.end_step()
    clock.now += 40
    state = first.state_dict()
    assert state == {"elapsed_s": 40, "share": pytest.approx(0.4)}
    clock.now += 1e6
    second = Pace(BY_TIME, limit_s=100, clock=clock)
    clock.now += 7  # opening the data
    second.load_state_dict(state)
    clock.now += 20  # compiling again
    assert second.share(3) == pytest.approx(0.4)
    second.end_step()
    assert second.share(4) == pytest.approx(0.4)
    clock.now += 16.5  # half of the remaining 33 s
    assert second.share(5) == pytest.approx(0.7)
    clock.now += 16.5
    assert second.share(6) == 1
    assert second.late


def test_a_finished_run_with_a_longer_limit_resumes_at_the_matching_share() -> None:
    clock = Clock()
    pace = Pace(BY_TIME, limit_s=100, clock=clock)
    pace.load_state_dict({"elapsed_s": 60, "share": 1.0})
    assert pace.share(5) == pytest.approx(0.6)
    clock.now += 20
    pace.end_step()
    clock.now += 10  # half of the remaining time
    assert pace.share(6) == pytest.approx(0.8)
    shorter = Pace(BY_TIME, limit_s=50, clock=clock)
    shorter.load_state_dict({"elapsed_s": 60, "share": 1.0})
    assert shorter.share(5) == 1


def test_cosine_falls_from_one_to_zero() -> None:
    assert [cosine(share) for share in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


def test_one_cycle_by_share_is_that_of_pytorch() -> None:
    total = 5001
    optimizer = Adam([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = OneCycleLR(optimizer, max_lr=1.0, total_steps=total, final_div_factor=1e4)
    for step in range(total):
        rate, beta1 = one_cycle(step / (total - 1))
        group = optimizer.param_groups[0]
        assert abs(rate - group["lr"]) < ONE_CYCLE
        assert abs(beta1 - group["betas"][0]) < ONE_CYCLE
        optimizer.step()
        if step < total - 1:
            theirs.step()
    assert one_cycle(1.0)[0] == pytest.approx(optimizer.param_groups[0]["lr"])
