"""Duration of a training run, estimated from passes that are timed on this machine, and the size that suits it."""

import time
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from e3d_deploy.config import PRESETS, ModelConfig, TrainConfig
from e3d_deploy.model import E3DLSTM
from e3d_deploy.training.sizes import configs, fitting_patch

BUDGET_S = 2.0
"""Time to spend on whole steps (seconds); a step that takes longer is estimated from a part of it."""
PART = 2
"""Frames of such a part."""
LONGEST_S = 4 * 3600.0
"""Duration of the longest run that is suggested (seconds)."""
GROWTH = 8
"""A preset takes at least so many times as long as the one before, so that one too long need not be timed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that suits this machine."""

    preset: str
    patch_size: int | None
    """Side of a patch where that of the preset does not suit the frames (pixels)."""
    steps: int
    step_s: float
    """Time of an optimizer step (seconds)."""

    @property
    def duration_s(self) -> float:
        """Time of the run without validations (seconds)."""
        return self.steps * self.step_s

    @property
    def arguments(self) -> tuple[str, ...]:
        """Options of `e3d train` that make it."""
        patch = () if self.patch_size is None else ("--patch-size", str(self.patch_size))
        whole = configs(self.preset)[1].steps
        return ("--preset", self.preset, *patch, *(() if self.steps == whole else ("--steps", str(self.steps))))


def suitable(**form: Any) -> Plan | None:
    """Return the largest preset whose run ends within hours on this machine, or else tiny with fewer steps.

    Args:
        form: fields of `ModelConfig` and `TrainConfig` that the data decide, such as `image_size`.

    Returns:
        The plan; None if no patch divides the frame into a number of patches that can be trained on.
    """
    best: Plan | None = None
    for preset in PRESETS:
        usual = configs(preset)[0].patch_size
        patch = fitting_patch(form["image_size"], at_most=usual)
        if patch is None:
            break
        model, config = configs(preset, **form, patch_size=patch)
        plan = Plan(
            preset=preset,
            patch_size=None if patch == usual else patch,
            steps=config.steps,
            step_s=step_s(model, config),
        )
        if best is not None and plan.duration_s > LONGEST_S:
            break
        best = plan
        if plan.duration_s * GROWTH > LONGEST_S:
            break
    if best is not None and best.duration_s > LONGEST_S:
        best = replace(best, steps=max(100, int(LONGEST_S / best.step_s)))
    return best


def step_s(model_config: ModelConfig, config: TrainConfig) -> float:
    """Return the time of an optimizer step on the device that training would take (seconds), measured in a few.

    A step that is too long for that is estimated from two frames, with the history half full as it is in the mean; of
    a very long one, from those of a single clip. Optimizer and moving average are left out: they take a few percent.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frames = config.clip_length - 1
    with torch.random.fork_rng():
        model = E3DLSTM(model_config).to(device)
        part = min(PART, frames)
        half = min(frames, model_config.history_length) // 2

        def time_part(batch: int) -> float:
            """Return the least time of several passes, as other work of the machine slows any of them."""
            times: list[float] = []
            while not times or (sum(times) < BUDGET_S and len(times) < 4):
                times.append(_pass_s(model, config, frames=part, batch=batch, history=half))
            return min(times)

        estimate = time_part(1) * config.batch_size  # clips of a batch together take less than one by one
        if config.batch_size > 1 and estimate <= BUDGET_S:
            estimate = time_part(config.batch_size)
        estimate *= frames / part
        if estimate > BUDGET_S:
            return estimate
        whole: list[float] = []
        while len(whole) < 2 or (sum(whole) < BUDGET_S and len(whole) < 10):
            whole.append(_pass_s(model, config, frames=frames, batch=config.batch_size, history=1))
        return median(whole[1:])


def _pass_s(model: E3DLSTM, config: TrainConfig, *, frames: int, batch: int, history: int) -> float:
    """Time a training pass over random frames, from a state with so many entries in its history (seconds)."""
    device, image_size = model.to_patch.weight.device, model.config.image_size
    clips = torch.rand(batch, frames + 1, model.config.channels, *image_size, device=device)
    state = model.initial_state(batch)
    state = state._replace(history=tuple(entries * max(1, history) for entries in state.history))
    half = device.type == "cuda" and config.precision != "fp32" and torch.cuda.is_bf16_supported()
    _finish(device)
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        predictions = model(clips, 1, torch.ones(batch, frames - 1, device=device), state=state)
    difference = predictions.float() - clips[:, 1:]
    (difference.square().mean() + difference.abs().mean()).backward()
    _finish(device)
    model.zero_grad()
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
