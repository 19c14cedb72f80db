"""Choice of a precision policy, and of the layers that it leaves in float32, by measured drift."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto

from e3d_deploy.bundle.manifest import Precision, Tried
from e3d_deploy.errors import ConfigError, QualityError
from e3d_deploy.export.graph.compose import step_graph
from e3d_deploy.export.precision.drift import Drift, GraphComparison, RealClips
from e3d_deploy.export.precision.quantize import calibrate, check_ranges
from e3d_deploy.export.precision.types import LARGEST, LOW, products, stamp, typed
from e3d_deploy.json_values import json_values
from e3d_deploy.model import E3DLSTM
from e3d_deploy.operators import PRODUCTS
from e3d_deploy.policies import MIN_SHARE, PICTURE_RANGE, Budget
from e3d_deploy.progress import Notify


@dataclass(frozen=True)
class Fit:
    """A policy applied to a network, with its drift, size and speed."""

    policy: str
    core: GraphProto
    """Core in the low type of the policy."""
    exclude: list[str]
    """Layers that stay in float32, in the order in which they were excluded."""
    drift: Drift
    budget: Budget
    bytes: int
    """Size of the step graph with its weights (bytes)."""
    step_ms: float | None
    """Time of a step on ONNX Runtime on this machine (ms); None before it is measured by `Chooser.timed`, and None if
    ONNX Runtime does not run the policy."""

    @property
    def fits(self) -> bool:
        return self.drift.share_of(self.budget) <= 1

    def known(self) -> dict[str, Any]:
        """Return the fields that the manifest's entries `Precision` and `Tried` have in common."""
        return {
            "policy": self.policy,
            "exclude": tuple(self.exclude),
            "budget": self.budget.to_dict(),
            "fits": self.fits,
            "drift": json_values(asdict(self.drift)),
            "bytes": self.bytes,
            "step_ms": self.step_ms,
        }


@dataclass(frozen=True)
class Chooser:
    """Search for the fewest float32 layers with which a policy stays within its budget."""

    core: GraphProto
    batch: int | None
    comparison: GraphComparison
    ranges: Callable[[], Mapping[str, float]]
    """Function that returns the ranges from `quantize.calibrate`; called only for policies that need ranges."""
    progress: Notify

    def fit(self, policy: str, budget: Budget, exclude: Collection[str] = ()) -> Fit:
        """Apply a policy with as few layers in float32 as its budget allows.

        If the policy exceeds the budget, the drift of each layer is measured with all other layers in float32. Then
        the layers with the largest drift are excluded, as few of them as the budget needs. At least `MIN_SHARE` of all
        products stay in the low type. If the policy exceeds the budget even then, `fits` of the result is False.

        Raises:
            ConfigError: `exclude` leaves less than `MIN_SHARE` of all products in the low type.
        """
        excluded = list(exclude)
        every = {label: len(nodes) for label, nodes in products(self.core).items()}
        total = sum(node.op_type in PRODUCTS for node in self.core.node)
        left = sum(count for label, count in every.items() if label not in excluded)
        if policy in LOW and left < MIN_SHARE * total:
            raise ConfigError(
                f"exclude: leaves {left} of {total} convolutions and matrix products in {policy}, expected at least "
                f"{MIN_SHARE:.0%} of them; exclude fewer layers, or give --precision fp32"
            )
        found = self._measure(policy, budget, excluded)
        if found.fits or policy not in LOW:
            return found
        drifts = {}
        for number, label in enumerate(sorted(set(every) - set(excluded)), 1):
            self.progress(f"{policy}: measuring layer {number} of {len(every) - len(excluded)}, {label}")
            others = [name for name in every if name != label]
            drifts[label] = self.comparison.distance(self._graph(policy, others)[1], policy)
        order = sorted(drifts, key=lambda label: -np.nan_to_num(drifts[label], nan=np.inf))
        most = 0
        while most < len(order) and left - every[order[most]] >= MIN_SHARE * total:
            left -= every[order[most]]
            most += 1
        low, high = 0, most  # the smallest count that fits is in (low, high], if any count fits
        best = self._measure(policy, budget, excluded + order[:most])
        while best.fits and high - low > 1:
            middle = (low + high) // 2
            tried = self._measure(policy, budget, excluded + order[:middle])
            low, high, best = (low, middle, tried) if tried.fits else (middle, high, best)
        return best

    def _graph(self, policy: str, exclude: Collection[str]) -> tuple[GraphProto, ModelProto]:
        core = typed(self.core, policy, exclude=exclude, ranges=self.ranges() if policy in LARGEST else None)
        return core, stamp(step_graph(core, self.comparison.config, self.batch), policy)

    def _measure(self, policy: str, budget: Budget, exclude: list[str]) -> Fit:
        self.progress(f"{policy}: measuring the drift with {len(exclude)} layers in float32")
        core, graph = self._graph(policy, exclude)
        size = len(graph.SerializeToString())
        return Fit(policy, core, exclude, self.comparison.drift(graph, policy), budget, size, None)

    def timed(self, tried: Sequence[Fit]) -> list[Fit]:
        """Return the fits with the measured times of their steps."""
        self.progress("timing a step")
        graphs = {fit.policy: step_graph(fit.core, self.comparison.config, self.batch) for fit in tried}
        times = self.comparison.step_ms({policy: stamp(graph, policy) for policy, graph in graphs.items()})
        return [replace(fit, step_ms=times.get(fit.policy)) for fit in tried]


