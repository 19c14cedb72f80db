"""Computed numbers of operations, compared with PyTorch's counter."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import flop
from benchmarks.gpu.bench import FULL, TINY
from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.model import E3DLSTM
from e3d_deploy.runtime.backends.torch_ring import RingStep


@torch.no_grad()
def counted_model(config: ModelConfig, entries: int) -> int:
    """Return PyTorch's count of operations for a step of the model, on tensors without data."""
    with torch.device("meta"):
        model = E3DLSTM(config).eval()
        state = model.initial_state(1)
        state = state._replace(history=tuple(history * entries for history in state.history))
        with FlopCounterMode(display=False) as counter:
            model.step(torch.empty(contract.frame(config).shape), state)
    return int(counter.get_total_flops())


@torch.no_grad()
def counted_ring(config: ModelConfig, rewrites: tuple[str, ...], precision: str, channels_last: bool) -> int:
    """Return PyTorch's count of operations for a step over rings."""
    with torch.device("meta"):
        ring = RingStep(E3DLSTM(config).eval(), rewrites, precision=precision, channels_last=channels_last)
        states = [torch.empty(one.shape, dtype=getattr(torch, one.dtype)) for one in contract.states(config)]
        with FlopCounterMode(display=False) as counter:
            ring(torch.empty(contract.frame(config).shape), states, [torch.empty_like(state) for state in states])
    return int(counter.get_total_flops())


def test_ten_frames_after_ten_take_302_gflop_at_full_size() -> None:
    """There are 19 steps with 1 to 19 entries in the history, so the mean step has ten entries."""
    assert round(sum(flop.by_paper(FULL, entries) for entries in range(1, 20)) / 1e9) == 302
    assert round(19 * counted_model(FULL, 10) / 1e9) == 302
    assert flop.by_paper(FULL, 10) == counted_model(FULL, 10)


@pytest.mark.parametrize(("semantics", "window_length"), [("paper", 2), ("google", 2), ("paper", 3)])
@pytest.mark.parametrize("rewrites", [(), ("conv2d",), ("norms",), ("frozen-memory", "conv2d", "norms")])
def test_executed_operations_equal_the_count_of_pytorch(
    semantics: str, window_length: int, rewrites: tuple[str, ...]
) -> None:
    config = replace(TINY, semantics=semantics, window_length=window_length)  # type: ignore[arg-type]
    for precision, channels_last in (("fp32", False), ("bf16", True)):
        found = flop.executed(config, config.history_length, rewrites)
        assert found == counted_ring(config, rewrites, precision, channels_last)


def test_the_rewrite_conv2d_omits_a_quarter_of_the_convolutions_at_full_size() -> None:
    plain, flat = (flop.executed(FULL, 0, rewrites) for rewrites in ((), ("conv2d",)))
    assert 0.745 < flat / plain < 0.755
