"""Is a backend right? Names, then shapes, then values, step by step over a whole rollout.

Needs no PyTorch: where there is none, what it computed is in the bundle's reference clip.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract, metrics
from e3d_deploy.errors import BundleError, ShapeError
from e3d_deploy.runtime.backend import Backend
from e3d_deploy.runtime.bundle import Bundle

BUDGET = {"fp32": 1e-4}
"""Largest absolute difference from PyTorch float32, of predictions and of final states, by precision."""
ROUNDING = 4
"""A network that amplifies rounding errors is given this many times what PyTorch's own float32 loses against
float64 on the reference clip, where that is more than the budget: no backend is closer to PyTorch than PyTorch
to the truth. The full-size network with random weights needs it; docs/model.md has the numbers."""


@dataclass(frozen=True)
class Report:
    """How far a backend drifts from its yardstick, as largest absolute differences."""

    backend: str
    yardstick: str
    """`torch`, or `reference.npz` where PyTorch was recorded and is not run."""
    context_length: int
    budget: float
    """For predictions."""
    state_budget: float
    predictions: list[float]
    """Per step of the rollout; the first `context_length` saw true frames, the others their own predictions."""
    states: list[dict[str, float]]
    """Per step and kind of state; only where the yardstick is run."""
    final_states: dict[str, float]
    """After the last step, per state tensor."""
    clip: float
    """Of the clip graph's forecast, which is one call."""
    clip_states: dict[str, float]
    """After the clip graph, per state tensor."""
    rollout: float
    """Of the rollout graph's forecast, from the backend's own state after the context."""
    rollout_states: dict[str, float]
    """After the rollout graph, per state tensor."""
    dssim: float | None
    """SSIM against the truth: yardstick minus backend, mean over the forecast; None without truth or below 7 pixels."""
    dpsnr: float | None
    """PSNR against the truth in dB: yardstick minus backend, mean over the forecast."""

    @property
    def worst(self) -> float:
        """The largest difference of predictions, step by step and by the other graphs; NaN if any is."""
        return float(np.max([*self.predictions, self.clip, self.rollout]))

    @property
    def worst_state(self) -> tuple[str, float]:
        """The final state that is furthest off, and by how much; NaN counts as furthest."""
        graphs = {"": self.final_states, "clip ": self.clip_states, "rollout ": self.rollout_states}
        found = [(graph + name, value) for graph, states in graphs.items() for name, value in states.items()]
        return found[int(np.argmax([value for _, value in found]))]

    @property
    def worst_step(self) -> int:
        """The step whose prediction is furthest off."""
        return int(np.argmax(self.predictions))

    @property
    def passed(self) -> bool:
        """Within the budgets; what is not a number is not."""
        return bool(self.worst <= self.budget and self.worst_state[1] <= self.state_budget)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON knows it, null for what is not a number."""
        fields = {**asdict(self), "worst": self.worst, "worst_step": self.worst_step, "passed": self.passed}
        result: dict[str, Any] = _finite_or_none(fields)
        return result


def verify(
    bundle: Bundle, backend: Backend, yardstick: Backend | None = None, clip: NDArray[np.float32] | None = None
) -> Report:
    """Compare a backend with PyTorch on the bundle's reference clip, or on another.

    Args:
        yardstick: PyTorch running the same bundle; without it, its recorded answer is what counts.
        clip: float32 [T, C, H, W] in [0, 1], T at least the bundle's context; needs a yardstick.

    Raises:
        BundleError: a graph whose inputs or outputs are not those of its config.
        ShapeError: a clip that is too short, or given without a yardstick.
    """
    check_contract(bundle)
    reference = bundle.reference()
    if clip is None:
        clip = reference["frames"]
    elif yardstick is None:
        raise ShapeError(
            "clip: another clip than the reference needs PyTorch to compare with; install e3d_deploy[train]"
        )
    if len(clip) < bundle.context_length:
        raise ShapeError(f"clip: has {len(clip)} frames, the bundle's context is {bundle.context_length}")
    steps = bundle.context_length + bundle.horizon - 1
    context = np.repeat(clip[None, : bundle.context_length], bundle.batch, axis=0)

    expected, found = [], []  # predictions, each [B, C, H, W]
    states: list[dict[str, float]] = []
    state: Any = None
    seen: Any = None  # the state after the context
    if yardstick is None:
        expected = list(np.repeat(reference["predictions"][:, None], bundle.batch, axis=1))
        for prediction, state in _rollout(backend, context, steps):
            found.append(prediction)
            seen = state if len(found) == bundle.context_length else seen
        wanted = {tensor.name: reference[contract.NEXT + tensor.name] for tensor in contract.states(bundle.config)}
    else:
        both = zip(_rollout(yardstick, context, steps), _rollout(backend, context, steps), strict=True)
        for (their_prediction, their_state), (prediction, state) in both:
            expected.append(their_prediction)
            found.append(prediction)
            seen = state if len(found) == bundle.context_length else seen
            wanted = yardstick.to_arrays(their_state)
            states.append(_by_kind(_differences(wanted, backend.to_arrays(state))))
    forecast = np.stack(expected[-bundle.horizon :], axis=1)  # [B, horizon, C, H, W]
    clip_forecast, clip_state = backend.clip(context)
    rolled, rolled_state = backend.rollout(found[bundle.context_length - 1], seen)
    truth = clip[bundle.context_length : bundle.context_length + bundle.horizon]
    quality = _quality(forecast[0], np.stack(found[-bundle.horizon :], axis=1)[0], truth)
    budget, state_budget = budgets(bundle)
    return Report(
        backend=backend.name,
        yardstick="reference.npz" if yardstick is None else yardstick.name,
        context_length=bundle.context_length,
        budget=budget,
        state_budget=state_budget,
        predictions=[_difference(one, other) for one, other in zip(expected, found, strict=True)],
        states=states,
        final_states=_differences(wanted, backend.to_arrays(state)),
        clip=_difference(forecast, clip_forecast),
        clip_states=_differences(wanted, backend.to_arrays(clip_state)),
        rollout=_difference(forecast, rolled),
        rollout_states=_differences(wanted, backend.to_arrays(rolled_state)),
        dssim=quality.get("ssim"),
        dpsnr=quality.get("psnr"),
    )


def budgets(bundle: Bundle) -> tuple[float, float]:
    """What a bundle allows, for predictions and for states; `ROUNDING` says why it may be more than `BUDGET`."""
    budget, rounding = BUDGET[bundle.manifest["graphs"]["step"]["precision"]], bundle.manifest["rounding"]
    return max(budget, ROUNDING * rounding["predictions"]), max(budget, ROUNDING * rounding["states"])


def agrees(bundle: Bundle, backend: Backend, steps: int = 3) -> bool:
    """Whether a backend gives what PyTorch recorded in the first steps; quick enough for every start."""
    reference = bundle.reference()
    steps = min(steps, bundle.context_length)
    context = np.repeat(reference["frames"][None, :steps], bundle.batch, axis=0)
    budget, _ = budgets(bundle)
    return all(
        _difference(np.repeat(expected[None], bundle.batch, axis=0), found) <= budget
        for expected, (found, _) in zip(reference["predictions"], _rollout(backend, context, steps), strict=False)
    )


def check_contract(bundle: Bundle) -> None:
    """Compare the tensors that the manifest lists with those that its config stands for.

    Raises:
        BundleError: a tensor that is missing, or of another shape or type.
    """
    states = contract.states(bundle.config, bundle.batch)
    frame = contract.frame(bundle.config, bundle.batch)
    entry = bundle.manifest["graphs"]["step"]
    for direction, first, prefix in (("inputs", frame.name, ""), ("outputs", contract.PREDICTION, contract.NEXT)):
        found = {tensor["name"]: (tensor["dtype"], tuple(tensor["shape"])) for tensor in entry[direction]}
        tensors = {first: frame} | {prefix + state.name: state for state in states}
        streams = contract.ANY if bundle.dynamic_batch else bundle.batch
        expected = {name: (tensor.dtype, (streams, *tensor.shape[1:])) for name, tensor in tensors.items()}
        if found != expected:
            name = next(name for name in {**expected, **found} if found.get(name) != expected.get(name))
            raise BundleError(
                f"{bundle.path}: step {direction}: {name} is {found.get(name)}, its config stands for "
                f"{expected.get(name)}; export the model again"
            )


def _rollout(backend: Backend, context: NDArray[np.float32], steps: int) -> Iterator[tuple[NDArray[np.float32], Any]]:
    """The prediction and state after each step: first the context, then the backend's own predictions."""
    state = backend.initial_state()
    prediction = context[:, 0]
    for t in range(steps):
        frame = np.ascontiguousarray(context[:, t]) if t < context.shape[1] else prediction
        prediction, state = backend.step(frame, state)
        yield prediction, state


