"""Drift of a graph from PyTorch float32 over whole rollouts on real clips, measured before a bundle is written."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from e3d_deploy import frames
from e3d_deploy.contrast import why_unfit_to_calibrate
from e3d_deploy.data.clips import PEDESTRIANS, read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.moving_mnist import load_digits, moving_mnist, suits
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.errors import BackendUnavailable, ConfigError, ShapeError
from e3d_deploy.model import E3DLSTM
from e3d_deploy.policies import PICTURE_RANGE, Budget
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.backends.emulated import Steps, emulated, session
from e3d_deploy.runtime.backends.rollout import rollout
from e3d_deploy.runtime.backends.specs import find
from e3d_deploy.runtime.backends.torch_eager import TorchBackend
from e3d_deploy.runtime.verify import quality_lost
from e3d_deploy.shipped import extracted
from e3d_deploy.turns import block, in_turn

log = logging.getLogger(__name__)

Clip = NDArray[np.float32]
"""Frames of one clip, [T, C, H, W] in [0, 1]."""
MAX_WINDOWS = 16
"""Maximum number of windows taken from one source."""
SEED = 5


@dataclass(frozen=True)
class RealClips:
    """Clips as long as a rollout, for calibration and for measuring the drift."""

    source: str
    """Origin of the calibration clips."""
    measured: str
    """Origin of the clips that the drift is measured on, except the reference clip."""
    calibrate: list[Clip]
    measure: list[Clip]

    def describe_calibration(self) -> dict[str, Any]:
        """Return the source, number, frames and hash of the calibration clips, for the manifest."""
        return _described(self.source, self.calibrate)

    def describe_measured(self) -> dict[str, Any]:
        """Return the source, number, frames and hash of the clips that the drift is measured on, for the manifest."""
        return _described(self.measured, self.measure)


def _described(source: str, clips: Sequence[Clip]) -> dict[str, Any]:
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(clip).tobytes() for clip in clips)).hexdigest()
    return {"source": source, "clips": len(clips), "frames": sum(map(len, clips)), "sha256": digest}


def real_clips(form: Form, context_length: int, source: Path | None, reference: Clip) -> RealClips:
    """Cut clips into windows as long as the reference clip, for calibration and for measuring the drift.

    Every second window is used for calibration; the drift is measured on the other windows and on the reference clip.
    If `source` has only one window, the window is used for both. Without a source, the windows come from the package's
    video and, if it fits the frames, from Moving MNIST. With a source, the drift is also measured on one clip of each
    of these two. A poor choice of calibration clips would not show if the drift were measured only on similar clips.

    Raises:
        ClipError, ShapeError, ConfigError: `source` cannot be used, its clips are too short, or they have too little
            contrast or too few distinct frames.
        BackendUnavailable: the clips are a video and the extra `video` is not installed.
    """
    length = len(reference)
    if source is not None:
        windows = _windows(form, length, source, Remarks())
        if lacking := why_unfit_to_calibrate(windows[::2], context_length):
            raise ConfigError(
                f"calibration: {source} {lacking}, so that other clips stay within the ranges; give clips that "
                "resemble the intended input of the model, or omit --calibration to learn from the clips of the package"
            )
        own, name = _own(form, length)
        measured = f"{source.name}, {name}" if own else source.name
        return RealClips(source.name, measured, windows[::2], [reference, *(windows[1::2] or windows), *own])
    with extracted(PEDESTRIANS) as path:
        windows = _windows(form, length, path, Remarks(silent=True))
    calibrate, measure, name = windows[0:4:2], windows[1:4:2], PEDESTRIANS.name
    if suits(form.image_size, form.channels):
        calibrate += _moving_mnist(form.image_size, length, "train", 4)
        measure += _moving_mnist(form.image_size, length, "test", 2)
        name = f"Moving MNIST, {name}"
    return RealClips(name, name, calibrate, [reference, *measure])


def _own(form: Form, length: int) -> tuple[list[Clip], str]:
    """Return a clip of the package's video and, if it fits the frames, one of Moving MNIST; and the names of both."""
    clips: dict[str, Clip] = {}
    if suits(form.image_size, form.channels):
        clips["Moving MNIST"] = _moving_mnist(form.image_size, length, "test", 1)[0]
    try:
        with extracted(PEDESTRIANS) as path:
            clips[PEDESTRIANS.name] = _windows(form, length, path, Remarks(silent=True))[0]
    except (BackendUnavailable, ConfigError, ShapeError) as error:
        log.warning("the drift is not measured on the video of the package (%s)", error)
    return list(clips.values()), ", ".join(clips)


