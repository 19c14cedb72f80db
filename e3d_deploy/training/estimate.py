"""Estimate the duration of a training run from passes timed on this machine, and suggest a preset that suits it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import torch

from e3d_deploy.config import PRESETS, ModelConfig, TrainConfig
from e3d_deploy.evaluation.streaming import decay_ages, steps_of
from e3d_deploy.model import E3DLSTM
from e3d_deploy.training.decay import SHARE, WINDOWS, WITH_GRADIENTS, affordable
from e3d_deploy.training.sizes import configs, fitting_patch

BUDGET_S = 4.0
"""Time spent on passes after which no further pass is timed (seconds)."""
WHOLE_S = 6.0
"""Maximum duration of an optimizer step that is timed as a whole (seconds); a longer one is estimated from its first
frames."""
FIRST_FRAMES = 4
"""Number of first frames from which the duration of a long optimizer step is estimated."""
CLIP_OVER_START = 1.05
"""Ratio of the mean time per frame of a whole clip to the mean time of its first frames; measured 1.01 to 1.13."""
STEP_OVER_PASS = 1.04
"""Ratio of the time of an optimizer step, with data, optimizer and previews, to the time of its training pass; measured
1.01 to 1.06 at 64×64."""
NO_GRADIENTS = 0.43
"""Ratio of the time per frame without gradients to the time with gradients; measured 0.38 to 0.45."""
LONGEST_S = 4 * 3600.0
"""Maximum duration of a suggested run (seconds), unless 100 steps of the smallest preset take longer."""
GROWTH = 8
"""Minimum ratio of the durations of successive presets. A preset is not timed if this ratio shows that it takes too
long."""


@dataclass(frozen=True, kw_only=True)
class SuggestedRun:
    """Options and duration of a run that suits this machine."""

    preset: str
    patch_size: int | None
    """Patch size to give if the patch size of the preset does not suit the frames (pixels); otherwise None."""
    steps: int
    step_s: float
    """Duration of an optimizer step (seconds)."""
    duration_s: float
    """Duration of the run (seconds)."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """Options of `e3d train` that start this run."""
        patch = () if self.patch_size is None else ("--patch-size", str(self.patch_size))
        whole = configs(self.preset)[1].steps
        return ("--preset", self.preset, *patch, *(() if self.steps == whole else ("--steps", str(self.steps))))


def suggested_run(spare: float = math.inf, **form: Any) -> SuggestedRun | None:
    """Return the run of the largest preset that takes at most `LONGEST_S` on this machine.

    If every preset takes longer, the result is a run of the smallest preset with fewer steps, but at least 100.

    Args:
        spare: number of frames that a clip has beyond a training clip.
        form: fields of `ModelConfig` and `TrainConfig` that depend on the data, such as `image_size`.

    Returns:
        The run; None if no patch size divides the frame into few enough patches.
    """
    best: SuggestedRun | None = None
    for preset in PRESETS:
        usual = configs(preset)[0].patch_size
        patch = fitting_patch(form["image_size"], at_most=usual)
        if patch is None:
            break
        model, config = configs(preset, **form, patch_size=patch)
        seconds = step_s(model, config)
        run = SuggestedRun(
            preset=preset,
            patch_size=None if patch == usual else patch,
            steps=config.steps,
            step_s=seconds,
            duration_s=seconds * work(config, spare),
        )
        if best is not None and run.duration_s > LONGEST_S:
            break
        best = run
        if run.duration_s * GROWTH > LONGEST_S:
            break
    if best is not None and best.duration_s > LONGEST_S:
        steps = max(100, int(best.steps * LONGEST_S / best.duration_s) // 10 * 10)
        _, config = configs(best.preset, **form, steps=steps)
        best = replace(best, steps=steps, duration_s=best.step_s * work(config, spare))
    return best


def work(config: TrainConfig, spare: float = math.inf) -> float:
    """Return the duration of a run in units of optimizer steps.

    The duration is the number of steps plus the time of all frames that are computed without gradients: in the burn-in,
    the validations, and the measurement of the decay at the end.

    Args:
        spare: number of frames that a clip has beyond a training clip; it limits the burn-in and the measured ages.
    """
    frames, clips = config.clip_length - 1, config.steps * config.batch_size
    burnt = 0 if config.burn_in_start is None else config.steps - config.burn_in_start
    burn_in = fmean(min(spare, number) for number in range(1, config.burn_in + 1)) / 2 if burnt else 0.0
    ages = affordable(
        [age for age in decay_ages(config.context_length) if age <= config.context_length + spare],
        context_length=config.context_length,
        horizon=config.horizon,
        steps=SHARE * WITH_GRADIENTS * clips * frames / WINDOWS,
    )
    carried = (
        burnt * config.batch_size * burn_in
        + math.ceil(config.steps / config.validate_every) * config.validation_clips * frames
        + WINDOWS * steps_of(ages, horizon=config.horizon)
    )
    return STEP_OVER_PASS * config.steps + NO_GRADIENTS * carried / (config.batch_size * frames)


def step_s(model_config: ModelConfig, config: TrainConfig) -> float:
    """Return the duration of an optimizer step on the device that training would use (seconds).

    A short step is timed a few times. The duration of a longer step is estimated from its first frames, computed with a
    half full history, which is the mean over a clip. For a very long step, only the first frames of one clip are timed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frames = config.clip_length - 1
    with torch.random.fork_rng():
        model = E3DLSTM(model_config).to(device)
        part = min(FIRST_FRAMES, frames)
        half = min(frames, model_config.history_length) // 2

        def passes(frames: int, batch: int, history: int) -> float:
            return _typical(lambda: _pass_s(model, config, frames=frames, batch=batch, history=history))

        # This is an upper bound, because a batch takes less time than its clips one by one.
        estimate = passes(part, 1, half) * config.batch_size
        if config.batch_size > 1 and estimate <= BUDGET_S:
            estimate = passes(part, config.batch_size, half)
        estimate *= frames / part * (CLIP_OVER_START if part < frames else 1)
        return estimate if estimate > WHOLE_S else passes(frames, config.batch_size, 1)


def _typical(time_once: Callable[[], float]) -> float:
    """Return the median of several times, without the first, which is longer.

    If the first time alone exceeds `BUDGET_S`, it is returned.
    """
    times: list[float] = []
    while not times or (sum(times) < BUDGET_S and len(times) < 10):
        times.append(time_once())
    return median(times[1:] or times)


def _pass_s(model: E3DLSTM, config: TrainConfig, *, frames: int, batch: int, history: int) -> float:
    """Time a training pass over random frames, from a state with `history` entries in its history (seconds)."""
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
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
