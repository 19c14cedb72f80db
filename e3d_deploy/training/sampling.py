"""Scheduled sampling: how often the network still sees the true frame after the context."""

import torch
from torch import Tensor


def probability(step: int, *, start: float, stop_step: int) -> float:
    """Chance that a true frame is shown at an optimiser step: falls in a line from `start` to 0 at `stop_step`.

    Source: google/e3d_lstm run.py, schedule_sampling, whose 50,000 steps of 0.00002 are the same line.
    """
    return max(0.0, start * (1 - step / stop_step)) if stop_step else 0.0


def draw(shape: tuple[int, int], chance: float, generator: torch.Generator) -> Tensor:
    """1 where the true frame is shown and 0 elsewhere, float32 [B, horizon − 1]."""
    return (torch.rand(shape, generator=generator) < chance).float()
