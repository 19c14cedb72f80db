"""Scheduled sampling: how often the network sees the true frame, and how often its own prediction."""

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Generator(Protocol):
    """A NumPy generator of either kind."""

    def random(self, size: tuple[int, int]) -> NDArray[np.float64]: ...


def probability(step: int, *, start: float, decrease: float, stop_step: int) -> float:
    """Chance that a true frame is shown after the context, at an optimizer step counted from 1.

    Falls by `decrease` a step from `start`, and is 0 from `stop_step` on. May go below 0, which is never.

    Source: google/e3d_lstm run.py, schedule_sampling.
    """
    return start - decrease * step if step < stop_step else 0.0


def reverse_probabilities(step: int, *, start_step: int, stop_step: int, decay: float) -> tuple[float, float]:
    """Chances that a true frame is shown within the context, and after it, at a step counted from 0.

    Both are half until `start_step`; then the first rises to 1, as an exponential of `decay` steps, and
    the second falls to 0 in a line, until `stop_step`.

    Source: PredRNN (Wang et al., 2021), reverse scheduled sampling; OpenSTL openstl/utils/predrnn_utils.py.
    """
    if step < start_step:
        return 0.5, 0.5
    if step >= stop_step:
        return 1.0, 0.0
    done = step - start_step
    return 1 - 0.5 * math.exp(-done / decay), 0.5 - 0.5 * done / (stop_step - start_step)


def draw(shape: tuple[int, int], chance: float, generator: Generator) -> Tensor:
    """1 where the true frame is shown and 0 elsewhere, float32 [B, frames]."""
    return torch.from_numpy(generator.random(shape) < chance).float()


def after_context(drawn: Tensor, context_length: int) -> Tensor:
    """Extend the draws after the context, [B, horizon − 1], to those that `E3DLSTM.forward` takes, [B, T − 2]."""
    return torch.cat([drawn.new_ones(len(drawn), context_length - 1), drawn], dim=1)
