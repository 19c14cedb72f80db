"""Choice of a precision policy and of the layers it leaves in float32, both by measured drift."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto

from e3d_deploy.bundle.manifest import Precision, Tried
from e3d_deploy.errors import ConfigError, QualityError
from e3d_deploy.export.graph.compose import step_graph
from e3d_deploy.export.precision.drift import Drift, Gauge, RealClips
from e3d_deploy.export.precision.quantize import calibrate, check_ranges
from e3d_deploy.export.precision.types import LARGEST, LOW, products, stamp, typed
from e3d_deploy.json_values import json_values
from e3d_deploy.model import E3DLSTM
from e3d_deploy.operators import PRODUCTS
from e3d_deploy.policies import MIN_SHARE, PICTURE_RANGE, Budget
from e3d_deploy.progress import Notify


@dataclass(frozen=True)
class Fit:
    """A policy on a network, and what it costs."""

    policy: str
    core: GraphProto
    exclude: list[str]
    """Layers that stay in float32, those first that were excluded first."""
    drift: Drift
    budget: Budget
    bytes: int
    """Weights and nodes of the step graph."""
    step_ms: float | None
    """On ONNX Runtime on this machine; None where it does not run the policy."""

    @property
    def fits(self) -> bool:
        return self.drift.share_of(self.budget) <= 1

    def known(self) -> dict[str, Any]:
        """Return the fields of its entries in the manifest."""
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
    """Search for the fewest float32 layers that keep a policy within its budget."""

    core: GraphProto
    batch: int | None
    gauge: Gauge
    ranges: Callable[[], Mapping[str, float]]
    """From `quantize.calibrate`; called by policies that need them."""
    progress: Notify

    def fit(self, policy: str, budget: Budget, exclude: Collection[str] = ()) -> Fit:
        """A policy with as few layers in float32 as its budget allows.

        Where it is over the budget, every layer is measured alone, all others in float32; then those that drift
        most are excluded, as many as it takes. At least `MIN_SHARE` of all products stay in the low type; a policy
        that is over the budget even so does not fit.

        Raises:
            ConfigError: `exclude` alone leaves fewer.
        """
        excluded = list(exclude)
        every = {label: len(nodes) for label, nodes in products(self.core).items()}
        total = sum(node.op_type in PRODUCTS for node in self.core.node)
        left = sum(count for label, count in every.items() if label not in excluded)
        if policy in LOW and left < MIN_SHARE * total:
            raise ConfigError(
                f"exclude: leaves {left} of {total} convolutions and matrix products in {policy}, at least "
                f"{MIN_SHARE:.0%} of them stay in it; exclude fewer layers, or give --precision fp32"
            )
        found = self._measure(policy, budget, excluded)
        if found.fits or policy not in LOW:
            return found
        alone = {}
        for number, label in enumerate(sorted(set(every) - set(excluded)), 1):
            self.progress(f"{policy}: layer {number} of {len(every) - len(excluded)}, {label}")
            others = [name for name in every if name != label]
            alone[label] = self.gauge.distance(self._graph(policy, others)[1], policy)
        order = sorted(alone, key=lambda label: -np.nan_to_num(alone[label], nan=np.inf))
        most = 0
        while most < len(order) and left - every[order[most]] >= MIN_SHARE * total:
            left -= every[order[most]]
            most += 1
        few, fewest = 0, most  # the least count that fits lies in (few, fewest], if any does
        best = self._measure(policy, budget, excluded + order[:most])
        while best.fits and fewest - few > 1:
            middle = (few + fewest) // 2
            tried = self._measure(policy, budget, excluded + order[:middle])
            few, fewest, best = (few, middle, tried) if tried.fits else (middle, fewest, best)
        return best

    def _graph(self, policy: str, exclude: Collection[str]) -> tuple[GraphProto, ModelProto]:
        core = typed(self.core, policy, exclude=exclude, ranges=self.ranges() if policy in LARGEST else None)
        return core, stamp(step_graph(core, self.gauge.config, self.batch), policy)

    def _measure(self, policy: str, budget: Budget, exclude: list[str]) -> Fit:
        self.progress(f"{policy}: the drift with {len(exclude)} layers in float32")
        core, graph = self._graph(policy, exclude)
        size = len(graph.SerializeToString())
        return Fit(policy, core, exclude, self.gauge.drift(graph, policy), budget, size, None)

    def timed(self, tried: Sequence[Fit]) -> list[Fit]:
        """Some policies, with the times of their steps."""
        self.progress("timing a step")
        graphs = {fit.policy: step_graph(fit.core, self.gauge.config, self.batch) for fit in tried}
        times = self.gauge.step_ms({policy: stamp(graph, policy) for policy, graph in graphs.items()})
        return [replace(fit, step_ms=times.get(fit.policy)) for fit in tried]


def choose(chooser: Chooser, budgets: Mapping[str, Budget], exclude: Collection[str] = ()) -> tuple[Fit, list[Fit]]:
    """The first of some policies, the cheapest first, that keeps within its budget; and all that were tried.

    Raises:
        QualityError: none does; it names the nearest.
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
    words = ", ".join(f"{name} {found[name]:.2g} of {allowed:g}" for name, allowed in limits.items())
    kept = f" with {len(nearest.exclude)} layers in float32" if nearest.exclude else ""
    larger = ", or a larger --budget" if nearest.drift.difference <= PICTURE_RANGE else "; no --budget allows that"
    raise QualityError(
        f"precision: none of {', '.join(budgets)} keeps its budget; the nearest is {nearest.policy}{kept}: {words}; "
        f"nothing is written; give another --precision, or other clips to --calibration{larger}"
    )


@dataclass(frozen=True)
class Chosen:
    """Policy that keeps its budget, and how it was brought onto a network."""

    core: GraphProto
    precision: Precision
    """Entry in the manifest."""
    budget: Budget
    chooser: Chooser
    learn: Callable[[GraphProto], Mapping[str, float]]
    """Learn the ranges of another form of the core."""

    def on(self, core: GraphProto, policy: str, *, hinted: bool) -> tuple[GraphProto, Drift]:
        """Bring another form of the core to a policy, with the same layers in float32; measure its drift.

        Args:
            policy: the chosen one, or fp32 where libraries compute that in its place.
            hinted: the library is told, and the graph stays in float32.
        """
        gauge = self.chooser.gauge
        if not hinted:
            ranges = self.learn(core) if policy in LARGEST else None
            core = typed(core, policy, exclude=self.precision.exclude, ranges=ranges)
        graph = stamp(step_graph(core, gauge.config, self.chooser.batch), "fp32" if hinted else policy)
        return core, gauge.hinted_drift(graph, policy) if hinted else gauge.drift(graph, policy)


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
    """Bring a core into the first of some policies that keeps its budget.

    Raises:
        QualityError: none does.
        ConfigError: on the clips to learn from a layer has no range.
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

    gauge = Gauge(model, clips.measure, batch=batch, context_length=context_length, progress=progress)
    chooser = Chooser(core, batch, gauge, ranges, progress)
    chosen, tried = choose(chooser, budgets, exclude)
    calibrated = clips.describe_calibration() if chosen.policy in LARGEST else None
    precision = Precision(
        **chosen.known(),
        measured=clips.describe_measured(),
        calibration=calibrated,
        tried=tuple(Tried(**fit.known()) for fit in tried),
    )
    return Chosen(chosen.core, precision, chosen.budget, chooser, learn)