def _difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    if expected.shape != found.shape:
        raise BundleError(f"got {list(found.shape)} where PyTorch gives {list(expected.shape)}; export the model again")
    return float(np.abs(expected.astype(np.float64) - found).max())


def _differences(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    return {name: _difference(value, found[name]) for name, value in expected.items()}


def _by_kind(differences: Mapping[str, float]) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for name, value in differences.items():
        kind = name.split(".")[0]
        kinds[kind] = float(np.maximum(value, kinds.get(kind, 0.0)))
    return kinds


def _quality(
    expected: NDArray[np.float32], found: NDArray[np.float32], truth: NDArray[np.float32]
) -> dict[str, float | None]:
    """What is lost against the truth: expected minus found, mean over frames [T, C, H, W], clipped to [0, 1]."""
    if len(truth) < len(expected) or min(truth.shape[-2:]) < 7:
        return {}
    losses = {}
    with np.errstate(invalid="ignore"):  # both may be perfect: infinite PSNR
        for name in ("ssim", "psnr"):
            measure = metrics.MEASURES[name]
            losses[name] = float((measure(expected.clip(0, 1), truth) - measure(found.clip(0, 1), truth)).mean())
    return {name: loss if np.isfinite(loss) else None for name, loss in losses.items()}


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite_or_none(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite_or_none(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