def choose(chooser: Chooser, budgets: Mapping[str, Budget], exclude: Collection[str] = ()) -> tuple[Fit, list[Fit]]:
    """Return the first policy of `budgets` that stays within its budget, and all policies that were tried.

    Args:
        budgets: budget of each policy, in the order in which the policies are tried.
        exclude: layers that stay in float32 whatever their drift is.

    Raises:
        QualityError: no policy stays within its budget; the message names the policy that comes nearest.
    """
    tried: list[Fit] = []
    for policy, budget in budgets.items():
        tried.append(chooser.fit(policy, budget, exclude if policy in LOW else ()))
        if tried[-1].fits:
            tried = chooser.timed(tried)
            return tried[-1], tried
    nearest = min(tried, key=lambda one: one.drift.share_of(one.budget))
    found = asdict(nearest.drift)
    limits = {"difference": PICTURE_RANGE, **nearest.budget.to_dict()}
    words = ", ".join(f"{name} {found[name]:.2g} (limit {allowed:g})" for name, allowed in limits.items())
    kept = f" with {len(nearest.exclude)} layers in float32" if nearest.exclude else ""
    larger = ", or a larger --budget" if nearest.drift.difference <= PICTURE_RANGE else "; no --budget allows that"
    raise QualityError(
        f"precision: none of {', '.join(budgets)} stays within its budget, and nothing was written; the nearest is "
        f"{nearest.policy}{kept}: {words}; give another --precision, or other clips to --calibration{larger}"
    )


@dataclass(frozen=True)
class Chosen:
    """Policy that stays within its budget, and the means to apply it to other variants of the core."""

    core: GraphProto
    """Core in the low type of the policy."""
    precision: Precision
    """Entry in the manifest."""
    budget: Budget
    chooser: Chooser
    learn: Callable[[GraphProto], Mapping[str, float]]
    """Function that returns the ranges of a core from the calibration clips."""

    def on(self, core: GraphProto, policy: str, *, hinted: bool) -> tuple[GraphProto, Drift]:
        """Apply a policy to another variant of the core, with the same layers in float32.

        Args:
            core: float32 core in the other variant.
            policy: the chosen policy, or fp32 if libraries compute in float32 in its place.
            hinted: leave the graph in float32; the library is told to compute in the type of the policy.

        Returns:
            The core and its drift.
        """
        comparison = self.chooser.comparison
        if not hinted:
            ranges = self.learn(core) if policy in LARGEST else None
            core = typed(core, policy, exclude=self.precision.exclude, ranges=ranges)
        graph = stamp(step_graph(core, comparison.config, self.chooser.batch), "fp32" if hinted else policy)
        return core, comparison.hinted_drift(graph, policy) if hinted else comparison.drift(graph, policy)


def choose_precision(
    model: E3DLSTM,
    core: GraphProto,
    clips: RealClips,
    *,
    budgets: Mapping[str, Budget],
    batch: int | None,
    context_length: int,
    exclude: Sequence[str],
    progress: Notify,
) -> Chosen:
    """Choose the first policy of `budgets` that stays within its budget, and apply it to a core.

    Raises:
        QualityError: no policy stays within its budget.
        ConfigError: `exclude` names too many layers or an unknown layer, or a layer has no range on the calibration
            clips.
    """

    def learn(form: GraphProto) -> Mapping[str, float]:
        progress(f"learning ranges from {len(clips.calibrate)} clips")
        largest = calibrate(form, model.config, batch, clips.calibrate, context_length=context_length)
        if not all(0 < value < np.inf for value in largest.values()):
            usual = calibrate(form, model.config, batch, clips.measure[-1:], context_length=context_length)
            check_ranges(form, largest, usual, clips.source)
        return largest

    @cache
    def ranges() -> Mapping[str, float]:
        return learn(core)

    comparison = GraphComparison(model, clips.measure, batch=batch, context_length=context_length, progress=progress)
    chooser = Chooser(core, batch, comparison, ranges, progress)
    chosen, tried = choose(chooser, budgets, exclude)
    calibrated = clips.describe_calibration() if chosen.policy in LARGEST else None
    precision = Precision(
        **chosen.known(),
        measured=clips.describe_measured(),
        calibration=calibrated,
        tried=tuple(Tried(**fit.known()) for fit in tried),
    )
    return Chosen(chosen.core, precision, chosen.budget, chooser, learn)