def _windows(form: Form, length: int, source: Path, remarks: Remarks) -> list[Clip]:
    """Return at most `MAX_WINDOWS` windows of a source, about the same number from each of its clips."""
    size: dict[str, Any] = {"image_size": form.image_size, "channels": form.channels}
    frames_needed = MAX_WINDOWS * length
    clips = read_clips(source, form, most=frames_needed, least=length, count=MAX_WINDOWS, remarks=remarks).clips
    places = [(t, number) for number, clip in enumerate(clips) for t in range(0, len(clip) - length + 1, length)]
    most = -(-MAX_WINDOWS // len(clips)) * length
    chosen = sorted([(number, t) for t, number in places if t < most])[:MAX_WINDOWS]
    return [frames.to_frames(clips[number][t : t + length], name=str(source), **size) for number, t in chosen]


def _moving_mnist(size: tuple[int, int], length: int, split: Any, count: int) -> list[Clip]:
    digits = load_digits(split)
    clips = (
        moving_mnist(digits, np.random.default_rng((SEED, index)), length=length, image_size=size)
        for index in range(count)
    )
    return [frames.to_frames(clip, image_size=size, channels=1) for clip in clips]


@dataclass(frozen=True)
class Drift:
    """Drift of predictions from those of PyTorch float32; each field is the maximum over the clips."""

    difference: float
    """Largest absolute difference of predictions at any step."""
    dssim: float
    """SSIM of PyTorch's forecast and the truth, minus SSIM of the graph's forecast and the truth; or NaN."""
    dpsnr: float
    """Loss of PSNR, defined like the loss of SSIM (dB). Both are NaN if a side of the frame is below 7 pixels."""

    def share_of(self, budget: Budget) -> float:
        """Return the share of a budget that the drift uses; 1 is the whole budget.

        The share is infinite in three cases: a measure that the budget limits is NaN or positive infinity; or its limit
        is 0 and the measure is larger; or predictions differ by more than the range of a picture, whatever the budget
        limits. SSIM is undefined for frames with a side below 7 pixels; an unknown loss counts only if the budget
        limits it.
        """
        found, allowed = asdict(self), budget.to_dict()
        if not self.difference <= PICTURE_RANGE or np.isnan([found[name] for name in allowed]).any():
            return float("inf")
        return max(_share(found[name], most) for name, most in allowed.items())


def _share(found: float, allowed: float) -> float:
    if found <= allowed:
        return max(0.0, found / allowed) if allowed else 0.0
    return found / allowed if allowed else float("inf")


class GraphComparison:
    """Comparison of graphs with PyTorch's rollouts on the same clips; PyTorch's rollouts run in the constructor."""

    def __init__(
        self,
        model: E3DLSTM,
        clips: Sequence[Clip],
        *,
        batch: int | None,
        context_length: int,
        threads: int | None = None,
        progress: Notify = silent,
    ) -> None:
        self.config, self.batch, self.context_length = model.config, batch or 1, context_length
        self.clips, self.threads = clips, threads
        backend = TorchBackend(model, threads=threads)
        self.expected: list[Clip] = []
        for number, clip in enumerate(clips, 1):
            progress(f"PyTorch on clip {number} of {len(clips)}")
            steps = rollout(backend, clip[None, :context_length], len(clip) - 1)
            self.expected.append(np.concatenate([prediction for prediction, _ in steps]))

    def drift(self, graph: ModelProto, policy: str) -> Drift:
        """Measure the drift of a step graph; its types are emulated, so the result is the same on every machine."""
        return self._drift(self._emulated(graph, policy))

    def hinted_drift(self, graph: ModelProto, policy: str) -> Drift:
        """Measure the drift of a float32 step graph that OpenVINO is told to compute in the type of a policy.

        OpenVINO runs the graph if it is installed and the processor supports the type, because no emulation rounds
        exactly like it. Otherwise the graph is emulated, and the result is an estimate.
        """
        try:
            from e3d_deploy.export.precision.hinted import HintedSteps

            steps: Steps = HintedSteps(graph, self.config, self.batch, threads=self.threads)
        except (ImportError, BackendUnavailable):
            steps = self._emulated(graph, policy, hinted=True)
        return self._drift(steps)

    def distance(self, graph: ModelProto, policy: str) -> float:
        """Return the root mean square difference of the predictions for the first clip, which ranks layers."""
        ((_, mine, theirs),) = self._pairs(self._emulated(graph, policy), self.clips[:1])
        return float(np.sqrt(np.square(mine - theirs).mean()))

    def _emulated(self, graph: ModelProto, policy: str, *, hinted: bool = False) -> Steps:
        running = session(emulated(graph, policy, hinted=hinted), threads=self.threads)
        return Steps(running, self.config, self.batch)

    def _drift(self, steps: Steps) -> Drift:
        found = [self._against(clip, mine, theirs) for clip, mine, theirs in self._pairs(steps, self.clips)]
        return Drift(*(float(np.max(column)) for column in zip(*found, strict=True)))

    def _pairs(self, steps: Steps, clips: Sequence[Clip]) -> Iterable[tuple[Clip, Clip, Clip]]:
        for clip, expected in zip(clips, self.expected, strict=False):
            predictions = [found[:1] for found in steps.predictions(clip, self.context_length)]
            yield clip, np.concatenate(predictions), expected

    def _against(self, clip: Clip, mine: Clip, theirs: Clip) -> tuple[float, float, float]:
        truth, seen = clip[self.context_length :], self.context_length - 1
        lost = quality_lost(theirs[seen:], mine[seen:], truth)
        dssim, dpsnr = (np.nan if lost.get(name) is None else lost[name] for name in ("ssim", "psnr"))
        return float(np.abs(theirs - mine).max()), float(dssim or 0.0), float(dpsnr or 0.0)

    def step_ms(self, graphs: Mapping[str, ModelProto], *, rounds: int = 5, steps: int = 3) -> dict[str, float]:
        """Return the median time of a step for each policy that ONNX Runtime runs, measured in turn (ms)."""
        running = {
            policy: Steps(session(graph, threads=self.threads, integers=True), self.config, self.batch)
            for policy, graph in graphs.items()
            if policy in find("onnxruntime").policies
        }
        frame = self.clips[0][:1].repeat(self.batch, axis=0)

        def measure(one: Steps, _: int) -> list[float]:
            state = one.initial_state()

            def step() -> None:
                nonlocal state
                _, state = one.step(frame, state)

            return block(step, fewest=steps)

        blocks = in_turn([partial(measure, one) for one in running.values()], rounds + 1)  # the first round warms up
        return {
            policy: 1000 * float(np.median(np.concatenate(times[1:])))
            for policy, times in zip(running, blocks, strict=True)
        }
