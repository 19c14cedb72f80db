"""Scheduled sampling: whether the network is shown the true frame or its own prediction, drawn at random."""

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Generator(Protocol):
    """A random generator of NumPy: `numpy.random.Generator` or `numpy.random.RandomState`."""

    def random(self, size: tuple[int, int]) -> NDArray[np.float64]: ...


def probability(step: int, *, start: float, decrease: float, stop_step: int) -> float:
    """Return the chance that a true frame is shown after the context.

    It falls from `start` by `decrease` per step, and is 0 from `stop_step` on. A value below 0 means never.

    Args:
        step: optimizer step, from 1.

    Source: google/e3d_lstm run.py, schedule_sampling.
    """
    return start - decrease * step if step < stop_step else 0.0


def reverse_probabilities(step: int, *, start_step: int, stop_step: int, decay: float) -> tuple[float, float]:
    """Return the chances that a true frame is shown within the context and after the context.

    Both are 0.5 before `start_step`. Then the first approaches 1 exponentially, and the second falls linearly to 0.
    From `stop_step` on they are 1 and 0.

    Args:
        step: optimizer step, from 0.
        decay: time constant of the exponential (steps).

    Source: PredRNN (Wang et al., 2021), reverse scheduled sampling; OpenSTL openstl/utils/predrnn_utils.py.
    """
    if step < start_step:
        return 0.5, 0.5
    if step >= stop_step:
        return 1.0, 0.0
    done = step - start_step
    return 1 - 0.5 * math.exp(-done / decay), 0.5 - 0.5 * done / (stop_step - start_step)


def draw(shape: tuple[int, int], chance: float, generator: Generator) -> Tensor:
    """Draw 1 (show the true frame) with probability `chance`, otherwise 0; float32 [B, frames]."""
    return torch.from_numpy(generator.random(shape) < chance).float()


def after_context(drawn: Tensor, context_length: int) -> Tensor:
    """Prepend ones for the context to draws [B, horizon − 1]; return draws [B, T − 2] for `E3DLSTM.forward`."""
    return torch.cat([drawn.new_ones(len(drawn), context_length - 1), drawn], dim=1)
