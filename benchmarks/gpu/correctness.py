"""Comparison of a stepper with PyTorch eager in float32, over more frames than the ring has slots."""

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
"""Number of streams that are also computed in float64; only a few, because GPUs are slow in float64."""


class Yardstick:
    """Reference for one number of streams: eager float32 with TF32 off, and its rounding error."""

    def __init__(self, bench: Bench, batch: int) -> None:
        self.bench, self.batch = bench, batch
        self.frames = bench.frames(batch, max(12, bench.config.history_length + 4))

    @cached_property
    def expected(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Predictions of all steps, and the final states by name."""
        eager = Eager(self.bench, self.batch, precision="fp32")
        return rolled(eager, self.frames), eager.states()

    @cached_property
    def rounding(self) -> float:
        """Largest difference of predictions and final states between float32 and float64."""
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
        """Step a new stepper, whose ring is full afterwards; return its differences from the reference.

        A float32 stepper passes within a budget, which is a multiple of the rounding error of PyTorch's own float32.
        Other steppers pass if their results are finite.
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
        """Return the allowed difference of float32 steppers."""
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
    """Step over frames [T, B, C, H, W]; return the predictions, [T, B, C, H, W]."""
    with arithmetic(stepper.precision):
        return torch.stack([stepper.step(frame).float().clone() for frame in frames])


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference."""
    return float((one.double() - other.double()).abs().max())


def by_kind(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the largest absolute difference of each kind of state, over all layers."""
    kinds: dict[str, float] = {}
    for name, tensor in expected.items():
        kind = name.split(".")[0]
        kinds[kind] = max(kinds.get(kind, 0.0), distance(tensor, found[name]))
    return kinds
