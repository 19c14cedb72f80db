"""The whole path on a trained model, the one that ships with the package or the full-size one, and a report of it."""

import json
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np

from e3d_deploy import checkpoint, frames, plots, runtime
from e3d_deploy.bundle.folder import record_verification
from e3d_deploy.data.clips import PEDESTRIANS, Clips, read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.moving_mnist import load_digits, moving_mnist
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.data.write import write_clips
from e3d_deploy.errors import BackendUnavailable, CheckpointError
from e3d_deploy.evaluation.samples import framed
from e3d_deploy.export.bundle import export
from e3d_deploy.export.engines.build import build
from e3d_deploy.frames import Frames
from e3d_deploy.measure import plots as measured
from e3d_deploy.measure.benchmark import benchmark
from e3d_deploy.measure.live import follow
from e3d_deploy.measure.results import BenchmarkResult
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime import Bundle, Predictor
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.specs import RECOMMENDED, YARDSTICK
from e3d_deploy.runtime.verify import Report, verify
from e3d_deploy.shipped import extracted

HERE = files("e3d_deploy.demo")
MODEL, CARD = HERE / "moving_mnist.safetensors", HERE / "moving_mnist.json"
MODELS = Path(__file__).parents[2] / "models"
"""Folder of a checkout with models that are too large for the package."""
CONTEXT, HORIZON = 10, 10
LOOK_AHEAD = 5
"""Frames that the streamed videos are forecast ahead."""


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A trained model that the tour shows."""

    model: Traversable
    card: Traversable
    """Its learning curve and its quality per predicted frame (JSON)."""
    measured_by: str
    """Command that measured the quality."""
    small: bool
    """It has learned from film too, and is fast enough to forecast one and to build engines of it meanwhile."""


DEMO = Exhibit(model=MODEL, card=CARD, measured_by="python -m benchmarks.demo_quality", small=True)
FULL = Exhibit(
    model=MODELS / "moving_mnist_64x4.safetensors",
    card=MODELS / "moving_mnist_64x4.json",
    measured_by="e3d evaluate",
    small=False,
)


@dataclass(frozen=True)
class Stage:
    """One thing that the tour did."""

    name: str
    seconds: float
    result: str


@dataclass(frozen=True)
class Result:
    """Results of the tour, and the files it wrote."""

    stages: list[Stage]
    verification: Report
    benchmark: BenchmarkResult
    report: Path
    gif: Path

    @property
    def passed(self) -> bool:
        return self.verification.passed


class _Log:
    """Times the stages."""

    def __init__(self, progress: Notify) -> None:
        self.stages: list[Stage] = []
        self.progress = progress

    def __call__(self, name: str, work: Callable[[], tuple[Any, str]]) -> Any:
        self.progress(name)
        started = time.monotonic()
        value, words = work()
        self.stages.append(Stage(name, time.monotonic() - started, words))
        return value


def tour(output: Path, exhibit: Exhibit = DEMO, *, progress: Notify = silent) -> Result:
    """Export a model, verify, forecast, benchmark; write all of it into `output`, replacing an earlier tour.

    Of a small model engines are built and a film is forecast too.

    Raises:
        CheckpointError: the model is not there, as in an installed package the full-size one.
    """
    check_present(exhibit)
    output.mkdir(parents=True, exist_ok=True)
    log = _Log(progress)

    def export_model() -> tuple[Bundle, str]:
        with extracted(exhibit.model) as model:
            path = export(model, output / "demo.e3d", context_length=CONTEXT, horizon=HORIZON, overwrite=True)
        bundle = Bundle.open(path)
        sizes = ", ".join(f"{graph.file} {graph.nodes} nodes" for graph in bundle.manifest.graphs)
        return bundle, sizes

    def build_engines() -> tuple[None, str]:
        try:
            sidecars = build(bundle, "tensorrt-rtx", progress=lambda phase: progress(f"build engines: {phase}"))
        except BackendUnavailable as error:
            return None, f"left out: {error}"
        built = ", ".join(f"{name} {one.bytes / 1e6:.1f} MB" for name, one in sidecars.items())
        return None, f"TensorRT-RTX {next(iter(sidecars.values())).builder}: {built}; built, not run here"

    def prove() -> tuple[Report, str]:
        with open_backend(bundle, YARDSTICK) as yardstick:
            report = verify(bundle, predictor.backend, yardstick)
        record_verification(bundle, report.to_dict())
        return report, f"largest difference from PyTorch {report.worst:.1e}, budget {report.budget:.0e}"

    def stream(name: str, clips: Clips) -> tuple[tuple[Frames, Frames], str]:
        summary, seen, forecast = follow(predictor, clips.frames[0], horizon=LOOK_AHEAD, keep=True)
        side_by_side = np.concatenate([seen, forecast], axis=-1)[None]
        write_clips(output / f"{name}.mp4", side_by_side, frames_per_second=clips.frames_per_second, zoom=4)
        return (seen, forecast), (
            f"{summary.frames} frames at {summary.frames_per_second:.0f} frames/s, each with {LOOK_AHEAD} "
            f"ahead, renewal {summary.renewal}; "
            f"MSE {summary.mse:.0f} a frame, copying the last {summary.copy_mse:.0f}"
        )

    def measure() -> tuple[BenchmarkResult, str]:
        with ExitStack() as stack:
            names = (YARDSTICK, RECOMMENDED)
            backends = [stack.enter_context(open_backend(bundle, name, threads=1)) for name in names]
            result = benchmark(bundle, backends, threads=1)
        last = result.rows[-1]
        return result, f"{last.backend} {last.timing.median_ms:.2f} ms a step, {last.speedup:.2f}× PyTorch eager"

    bundle = log("export", export_model)
    if exhibit.small:
        log("build engines", build_engines)
    with runtime.load(bundle.path, RECOMMENDED) as predictor:
        report = log("verify", prove)
        examples = log("forecast test clips", lambda: _examples(predictor))
        digits = log("stream Moving MNIST", lambda: stream("moving_mnist", _digits_video()))
        if exhibit.small:
            real = log("stream a real clip", lambda: stream("pedestrians", _real_clip(predictor)))
    speed = log("benchmark", measure)

    gif = output / "forecast.gif"
    write_clips(gif, _animation(examples)[None], frames_per_second=6, zoom=3)
    pictures = {
        "Drift from PyTorch over the rollout": measured.drift(report),
        "Truth and forecast, a test clip": plots.strips(_rows(examples[0])),
        "Truth and forecast, another": plots.strips(_rows(examples[1])),
        f"Moving MNIST as it played, and what was forecast {LOOK_AHEAD} frames before": _film(digits),
        **(
            {f"A real clip as it played, and what was forecast {LOOK_AHEAD} frames before": _film(real)}
            if exhibit.small
            else {}
        ),
        "Time of a step": measured.latency(speed),
        **_card_pictures(exhibit),
    }
    result = Result(log.stages, report, speed, output / "report.html", gif)
    result.report.write_text(_html(result, pictures, exhibit), encoding="utf-8")
    return result


def check_present(exhibit: Exhibit) -> None:
    """Refuse an exhibit without its files.

    Raises:
        CheckpointError: one is not there.
    """
    for file in (exhibit.model, exhibit.card):
        if not file.is_file():
            raise CheckpointError(
                f"{file}: no such file; the full-size model is in a checkout of the repository and not in an installed "
                "package, so run e3d from a checkout, or show the small model without --full"
            )


def _examples(predictor: Predictor) -> tuple[list[tuple[Frames, Frames]], str]:
    """Truth [20, 1, 64, 64] and forecast [10, 1, 64, 64] of four clips of the fixed test set."""
    digits, pairs = load_digits("test"), []
    for index in range(4):
        clip = moving_mnist(digits, np.random.default_rng((TEST_SEED, index)), length=CONTEXT + HORIZON)
        stream = predictor.stream(renewal="none")
        for picture in clip[:CONTEXT]:
            stream.push(picture)
        truth = frames.to_frames(clip, image_size=predictor.config.image_size, channels=1)
        pairs.append((truth, stream.forecast(HORIZON).clip(0, 1)))
    return pairs, f"{len(pairs)} clips, {CONTEXT} frames given, {HORIZON} predicted"


SHOWN = ("forecast", "copy last")
TEST_SEED = 2
"""Seed of the fixed test set; benchmarks/demo_quality.py measures all of it."""


def _digits_video() -> Clips:
    clip = moving_mnist(load_digits("test"), np.random.default_rng((TEST_SEED, 1000)), length=60)
    return Clips([clip], ["Moving MNIST"])


def _real_clip(predictor: Predictor) -> Clips:
    with extracted(PEDESTRIANS) as path:
        return read_clips(path, Form.of(predictor.config, predictor.card), remarks=Remarks(silent=True))


def _card_pictures(exhibit: Exhibit) -> dict[str, bytes]:
    """Draw how the model learned, how its error grows with the horizon, and how its state ages."""
    card = json.loads(exhibit.card.read_text())
    learned, by_frame = card["curve"], card["quality"]["measures"]["mse"]
    frame_numbers = range(1, HORIZON + 1)
    with extracted(exhibit.model) as model:
        decay = checkpoint.read_card(model).decay
    return {
        "How the model learned": plots.curves(
            {"validation": learned["valid_mse"]}, x=learned["step"], xlabel="optimiser step", ylabel="MSE a frame"
        ),
        "How its error grows": plots.curves(by_frame, x=frame_numbers, xlabel="predicted frame", ylabel="MSE a frame"),
        **({} if decay is None else {f"How its state ages: {decay.verdict}": plots.decay(decay)}),
    }


def _rows(example: tuple[Frames, Frames]) -> dict[str, Frames]:
    truth, forecast = example
    return {"given": truth[:CONTEXT], "truth": truth[CONTEXT:], "forecast": forecast}


def _film(pair: tuple[Frames, Frames]) -> bytes:
    seen, forecast = (frames[LOOK_AHEAD:] for frames in pair)
    return plots.strips({"came": seen, "forecast": forecast}, every=max(1, len(seen) // 12))


def _animation(examples: list[tuple[Frames, Frames]]) -> Frames:
    """Above the truth, below what was given and then, framed, what was forecast: [T, 1, H, W]."""
    columns = []
    for truth, forecast in examples:
        below = np.concatenate([truth[:CONTEXT], forecast])
        columns.append(np.concatenate([framed(truth, 0.25), framed(below, 0.25, bright_from=CONTEXT)], axis=-2))
    return np.concatenate(columns, axis=-1)


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child, .words :last-child { text-align: left }
img { max-width: 100% }
h2 { margin-top: 2.2rem; font-size: 1.1rem }
.PASS { color: #176b2c }
.FAIL { color: #b03030 }
"""


