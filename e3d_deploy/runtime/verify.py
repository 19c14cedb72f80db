"""Verification of a backend: its outputs are compared with those of PyTorch, step by step over a whole rollout.

Names and shapes are compared first, then values. PyTorch need not be installed: the bundle's reference clip contains
the outputs that PyTorch computed at the export.
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
from e3d_deploy.policies import EXACT_DIFFERENCE, MAX_ROUNDING, PICTURE_RANGE, ROUNDING, Budget
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.backends.rollout import rollout


@dataclass(frozen=True)
class Report:
    """Result of comparing a backend with the reference backend.

    Every difference is the largest absolute difference over all elements.
    """

    backend: str
    """Name of the backend."""
    yardstick: str
    """Source of the expected values: `torch` if PyTorch ran, `reference.npz` if its recorded outputs were used."""
    precision: str
    """Precision policy of the graphs; it decides which measures the budget limits."""
    context_length: int
    """Number of steps that see true frames; each later step sees the prediction of the step before."""
    steps: int
    """Number of steps in the bundle's rollout, which count for the verdict; later steps are only reported."""
    budget: float
    """Allowed difference of predictions; infinite if the budget limits SSIM and PSNR instead."""
    state_budget: float
    """Allowed difference of final states; infinite unless the policy is `fp32`."""
    dssim_budget: float | None
    """Allowed loss of SSIM; None if the budget does not limit it."""
    dpsnr_budget: float | None
    """Allowed loss of PSNR (dB); None if the budget does not limit it."""
    predictions: list[float]
    """Difference of the prediction at each step of the rollout."""
    states: list[dict[str, float]]
    """Difference of each kind of state at each step; empty if PyTorch did not run."""
    final_states: dict[str, float]
    """Difference of each state tensor after the last step that counts."""
    clip: float
    """Difference of the clip graph's forecast."""
    clip_states: dict[str, float]
    """Difference of each state tensor after the clip graph."""
    rollout: float
    """Difference of the rollout graph's forecast, which starts from the backend's own state after the context."""
    rollout_states: dict[str, float]
    """Difference of each state tensor after the rollout graph."""
    dssim: float | None
    """Loss of SSIM: the SSIM of the expected forecast against the truth, minus that of the backend's forecast.

    It is the mean over the frames of the forecast. The largest loss of the single steps, the clip graph and the rollout
    graph counts. None if the clip has too few true frames after the context, if a side of the frame is shorter than 7
    pixels, or if the loss is not a number.
    """
    dpsnr: float | None
    """Loss of PSNR (dB), defined like `dssim`."""
    unproved: str | None = None
    """Reason why the comparison could not detect a wrong backend, with a remedy; None if it could detect one."""

    @property
    def worst(self) -> float:
        """Largest difference of predictions over steps, clip graph and rollout graph; NaN if one of them is NaN."""
        return float(np.max([self.stepped, self.clip, self.rollout]))

    @property
    def stepped(self) -> float:
        """Largest difference of predictions over the steps that count; NaN if one of them is NaN."""
        return float(np.max(self.predictions[: self.steps]))

    @property
    def worst_state(self) -> tuple[str, float]:
        """Name and difference of the final state with the largest difference; NaN counts as the largest."""
        graphs = {"": self.final_states, "clip ": self.clip_states, "rollout ": self.rollout_states}
        found = [(graph + name, value) for graph, states in graphs.items() for name, value in states.items()]
        return found[int(np.argmax([value for _, value in found]))]

    @property
    def worst_step(self) -> int:
        """Index of the step with the largest difference of the prediction, from 0."""
        return int(np.argmax(self.predictions[: self.steps]))

    @property
    def furthest(self) -> str:
        """Place with the error to examine first, such as `step 3`, `clip graph` or `state cell.0`.

        - The step with the largest difference, if that step or nothing at all is over the budget.
        - Otherwise the clip graph or the rollout graph, if its forecast is over the budget.
        - Otherwise, because only states are over the budget, the state with the largest difference.
        """
        places = {f"step {self.worst_step + 1}": self.stepped, "clip graph": self.clip, "rollout graph": self.rollout}
        # `not <=` and not `>`, so that NaN counts as over the budget.
        over = [name for name, value in places.items() if not value <= min(self.budget, PICTURE_RANGE)]
        name, state = self.worst_state
        if not over and not state <= self.state_budget:
            return f"state {name}"
        return over[0] if over else next(iter(places))

    @property
    def passed(self) -> bool:
        """True if every difference is finite and within its budget, and every loss of quality is within its budget.

        A difference of predictions above the range of a picture fails under any budget. A loss without a budget passes.
        """
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
        """True if the backend passed a comparison that a wrong backend might pass too; see `unproved`."""
        return self.passed and self.unproved is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; NaN becomes null, and `passed` is null if there is no verdict."""
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
    """Compare a backend with PyTorch on the bundle's reference clip, or on another clip.

    Args:
        yardstick: the backend `torch`, opened with the same bundle; None compares with PyTorch's recorded outputs.
        clip: clip to compare on, float32 [T, C, H, W] in [0, 1], T at least the bundle's context; needs `yardstick`.
            None uses the reference clip.
        steps: number of steps to run, to see how the difference grows after the bundle's rollout; needs `yardstick`.
            None runs the steps of the bundle's rollout.

    Raises:
        BundleError: the inputs or outputs of a graph do not match the config and the states, or the reference clip has
            too little contrast or motion to detect errors.
        ShapeError: the clip is too short, or was given without `yardstick`.
        ConfigError: the clip has too little contrast or motion; or `steps` is below the number of steps in the bundle's
            rollout; or `steps` is above that number, and `yardstick` is None.
    """
    check_contract(bundle)
    reference = bundle.reference()
    if clip is None:
        clip = reference["frames"]
    elif yardstick is None:
        raise ShapeError(
            "clip: PyTorch's outputs are recorded only for the reference clip; to compute them for this clip, pass "
            "yardstick= (--against torch)"
        )
    if len(clip) < bundle.context_length:
        raise ShapeError(
            f"clip: has {len(clip)} frames, expected at least the bundle's context of {bundle.context_length}; "
            "give a longer clip"
        )
    _check_telling(bundle, clip, given=clip is not reference["frames"])
    judged = bundle.context_length + bundle.horizon - 1
    steps = judged if steps is None else steps
    if steps < judged or (steps > judged and yardstick is None):
        raise ConfigError(
            f"steps: got {steps}, expected {judged}, the steps of the bundle's rollout, or more with PyTorch to "
            "compare with (yardstick=, --against torch)"
        )
    allowed = recorded_budget(bundle)
    truth = clip[bundle.context_length : bundle.context_length + bundle.horizon]
    if allowed.difference is None and len(truth) < bundle.horizon:
        raise ShapeError(
            f"clip: has {len(clip)} frames, expected at least {bundle.context_length + bundle.horizon}, because "
            f"{bundle.precision} is compared with the true frames after the context; give a longer clip"
        )
    context = np.repeat(clip[None, : bundle.context_length], bundle.batch, axis=0)

    expected, found = [], []  # predictions, each [B, C, H, W]
    states: list[dict[str, float]] = []
    kept: dict[int, Any] = {}  # states by number of steps: after the context, and after the last counted step
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
    """Check that a clip has enough contrast and motion to detect a wrong backend.

    Raises:
        ConfigError: the caller's clip has too little contrast or motion.
        BundleError: the reference clip has too little contrast or motion.
    """
    if lacking := why_unfit_to_verify(clip[: bundle.context_length + bundle.horizon], bundle.context_length):
        if given:
            raise ConfigError(f"clip: {lacking} to tell right predictions from wrong ones; give another clip")
        raise BundleError(
            f"{bundle.path}: its reference clip cannot tell right predictions from wrong ones, because it {lacking}; "
            "give another clip with --clip, or export the model again with another --reference"
        )


def _why_unproved(
    backend: Backend,
    yardstick: Backend | None,
    predictions: Sequence[NDArray[np.float32]],
    budget: float,
    rounding: float,
) -> str | None:
    """Return why a wrong backend could agree with these predictions too, and a remedy; None if none could."""
    if yardstick is not None and backend.name == yardstick.name:
        return f"{backend.name} was compared with itself; give another --backend, or --against reference"
    if not math.isinf(budget) and ROUNDING * rounding > MAX_ROUNDING:
        return (
            f"rounding errors alone change the predictions of PyTorch by {rounding:.1e}, and the range of a picture is "
            f"{PICTURE_RANGE:g}, so the comparison means nothing; export another model, or one trained with a "
            "smaller --learning-rate"
        )
    span = float(np.ptp(np.stack(predictions), axis=0).max())
    if len(predictions) > 1 and span <= min(budget, MIN_STEP):
        return (
            f"the predictions of different steps differ by {span:.1e} at most, so a backend that ignores the frames "
            "would pass too; export a trained model"
        )
    return None


def _most(losses: Iterable[float | None]) -> float | None:
    """Return the largest loss, or None if one of the losses is None."""
    found = list(losses)
    return None if None in found else max(loss for loss in found if loss is not None)


def recorded_budget(bundle: Bundle) -> Budget:
    """Return the budget that was set at the export of a bundle.

    Raises:
        BundleError: the budget has a measure that this version does not know, or an invalid limit.
    """
    try:
        return Budget(**bundle.manifest.precision.budget)
    except TypeError as error:
        raise BundleError(
            f"{bundle.path}: has a budget that this version cannot read ({error}); update e3d_deploy, or export again"
        ) from error


def allowed_differences(bundle: Bundle) -> tuple[float, float]:
    """Return the allowed differences of predictions and of final states; infinite if there is no limit.

    The budget limits the difference of predictions, unless it limits SSIM and PSNR instead. States have a limit only in
    bundles of the policy `fp32`. Both limits are raised for a network whose own rounding errors are large, as
    `policies.ROUNDING` explains.
    """
    budget, rounding = recorded_budget(bundle).difference, bundle.manifest.rounding
    if budget is None:
        return math.inf, math.inf
    exact = max(EXACT_DIFFERENCE, ROUNDING * rounding.states)
    return max(budget, ROUNDING * rounding.predictions), exact if bundle.precision == "fp32" else math.inf


def agrees(bundle: Bundle, backend: Backend, steps: int = 3) -> bool:
    """Return True if a backend agrees with PyTorch's recorded predictions in the first steps of the reference clip.

    The default of three steps keeps the first start of a program short.
    """
    reference = bundle.reference()
    steps = min(steps, bundle.context_length)
    context = np.repeat(reference["frames"][None, :steps], bundle.batch, axis=0)
    budget, _ = allowed_differences(bundle)
    # Without a limit, derive one from the drift that the export measured on clips that include the reference clip.
    if math.isinf(budget):
        budget = min(ROUNDING * _drift(bundle, backend.name), PICTURE_RANGE)
    return all(
        _difference(np.repeat(expected[None], bundle.batch, axis=0), found) <= budget
        for expected, (found, _) in zip(reference["predictions"][:steps], rollout(backend, context, steps), strict=True)
    )


def _drift(bundle: Bundle, backend: str) -> float:
    """Return the difference of predictions that the export measured for the graphs of a backend.

    Raises:
        BundleError: the manifest records no such difference.
    """
    own = bundle.manifest.entry("step", backend)
    drift = bundle.manifest.precision.drift if own is None or own.drift is None else own.drift
    found = (drift or {}).get("difference")
    if found is None:
        raise BundleError(f"{bundle.path}: has no measured drift for {bundle.precision}; export the model again")
    return found


def check_contract(bundle: Bundle) -> None:
    """Check that the inputs and outputs of the step graph are the frame of the config and the states of the manifest.

    Raises:
        BundleError: a tensor is missing or unexpected, or has an unexpected shape or type.
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
                f"{bundle.path}: step {direction}: {name} is {found.get(name)}, expected {expected.get(name)} "
                "from the config and the states; export the model again"
            )


