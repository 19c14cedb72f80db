"""Tour of the package: export, verify, forecast, stream and time trained models, and write a report."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import frames, plots, runtime
from e3d_deploy.bundle.folder import record_verification
from e3d_deploy.data.clips import Clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.write import write_clips
from e3d_deploy.demo.exhibits import CONTEXT, DIGITS, FILM, HORIZON, Exhibit, check
from e3d_deploy.demo.report import Section, Stage, write_report
from e3d_deploy.errors import BackendUnavailable, ConfigError
from e3d_deploy.evaluation.samples import framed
from e3d_deploy.export.bundle import export
from e3d_deploy.export.engines.build import build
from e3d_deploy.frames import Frames
from e3d_deploy.live.follower import Follower
from e3d_deploy.live.observation import side_by_side
from e3d_deploy.measure import plots as measured
from e3d_deploy.measure.benchmark import benchmark
from e3d_deploy.measure.results import BenchmarkResult
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime import Bundle, Predictor
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.specs import RECOMMENDED, REFERENCE_BACKEND
from e3d_deploy.runtime.verify import Report, verify
from e3d_deploy.shipped import extracted

SHIPPED = (DIGITS, FILM)
LOOK_AHEAD = 5
"""Horizon of the forecasts of the streamed videos (frames)."""
GIF_WIDTH, LEVELS = 800, 32
"""Maximum width to which animations are enlarged (pixels), and their number of gray levels; 256 levels would double the
size of the files."""


@dataclass(frozen=True)
class Result:
    """Results of the tour, and the files written."""

    stages: list[Stage]
    drifting: list[str]
    """Names of the bundles whose drift exceeds their budget."""
    benchmark: BenchmarkResult
    report: Path
    gifs: list[Path]
    live: tuple[Path, Path] | None
    """Bundle and video file for `e3d serve`; None if no exhibit has a video file."""


class _Log:
    """Timer of the stages."""

    def __init__(self, progress: Notify) -> None:
        self.stages: list[Stage] = []
        self.progress = progress

    def __call__(self, name: str, work: Callable[[], tuple[Any, str]]) -> Any:
        self.progress(name)
        started = time.monotonic()
        value, words = work()
        self.stages.append(Stage(name, time.monotonic() - started, words))
        return value


def tour(output: Path, exhibits: Sequence[Exhibit] = SHIPPED, *, progress: Notify = silent) -> Result:
    """Export, verify and run each model, time the first model, and write all results into `output`.

    Existing files of the same names are replaced.

    Raises:
        ConfigError: `output` is a file.
        CheckpointError: A model or its JSON file is damaged or missing; installed packages lack the full-size model.
    """
    for exhibit in exhibits:
        check(exhibit)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: is a file; give a folder, which is created if it does not exist")
    output.mkdir(parents=True, exist_ok=True)
    log = _Log(progress)
    shown = [_show(exhibit, output, log) for exhibit in exhibits]
    bundles, reports, sections = zip(*shown, strict=True)
    speed: BenchmarkResult = log(f"{exhibits[0].name}: benchmark", lambda: _measure(bundles[0]))
    sections[0].pictures["Time of a step"] = measured.latency(speed)
    drifting = [bundle.path.name for bundle, report in zip(bundles, reports, strict=True) if not report.passed]
    path = write_report(output / "report.html", log.stages, sections, speed.environment, passed=not drifting)
    films = ((bundle, _copied(exhibit, output)) for exhibit, bundle in zip(exhibits, bundles, strict=True))
    live = next(((bundle.path, film) for bundle, film in films if film is not None), None)
    return Result(log.stages, drifting, speed, path, [section.gif for section in sections], live)


def _copied(exhibit: Exhibit, output: Path) -> Path | None:
    """Copy the video file of an exhibit to `output`, so that it has a short path; return the copy."""
    if exhibit.film is None:
        return None
    copy = output / exhibit.film.name
    copy.write_bytes(exhibit.film.read_bytes())
    return copy


def _show(exhibit: Exhibit, output: Path, log: _Log) -> tuple[Bundle, Report, Section]:
    def stage(name: str, work: Callable[[], tuple[Any, str]]) -> Any:
        return log(f"{exhibit.name}: {name}", work)

    bundle: Bundle = stage("export", lambda: _export(exhibit, output / f"{exhibit.name}.e3d"))
    if exhibit.engines:
        stage("build engines", lambda: _build(bundle, log.progress))
    with runtime.load(bundle.path, RECOMMENDED) as predictor:
        form = Form.of(predictor.config, predictor.card)
        report: Report = stage("verify", lambda: _verify(bundle, predictor))
        examples = stage("forecast test clips", lambda: _forecast(predictor, exhibit.examples(form)))
        video = exhibit.video(form)
        came, forecast = stage("stream", lambda: _stream(predictor, video, output / f"{exhibit.name}.mp4"))
    gif = output / f"{exhibit.name}.gif"
    animation = _animation(examples)
    write_clips(gif, animation[None], frames_per_second=6, zoom=max(1, GIF_WIDTH // animation.shape[-1]))
    strips = {"truth": came[LOOK_AHEAD:], "forecast": forecast[LOOK_AHEAD:]}
    pictures = {
        "Drift from PyTorch over the rollout": measured.drift(report),
        "Truth and forecast of a test clip": plots.strips(_rows(examples[0])),
        "Truth and forecast of another test clip": plots.strips(_rows(examples[1])),
        f"Frames of a stream, and their forecasts made {LOOK_AHEAD} frames earlier": plots.strips(
            strips, every=max(1, len(strips["truth"]) // 12)
        ),
    }
    return bundle, report, Section(exhibit, gif, pictures)


def _export(exhibit: Exhibit, path: Path) -> tuple[Bundle, str]:
    with extracted(exhibit.model) as model:
        bundle = Bundle.open(export(model, path, context_length=CONTEXT, horizon=HORIZON, overwrite=True))
    graphs = bundle.manifest.graphs
    return (
        bundle,
        f"{len(graphs)} graphs of {min(one.nodes for one in graphs)} to {max(one.nodes for one in graphs)} nodes",
    )


def _build(bundle: Bundle, progress: Notify) -> tuple[None, str]:
    try:
        sidecars = build(bundle, "tensorrt-rtx", progress=lambda phase: progress(f"build engines: {phase}"))
    except BackendUnavailable as error:
        return None, f"skipped: {error}"
    built = ", ".join(f"{name} {one.bytes / 1e6:.1f} MB" for name, one in sidecars.items())
    return None, f"TensorRT-RTX {next(iter(sidecars.values())).builder}: {built}; built but not run"


def _verify(bundle: Bundle, predictor: Predictor) -> tuple[Report, str]:
    with open_backend(bundle, REFERENCE_BACKEND) as yardstick:
        report = verify(bundle, predictor.backend, yardstick)
    record_verification(bundle, report.to_dict())
    return report, f"largest difference from PyTorch {report.worst:.1e}, budget {report.budget:.0e}"


def _forecast(predictor: Predictor, clips: Sequence[NDArray[Any]]) -> tuple[list[tuple[Frames, Frames]], str]:
    """Return the truth, [CONTEXT + HORIZON, C, H, W], and the forecast, [HORIZON, C, H, W], for each clip."""
    config, pairs = predictor.config, []
    for clip in clips:
        stream = predictor.stream(renewal="none")
        for picture in clip[:CONTEXT]:
            stream.push(picture)
        truth = frames.to_frames(clip, image_size=config.image_size, channels=config.channels)
        pairs.append((truth, stream.forecast(HORIZON).clip(0, 1)))
    return pairs, f"{len(pairs)} clips, each {CONTEXT} frames of context and {HORIZON} of forecast"


def _stream(predictor: Predictor, video: Clips, path: Path) -> tuple[tuple[Frames, Frames], str]:
    """Follow a video; return its frames and the earlier forecasts of the same frames, both [T, C, H, W].

    Frames without a forecast are black.
    """
    stream, config = predictor.stream(), predictor.config
    follower = Follower(stream, config, horizon=LOOK_AHEAD, renewal=predictor.renewal(stream.renewal))
    started = time.perf_counter()
    followed = [follower.follow(picture) for picture in video.frames[0]]
    rate = len(followed) / (time.perf_counter() - started)
    compared = np.stack([side_by_side(one) for one in followed])
    write_clips(path, compared[None], frames_per_second=video.frames_per_second, zoom=4)
    seen, forecast = np.split(compared, 2, axis=-1)
    mse = np.mean([one.errors[-1] for one in followed[LOOK_AHEAD:]])
    copy_mse = np.mean([one.copy_errors[-1] for one in followed[LOOK_AHEAD:]])
    return (seen, forecast), (
        f"{len(followed)} frames at {rate:.0f} frames/s, horizon {LOOK_AHEAD}, renewal {stream.renewal}; "
        f"MSE {mse:.0f} per frame, copy last {copy_mse:.0f}"
    )


def _measure(bundle: Bundle) -> tuple[BenchmarkResult, str]:
    with ExitStack() as stack:
        names = (REFERENCE_BACKEND, RECOMMENDED)
        backends = [stack.enter_context(open_backend(bundle, name, threads=1)) for name in names]
        result = benchmark(bundle, backends, threads=1)
    last = result.rows[-1]
    return result, f"{last.backend} {last.timing.median_ms:.2f} ms per step, {last.speedup:.2f}× PyTorch eager"


def _rows(example: tuple[Frames, Frames]) -> dict[str, Frames]:
    truth, forecast = example
    return {"context": truth[:CONTEXT], "truth": truth[CONTEXT:], "forecast": forecast}


def _animation(examples: Sequence[tuple[Frames, Frames]]) -> Frames:
    """Draw pairs of truth and forecast side by side as one clip, [T, C, H, W].

    The top row shows the truth. The bottom row shows the context, followed by the forecast in a bright border.
    """
    columns = []
    for truth, forecast in examples:
        below = np.concatenate([truth[:CONTEXT], forecast])
        columns.append(np.concatenate([framed(truth, 0.25), framed(below, 0.25, bright_from=CONTEXT)], axis=-2))
    whole = np.concatenate(columns, axis=-1)
    reduced: Frames = np.rint(whole * (LEVELS - 1)) / np.float32(LEVELS - 1)
    return reduced