def _html(result: Result, pictures: dict[str, bytes], exhibit: Exhibit) -> str:
    card = json.loads(exhibit.card.read_text())
    stages = [[stage.name, f"{stage.seconds:.1f}", stage.result] for stage in result.stages]
    table = _table(["stage", "seconds", "result"], stages, kind="words")
    measures = card["quality"]["measures"]
    quality = _table(
        ["frame", *(f"{name} {who}" for name in measures for who in SHOWN)],
        [[str(t + 1), *(f"{measures[name][who][t]:.3g}" for name in measures for who in SHOWN)] for t in range(HORIZON)]
        + [["mean", *(f"{np.mean(measures[name][who]):.3g}" for name in measures for who in SHOWN)]],
    )
    images = "".join(
        f"<h2>{escape(title)}</h2><img src='{_data(content, 'png')}' alt='{escape(title)}'>"
        for title, content in pictures.items()
    )
    speed = result.benchmark.environment
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>e3d demo</title>
<style>{STYLE}</style>
<h1>e3d demo: <span class="{"PASS" if result.passed else "FAIL"}">{"PASS" if result.passed else "FAIL"}</span></h1>
<p>Measured on {escape(speed["cpu"])}, {speed["cores"]} cores, {escape(speed["date"])};
versions {escape(", ".join(f"{k} {v}" for k, v in speed["versions"].items()))}.</p>{table}
<h2>Above the truth, below what the model was given and then, framed, what it forecast</h2>
<img src="{_data(result.gif.read_bytes(), "gif")}" alt="forecast">{images}
<h2>Quality of the model</h2><p>On {card["quality"]["sequences"]} generated test clips of digits that training
never saw, measured by <code>{exhibit.measured_by}</code> and not by this run. MSE and MAE are summed over
the pixels of a frame.</p>{quality}</html>
"""


def _table(columns: list[str], rows: list[list[str]], *, kind: str = "numbers") -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table class='{kind}'><tr>{head}</tr>{body}</table>"


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode()}"
