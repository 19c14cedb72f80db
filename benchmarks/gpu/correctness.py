"""Comparison of a row with eager float32, beyond a full ring."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.steppers import Eager, NaiveCompiled, Rings, Stepper, rings_of
from e3d_deploy.policies import default_budget
from e3d_deploy.tf32 import arithmetic

JUDGED_STREAMS = 2
"""Streams that are also computed in float64, which a GPU is slow at."""


class Yardstick:
    """Eager float32 with TF32 off for one number of streams, and its own rounding error."""

    def __init__(self, bench: Bench, batch: int) -> None:
        self.bench, self.batch = bench, batch
        self.frames = bench.frames(batch, max(12, bench.config.history_length + 4))

    @cached_property
    def expected(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Predictions of all steps, and the states at the end."""
        eager = Eager(self.bench, self.batch, precision="fp32")
        return rolled(eager, self.frames), eager.states()

    @cached_property
    def rounding(self) -> float:
        """Largest difference between float32 and float64, of predictions and final states."""
        predictions, states = self.expected
        exact, frames = self.bench.copy_of_model().double(), self.frames[:, :JUDGED_STREAMS].double()
        state, found = exact.initial_state(frames.shape[1]), []
        for frame in frames:
            prediction, state = exact.step(frame, state)
            found.append(prediction)
        doubles = rings_of(self.bench.config, state, len(frames))
        judged = {name: tensor[:JUDGED_STREAMS] for name, tensor in states.items()}
        return max(distance(torch.stack(found), predictions[:, :JUDGED_STREAMS]), *by_kind(doubles, judged).values())

    def compare(self, stepper: Stepper) -> dict[str, Any]:
        """Return how far a new stepper is off; afterwards its ring is full.

        Float32 is judged: it may be off by what PyTorch's own float32 is off from float64, times a factor.
        """
        if isinstance(stepper, NaiveCompiled):
            found: dict[str, Any] = {"predictions": self._one_step(stepper), "steps": 1}
        else:
            assert isinstance(stepper, Eager | Rings)
            found = self._from_start(stepper)
        worst = float(np.max([found["predictions"], *found.get("states", {}).values()]))
        if stepper.precision == "fp32":
            found["budget"] = self.budget()
            found["passed"] = worst <= found["budget"]
        else:
            found["passed"] = bool(np.isfinite(worst))
        return found

    def budget(self) -> float:
        """Return how far float32 products may be off."""
        difference = default_budget("fp32", self.rounding).difference
        assert difference is not None
        return difference

    def _from_start(self, stepper: Eager | Rings) -> dict[str, Any]:
        expected, states = self.expected
        predictions = rolled(stepper, self.frames)
        return {
            "predictions_12": distance(predictions[:12], expected[:12]),
            "predictions": distance(predictions, expected),
            "states": by_kind(states, stepper.states()),
            "steps": len(predictions),
        }

    def _one_step(self, stepper: NaiveCompiled) -> float:
        with arithmetic(stepper.precision):
            found = stepper.step(self.frames[0]).float().clone()
        with arithmetic("fp32"):
            expected, _ = self.bench.model.step(self.frames[0], stepper.state)
        return distance(expected, found)


def rolled(stepper: Stepper, frames: Tensor) -> Tensor:
    """Return the predictions of steps over frames [T, B, C, H, W]."""
    with arithmetic(stepper.precision):
        return torch.stack([stepper.step(frame).float().clone() for frame in frames])


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference."""
    return float((one.double() - other.double()).abs().max())


def by_kind(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the largest absolute difference of each kind of state, over layers."""
    kinds: dict[str, float] = {}
    for name, tensor in expected.items():
        kind = name.split(".")[0]
        kinds[kind] = max(kinds.get(kind, 0.0), distance(tensor, found[name]))
    return kinds
