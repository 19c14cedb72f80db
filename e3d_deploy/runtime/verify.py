"""Is a backend right? Names, then shapes, then values, step by step over a whole rollout.

Needs no PyTorch: where there is none, what it computed is in the bundle's reference clip.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract, metrics
from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.contrast import MIN_STEP, why_unfit_to_verify
from e3d_deploy.errors import BundleError, ConfigError, ShapeError
from e3d_deploy.json_values import json_object
from e3d_deploy.policies import EXACT_DIFFERENCE, MOST_ROUNDING, PICTURE_RANGE, ROUNDING, Budget
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.backends.rollout import rollout


@dataclass(frozen=True)
class Report:
    """Drift of a backend from its yardstick, as largest absolute differences."""

    backend: str
    yardstick: str
    """`torch`, or `reference.npz` where PyTorch was recorded and is not run."""
    precision: str
    """The policy of the graphs, which decides what is judged."""
    context_length: int
    steps: int
    """Number of steps judged, those of the bundle's rollout; later ones only show how the difference grows."""
    budget: float
    """For predictions; infinite where SSIM and PSNR are judged in the place of differences."""
    state_budget: float
    dssim_budget: float | None
    """Allowed loss of SSIM, and in the next field of PSNR (dB); None if not judged."""
    dpsnr_budget: float | None
    predictions: list[float]
    """Per step of the rollout; the first `context_length` saw true frames, the others their own predictions."""
    states: list[dict[str, float]]
    """Per step and kind of state; only where the yardstick is run."""
    final_states: dict[str, float]
    """After the last step, per state tensor."""
    clip: float
    """Largest difference of the clip graph's forecast, which is one call."""
    clip_states: dict[str, float]
    """After the clip graph, per state tensor."""
    rollout: float
    """Largest difference of the rollout graph's forecast, from the backend's own state after the context."""
    rollout_states: dict[str, float]
    """After the rollout graph, per state tensor."""
    dssim: float | None
    """SSIM against the truth: yardstick minus backend, mean over the forecast, of the graph that loses most; None
    without truth, below 7 pixels, or for what is not a number."""
    dpsnr: float | None
    """PSNR against the truth in dB, likewise."""
    unproved: str | None = None
    """Reason why agreement here proves nothing, with its remedy; None if it proves the backend."""

    @property
    def worst(self) -> float:
        """The largest difference of predictions, step by step and by the other graphs; NaN if any is."""
        return float(np.max([self.stepped, self.clip, self.rollout]))

    @property
    def stepped(self) -> float:
        """The largest difference of predictions, step by step; NaN if any is."""
        return float(np.max(self.predictions[: self.steps]))

    @property
    def worst_state(self) -> tuple[str, float]:
        """The final state that is furthest off, and by how much; NaN counts as furthest."""
        graphs = {"": self.final_states, "clip ": self.clip_states, "rollout ": self.rollout_states}
        found = [(graph + name, value) for graph, states in graphs.items() for name, value in states.items()]
        return found[int(np.argmax([value for _, value in found]))]

    @property
    def worst_step(self) -> int:
        """The step whose prediction is furthest off."""
        return int(np.argmax(self.predictions[: self.steps]))

    @property
    def furthest(self) -> str:
        """Place to look at first: the step that is furthest off, else the graph or the state that alone is off."""
        places = {f"step {self.worst_step + 1}": self.stepped, "clip graph": self.clip, "rollout graph": self.rollout}
        over = [name for name, value in places.items() if not value <= min(self.budget, PICTURE_RANGE)]  # NaN is
        name, state = self.worst_state
        if not over and not state <= self.state_budget:
            return f"state {name}"
        return over[0] if over else next(iter(places))

    @property
    def passed(self) -> bool:
        """Within the budgets and the range of a picture, and a number at every step."""
        _, state = self.worst_state
        lost = ((self.dssim, self.dssim_budget), (self.dpsnr, self.dpsnr_budget))
        return bool(
            np.isfinite([self.worst, state, *self.predictions]).all()
            and self.worst <= min(self.budget, PICTURE_RANGE)
            and state <= self.state_budget
            and all(budget is None or (found is not None and found <= budget) for found, budget in lost)
        )

    @property
    def has_no_verdict(self) -> bool:
        """True where the backend agrees, and would if it were wrong; one that is off fails in any case."""
        return self.passed and self.unproved is not None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON knows it, null for what is not a number, and for `passed` where that proves nothing."""
        passed = None if self.has_no_verdict else self.passed
        fields = {**asdict(self), "worst": self.worst, "worst_step": self.worst_step, "passed": passed}
        return json_object(fields)


def verify(
    bundle: Bundle,
    backend: Backend,
    yardstick: Backend | None = None,
    clip: NDArray[np.float32] | None = None,
    *,
    steps: int | None = None,
) -> Report:
    """Compare a backend with PyTorch on the bundle's reference clip, or on another.

    Args:
        yardstick: PyTorch running the same bundle; without it, its recorded answer is what counts.
        clip: float32 [T, C, H, W] in [0, 1], T at least the bundle's context; needs a yardstick.
        steps: go on for so many, to see how the difference grows; needs a yardstick.

    Raises:
        BundleError: a graph whose inputs or outputs are not those of its config, or a reference that tells nothing.
        ShapeError: a clip that is too short, or given without a yardstick.
        ConfigError: a clip without contrast or motion; fewer steps than the bundle's rollout has, or more of them
            without a yardstick.
    """
    check_contract(bundle)
    reference = bundle.reference()
    if clip is None:
        clip = reference["frames"]
    elif yardstick is None:
        raise ShapeError(
            "clip: another clip than the reference needs PyTorch to compare with; give a yardstick (--against torch)"
        )
    if len(clip) < bundle.context_length:
        raise ShapeError(f"clip: has {len(clip)} frames, the bundle's context is {bundle.context_length}")
    _check_telling(bundle, clip, given=clip is not reference["frames"])
    judged = bundle.context_length + bundle.horizon - 1
    steps = judged if steps is None else steps
    if steps < judged or (steps > judged and yardstick is None):
        raise ConfigError(
            f"steps: got {steps}, the bundle's rollout has {judged}; give as many, or more with a yardstick "
            "(--against torch)"
        )
    allowed = recorded_budget(bundle)
    truth = clip[bundle.context_length : bundle.context_length + bundle.horizon]
    if allowed.difference is None and len(truth) < bundle.horizon:
        raise ShapeError(
            f"clip: has {len(clip)} frames; {bundle.precision} is judged by what it loses against the truth, which "
            f"takes {bundle.context_length + bundle.horizon}"
        )
    context = np.repeat(clip[None, : bundle.context_length], bundle.batch, axis=0)

    expected, found = [], []  # predictions, each [B, C, H, W]
    states: list[dict[str, float]] = []
    kept: dict[int, Any] = {}  # the states after the context and after the last step that is judged
    if yardstick is None:
        expected = list(np.repeat(reference["predictions"][:, None], bundle.batch, axis=1))
        for prediction, state in rollout(backend, context, steps):
            found.append(prediction)
            kept |= {len(found): state} if len(found) in (bundle.context_length, judged) else {}
        wanted = {tensor.name: reference[contract.NEXT + tensor.name] for tensor in bundle.states.tensors}
    else:
        both = zip(rollout(yardstick, context, steps), rollout(backend, context, steps), strict=True)
        for (their_prediction, their_state), (prediction, state) in both:
            expected.append(their_prediction)
            found.append(prediction)
            kept |= {len(found): state} if len(found) in (bundle.context_length, judged) else {}
            theirs = yardstick.to_arrays(their_state)
            wanted = theirs if len(found) <= judged else wanted
            states.append(_by_kind(_differences(theirs, backend.to_arrays(state))))
    forecast = np.stack(expected[judged - bundle.horizon : judged], axis=1)  # [B, horizon, C, H, W]
    stepped = np.stack(found[judged - bundle.horizon : judged], axis=1)
    clip_forecast, clip_state = backend.clip(context)
    rolled, rolled_state = backend.rollout(found[bundle.context_length - 1], kept[bundle.context_length])
    lost = [quality_lost(forecast[0], one[0], truth) for one in (stepped, clip_forecast, rolled)]
    budget, state_budget = allowed_differences(bundle)
    return Report(
        backend=backend.name,
        yardstick="reference.npz" if yardstick is None else yardstick.name,
        precision=bundle.precision,
        context_length=bundle.context_length,
        steps=judged,
        budget=budget,
        state_budget=state_budget,
        dssim_budget=allowed.dssim,
        dpsnr_budget=allowed.dpsnr,
        predictions=[_difference(one, other) for one, other in zip(expected, found, strict=True)],
        states=states,
        final_states=_differences(wanted, backend.to_arrays(kept[judged])),
        clip=_difference(forecast, clip_forecast),
        clip_states=_differences(wanted, backend.to_arrays(clip_state)),
        rollout=_difference(forecast, rolled),
        rollout_states=_differences(wanted, backend.to_arrays(rolled_state)),
        dssim=_most(one.get("ssim") for one in lost),
        dpsnr=_most(one.get("psnr") for one in lost),
        unproved=_why_unproved(backend, yardstick, expected[:judged], budget, bundle.manifest.rounding.predictions),
    )


def _check_telling(bundle: Bundle, clip: NDArray[np.float32], *, given: bool) -> None:
    """Raise if every backend would give much the same on a clip."""
    if lacking := why_unfit_to_verify(clip[: bundle.context_length + bundle.horizon], bundle.context_length):
        if given:
            raise ConfigError(f"clip: {lacking} to tell right predictions from wrong ones; give another clip")
        raise BundleError(
            f"{bundle.path}: its reference clip cannot tell right predictions from wrong ones, as it {lacking}; give "
            "--clip with another, or export the model again with another --reference"
        )


def _why_unproved(
    backend: Backend,
    yardstick: Backend | None,
    predictions: Sequence[NDArray[np.float32]],
    budget: float,
    rounding: float,
) -> str | None:
    """Return why agreement with these predictions proves nothing, and what to do; None if it proves something."""
    if yardstick is not None and backend.name == yardstick.name:
        return f"{backend.name} was compared with itself; give another --backend, or --against reference"
    if not math.isinf(budget) and ROUNDING * rounding > MOST_ROUNDING:
        return (
            f"rounding alone moves the predictions of PyTorch by {rounding:.1e}, where the range of a picture is "
            f"{PICTURE_RANGE:g}, so they are no yardstick; export another model, or one trained with a "
            "smaller --learning-rate"
        )
    span = float(np.ptp(np.stack(predictions), axis=0).max())
    if len(predictions) > 1 and span <= min(budget, MIN_STEP):
        return (
            f"the predictions differ by {span:.1e} at most, so a backend that ignores the frames would agree as well; "
            "export a trained model"
        )
    return None


def _most(losses: Iterable[float | None]) -> float | None:
    found = list(losses)
    return None if None in found else max(loss for loss in found if loss is not None)


def recorded_budget(bundle: Bundle) -> Budget:
    """Return the loss that a bundle was exported to keep within.

    Raises:
        BundleError: a budget of measures that this version does not know.
    """
    try:
        return Budget(**bundle.manifest.precision.budget)
    except TypeError as error:
        raise BundleError(
            f"{bundle.path}: its budget is not one of this version ({error}); update e3d_deploy, or export again"
        ) from error


def allowed_differences(bundle: Bundle) -> tuple[float, float]:
    """The differences that a bundle allows, of predictions and of states, infinite where they are not judged;
    `ROUNDING` says why it may be more than its budget.

    A budget is of predictions, as export measures them. States are judged in fp32 alone: by what it stands for.
    """
    budget, rounding = recorded_budget(bundle).difference, bundle.manifest.rounding
    if budget is None:
        return math.inf, math.inf
    exact = max(EXACT_DIFFERENCE, ROUNDING * rounding.states)
    return max(budget, ROUNDING * rounding.predictions), exact if bundle.precision == "fp32" else math.inf


def agrees(bundle: Bundle, backend: Backend, steps: int = 3) -> bool:
    """Return True if a backend agrees with what PyTorch recorded in the first steps; quick enough for every start."""
    reference = bundle.reference()
    steps = min(steps, bundle.context_length)
    context = np.repeat(reference["frames"][None, :steps], bundle.batch, axis=0)
    budget, _ = allowed_differences(bundle)
    if math.isinf(budget):  # then what was measured when it was exported, on this clip among others
        budget = min(ROUNDING * _drift(bundle, backend.name), PICTURE_RANGE)
    return all(
        _difference(np.repeat(expected[None], bundle.batch, axis=0), found) <= budget
        for expected, (found, _) in zip(reference["predictions"][:steps], rollout(backend, context, steps), strict=True)
    )


def _drift(bundle: Bundle, backend: str) -> float:
    """Return the difference that was measured of the graphs of a backend when a bundle was exported.

    Raises:
        BundleError: none was.
    """
    own = bundle.manifest.entry("step", backend)
    drift = bundle.manifest.precision.drift if own is None or own.drift is None else own.drift
    found = (drift or {}).get("difference")
    if found is None:
        raise BundleError(f"{bundle.path}: no drift was measured of {bundle.precision}; export the model again")
    return found


def check_contract(bundle: Bundle) -> None:
    """Compare the tensors that the manifest lists for the step with the frame of its config and its states.

    Raises:
        BundleError: a tensor that is missing, or of another shape or type.
    """
    frame, entry = contract.frame(bundle.config, bundle.batch), bundle.entry("step")
    for direction, listed, first, prefix in (
        ("inputs", entry.inputs, frame.name, ""),
        ("outputs", entry.outputs, contract.PREDICTION, contract.NEXT),
    ):
        found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in listed}
        tensors = {first: frame} | {prefix + state.name: state for state in bundle.states.tensors}
        streams = contract.ANY if bundle.dynamic_batch else bundle.batch
        expected = {name: (tensor.dtype, (streams, *tensor.shape[1:])) for name, tensor in tensors.items()}
        if found != expected:
            name = next(name for name in {**expected, **found} if found.get(name) != expected.get(name))
            raise BundleError(
                f"{bundle.path}: step {direction}: {name} is {found.get(name)}, its config and states stand for "
                f"{expected.get(name)}; export the model again"
            )


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


def quality_lost(
    expected: NDArray[np.float32], found: NDArray[np.float32], truth: NDArray[np.float32]
) -> dict[str, float | None]:
    """Return the SSIM and PSNR (dB) lost against the truth, mean over frames [T, C, H, W] clipped to [0, 1].

    A loss is expected minus found. PSNR is infinite for a perfect frame: nothing is lost where both are, and minus
    infinity where only the found is.
    """
    if len(truth) < len(expected) or min(truth.shape[-2:]) < 7:
        return {}
    losses = {}
    with np.errstate(invalid="ignore"):  # of both infinities there is no mean
        for name in ("ssim", "psnr"):
            theirs, mine = (metrics.MEASURES[name](one.clip(0, 1), truth) for one in (expected, found))
            lost = np.subtract(theirs, mine, out=np.zeros_like(theirs), where=theirs != mine)
            losses[name] = float(lost.mean())
    return {name: None if np.isnan(loss) else loss for name, loss in losses.items()}