def _difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    if expected.shape != found.shape:
        raise BundleError(
            f"output: got {list(found.shape)}, expected {list(expected.shape)} as from PyTorch; export the model again"
        )
    return float(np.abs(expected.astype(np.float64) - found).max())


def _differences(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    return {name: _difference(value, found[name]) for name, value in expected.items()}


def _by_kind(differences: Mapping[str, float]) -> dict[str, float]:
    """Return the largest difference for each kind of state; the kind is the name up to the dot."""
    kinds: dict[str, float] = {}
    for name, value in differences.items():
        kind = name.split(".")[0]
        kinds[kind] = float(np.maximum(value, kinds.get(kind, 0.0)))
    return kinds


def quality_lost(
    expected: NDArray[np.float32], found: NDArray[np.float32], truth: NDArray[np.float32]
) -> dict[str, float | None]:
    """Return the loss of SSIM and PSNR (dB) against the truth, mean over the frames of a forecast.

    The loss of a frame is the measure of `expected` minus that of `found`, both [T, C, H, W] and clipped to [0, 1]. The
    PSNR of a perfect frame is infinite: the loss is 0 if both frames are perfect, and minus infinity if only the frame
    of `found` is perfect.

    Returns:
        The loss by measure; None for a measure whose mean loss is not a number. Empty if `truth` has fewer frames than
        the forecast, or if a side of the frame is shorter than 7 pixels.
    """
    if len(truth) < len(expected) or min(truth.shape[-2:]) < 7:
        return {}
    losses = {}
    with np.errstate(invalid="ignore"):  # The mean of plus and minus infinity is NaN.
        for name in ("ssim", "psnr"):
            theirs, mine = (metrics.MEASURES[name](one.clip(0, 1), truth) for one in (expected, found))
            lost = np.subtract(theirs, mine, out=np.zeros_like(theirs), where=theirs != mine)
            losses[name] = float(lost.mean())
    return {name: None if np.isnan(loss) else loss for name, loss in losses.items()}
