"""Decay of the state of a trained model, measured at the end of a run and stored in its model file."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from e3d_deploy import checkpoint
from e3d_deploy.card import REACH, Card
from e3d_deploy.config import TrainConfig
from e3d_deploy.data.datasets import decay_data
from e3d_deploy.data.form import Form
from e3d_deploy.data.sources import Source
from e3d_deploy.errors import E3DError
from e3d_deploy.evaluation.streaming import Windows, decay_ages, measure_decay, steps_of
from e3d_deploy.model import E3DLSTM, State
from e3d_deploy.progress import Notify
from e3d_deploy.runtime.backends.protocol import Frame

log = logging.getLogger(__name__)

WINDOWS = 32
"""Maximum number of windows measured."""
SHARE = 0.05
"""Maximum share of a run's work that measuring may take. Work is counted in steps of the network and not in seconds, so
runs with the same options measure the same ages."""
WITH_GRADIENTS = 3
"""Approximate number of steps without gradients that take as long as one step with gradients."""


class ModelSteps:
    """Adapter that lets `measure_decay` step a model on the device of its weights; see `evaluation.streaming.Steps`."""

    sizes: tuple[int, ...] = (1, 2, 4, 8)

    def __init__(self, model: E3DLSTM) -> None:
        self.model, self.device = model, model.to_patch.weight.device

    def initial_state(self, batch: int | None = None) -> State:
        return self.model.initial_state(batch or 1)

    @torch.inference_mode()
    def step(self, frame: Frame, state: State) -> tuple[NDArray[np.float32], State]:
        prediction, next_state = self.model.step(torch.from_numpy(frame).to(self.device), state)
        return prediction.cpu().numpy(), next_state


def record_decay_of_run(
    path: Path,
    valid: Source | str,
    config: TrainConfig,
    *,
    steps: int,
    device: torch.device,
    progress: Notify,
) -> None:
    """Measure the decay of the model in `path` on validation clips and write it into the card of the model.

    If the run is too short for measuring, a progress line says so and nothing is written. An error is only logged,
    because the model is already trained and saved.

    Args:
        valid: source of the validation clips, in the form that `decay_data` accepts.
        steps: number of optimizer steps of the run.
    """
    name, C = valid if isinstance(valid, str) else valid.name, config.context_length
    later = f"measure it with `e3d evaluate {path} --streaming --record`"
    work = WITH_GRADIENTS * steps * config.batch_size * (config.clip_length - 1)
    try:
        model = checkpoint.load(path).to(device)
        _, fitting = _windows(valid, decay_ages(C), model, config)
        ages = affordable(fitting, context_length=C, horizon=config.horizon, steps=SHARE * work / WINDOWS)
        if not ages:
            progress(f"decay: not measured, because the run was too short; {later}")
            return
        progress(f"decay: measuring a state at ages {', '.join(map(str, ages))} on validation clips of {name}")
        windows, _ = _windows(valid, ages, model, config)
        decay = measure_decay(
            ModelSteps(model), windows, ages=ages, context_length=C, horizon=config.horizon, data=name
        )
        checkpoint.write_card(path, replace(checkpoint.read_card(path), decay=decay))
        progress(f"decay: {decay.verdict}")
    except (E3DError, OSError, RuntimeError) as error:  # PyTorch raises RuntimeError, for example when out of memory
        log.warning("decay: not recorded (%s); %s", error, later)


def _windows(
    valid: Source | str, ages: Sequence[int], model: E3DLSTM, config: TrainConfig
) -> tuple[Windows, tuple[int, ...]]:
    """Return windows of the validation clips, and the ages for which the clips are long enough."""
    return decay_data(
        valid,
        ages,
        Form.of(model.config, Card(fit=config.fit), config.layout),
        split="valid",
        context_length=config.context_length,
        horizon=config.horizon,
        most=WINDOWS,
    )


def affordable(ages: Sequence[int], *, context_length: int, horizon: int, steps: float) -> tuple[int, ...]:
    """Return the ages that can be measured per window within `steps` steps, ascending.

    Ages are chosen in this order: C, then the smallest age of at least REACH · C, which the verdict on the decay needs,
    then the others in ascending order.

    Args:
        context_length: C, the context of training (frames).
        steps: maximum number of steps per window.

    Returns:
        The ages; empty if measuring C takes too many steps.
    """
    old_age = next((age for age in sorted(ages) if age >= REACH * context_length), None)
    order = sorted(ages, key=lambda age: (age != context_length, age != old_age, age))
    chosen: list[int] = []
    for age in order:
        if steps_of([*chosen, age], horizon=horizon) <= steps:
            chosen.append(age)
        elif age == context_length:
            return ()
    return tuple(sorted(chosen))
