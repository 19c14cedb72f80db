"""The command `e3d`: reads options, calls one library function, shows what it returns.

The only place that prints or exits. Libraries come in inside the commands, so that `--help` is instant.
Results go to stdout, progress and remarks to stderr.
"""

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e3d_deploy import __version__
from e3d_deploy.errors import BackendUnavailable, E3DError, QualityError

if TYPE_CHECKING:
    from e3d_deploy.runtime import Bundle, Predictor
    from e3d_deploy.runtime.verify import Report


class Commands(click.Group):
    """The one place that turns failures into a line and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(130) from None
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            message, exit_code = explain(error)
            click.echo(f"Error: {message}", err=True)
            raise click.exceptions.Exit(exit_code) from error


def explain(error: Exception) -> tuple[str, int]:
    """An exception as the line and exit code that a user gets."""
    if isinstance(error, E3DError):
        return (str(error), error.exit_code)
    if isinstance(error, ModuleNotFoundError):
        from e3d_deploy.doctor import extra_of

        if extra := extra_of(error.name or ""):
            return (f"{error.name} is not installed; pip install 'e3d_deploy[{extra}]'", BackendUnavailable.exit_code)
    if isinstance(error, MemoryError):
        return (f"out of memory ({error}); take a smaller batch or model", 7)
    if isinstance(error, OSError):
        return (f"{error.filename or 'file'}: {error.strerror or error}", 1)
    return (f"unexpected {type(error).__name__}: {error}; `e3d --debug …` shows where", 1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="e3d")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries log.")
def main(debug: bool) -> None:
    """E3D-LSTM video prediction, from training to the edge."""
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("e3d_deploy").setLevel(level)


PATH = click.Path(path_type=Path)


def numbers(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    """`48,40` or `64x64` as integers."""
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of integers such as 64,64") from error


def source(text: str) -> tuple[str, float]:
    """`clips.npz:2` as a source and its share."""
    name, colon, share = text.rpartition(":")
    try:
        return (name, float(share)) if colon else (text, 1.0)
    except ValueError:  # a colon in the name
        return text, 1.0


def check_picture(path: Path | None) -> None:
    """Whether a picture can be drawn and written there, asked before the work is done."""
    from e3d_deploy.errors import ConfigError

    if path is not None:
        import matplotlib.figure  # noqa: F401 (a missing library shall show now)

        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: its folder does not exist; make it first")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout; the first column is left aligned, the others right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        shown.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(shown)


def as_json(value: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2))


def verdict(passed: bool, text: str) -> None:
    """The last line of a command that checks something."""
    click.secho("PASS " if passed else "FAIL ", fg="green" if passed else "red", nl=False, err=True)
    click.echo(text, err=True)


def next_command(text: str) -> None:
    """What one would do next."""
    click.echo(f"next: {text}", err=True)


@contextmanager
def working(text: str) -> Iterator[Any]:
    """A line on stderr that shows what is going on, and goes away after it; a plain line where nobody watches."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        click.echo(text, err=True)
    with console.status(text) as status:
        yield lambda phase: status.update(f"{text}: {phase}")


def megabytes(count: int) -> str:
    """A size in bytes, to be read."""
    return f"{count / 1e6:.1f} MB"


def open_predictor(path: Path, backend: str, threads: int | None) -> "Predictor":
    """A predictor for a bundle, or for a model file by PyTorch."""
    from e3d_deploy import runtime
    from e3d_deploy.errors import ConfigError

    if path.is_dir() or not path.exists():
        return runtime.load(path, backend, threads=threads)
    if backend not in ("auto", "torch"):
        raise ConfigError(f"{path}: a model file runs on torch; for {backend}, give a bundle made by `e3d export`")
    from e3d_deploy import checkpoint
    from e3d_deploy.export.torch_backend import TorchBackend
    from e3d_deploy.files import sha256

    model = checkpoint.load(path)
    return runtime.Predictor(model.config, TorchBackend(model, threads=threads), identity=sha256(path))


def open_bundle(path: Path) -> "Bundle":
    from e3d_deploy.runtime import Bundle

    return Bundle.open(path)


@main.command()
@click.option("-o", "--output", type=PATH, required=True, help="Run folder; gets model.safetensors.")
@click.option(
    "--data",
    multiple=True,
    default=["moving-mnist"],
    metavar="SOURCE[:SHARE]",
    help="moving-mnist, or a file or folder of clips; several are mixed by their shares.",
)
@click.option("--init", "initial", type=PATH, help="Model whose weights to begin with; give its options too.")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder.")
@click.option("--image-size", default="64x64", callback=numbers, help="Height x width, pixels.")
@click.option("--channels", default=1, help="Colours of a frame.")
@click.option("--patch-size", default=4, help="Side of the square folded into channels, pixels.")
@click.option("--hidden", default="64,64,64,64", callback=numbers, help="Channels of each layer.")
@click.option("--kernel-size", default=5, help="Side of the convolutions, patches.")
@click.option("--history-length", default=20, help="Cell states kept for recall.")
@click.option("--norm-eps", default=1e-5, help="Added to the variance in the norms.")
@click.option("--semantics", type=click.Choice(["paper", "google"]), default="paper", help="Which E3D-LSTM.")
@click.option("--layer-norm/--no-layer-norm", default=True, help="Normalise the gates.")
@click.option("--context", "context_length", default=10, help="Frames given.")
@click.option("--horizon", default=10, help="Frames predicted.")
@click.option("--steps", default=80_000, help="Optimiser steps.")
@click.option("--batch-size", default=4, help="Clips in a step.")
@click.option("--learning-rate", default=1e-3, help="Highest learning rate.")
@click.option("--l1-weight", default=1.0, help="Weight of the absolute differences in the loss.")
@click.option("--sampling-stop-step", default=50_000, help="No true frame is shown after this step.")
@click.option("--ema-decay", default=0.9995, help="Decay of the moving average of the weights.")
@click.option("--gradient-clip", default=0.0, help="Largest gradient norm; 0 for none.")
@click.option("--steps-per-epoch", default=500, help="Steps between validations and checkpoints.")
@click.option("--seed", default=0, help="Decides weights, data and sampling.")
def train(output: Path, data: tuple[str, ...], initial: Path | None, resume: bool, **options: Any) -> None:
    """Train a model on Moving MNIST or on clips."""
    import dataclasses

    from e3d_deploy.config import ModelConfig, TrainConfig
    from e3d_deploy.training.train import train as train_model

    def part(config: type[Any]) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(config)}
        return {name: value for name, value in options.items() if name in names}

    try:
        path = train_model(
            ModelConfig(**part(ModelConfig)),
            TrainConfig(**part(TrainConfig)),
            output,
            data=[source(text) for text in data],
            initial=initial,
            resume=resume,
        )
    except KeyboardInterrupt:
        if (output / "last.ckpt").exists():
            next_command(f"e3d train -o {output} --resume with the same options")
        raise
    click.echo(path)
    next_command(f"e3d export {path} -o {output.name}.e3d")


@main.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="NAME.e3d", help="Folder of the bundle.")
@click.option("--context", "context_length", default=10, help="Frames that the clip graph takes.")
@click.option("--horizon", default=10, help="Frames that the clip graph gives.")
@click.option("--batch", default=1, help="Streams that the graphs run at once.")
@click.option("--reference", type=PATH, help="Clip to record PyTorch's answer to; else one of the package's.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
def export(model: Path, output: Path, **options: Any) -> None:
    """Export MODEL as a bundle: ONNX graphs, weights, reference clip, manifest."""
    from e3d_deploy.export.bundle import export as export_model

    with working(f"exporting {model}") as progress:
        export_model(model, output, progress=progress, **options)
    bundle = open_bundle(output)
    graphs = bundle.manifest["graphs"]
    table(
        ["graph", "nodes", "opset", "precision"],
        [(entry["file"], entry["nodes"], entry["opset"], entry["precision"]) for entry in graphs.values()],
    )
    click.echo(output)
    next_command(f"e3d verify {output}")


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--target", type=click.Choice(["tensorrt-rtx", "tensorrt"]), required=True, help="Which builder.")
@click.option("--workspace-mb", type=click.IntRange(min=1), help="Scratch memory for kernels; else all there is.")
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    default=3,
    help="0 builds quickly, 5 runs quickly.",
)
def build(bundle: Path, target: str, workspace_mb: int | None, optimization_level: int) -> None:
    """Build a TensorRT engine of each graph of BUNDLE."""
    from e3d_deploy.export.to_tensorrt import build as build_engines

    with working(f"building {target}") as progress:
        sidecars = build_engines(
            open_bundle(bundle),
            target,  # type: ignore[arg-type]
            workspace_bytes=None if workspace_mb is None else workspace_mb * 1_000_000,
            optimization_level=optimization_level,
            progress=lambda phase, seconds: progress(f"{phase}, {seconds:.0f} s"),
        )
    table(
        ["engine", "builder", "runs on", "size", "built in"],
        [
            (
                f"engines/{graph}.{target}.plan",
                one["builder"],
                one["compute_capability"],
                megabytes(one["bytes"]),
                f"{one['build_seconds']:.1f} s",
            )
            for graph, one in sidecars.items()
        ],
    )
    click.echo(
        "WARN built, not run: this version has no TensorRT backend, and what a plan computes is unproved", err=True
    )
    next_command(f"e3d inspect {bundle}")


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--backend", default="auto", help="auto, onnxruntime or torch.")
@click.option(
    "--against",
    type=click.Choice(["auto", "torch", "reference"]),
    default="auto",
    help="PyTorch, or what it computed at export; auto takes PyTorch if it is installed.",
)
@click.option("--clip", type=PATH, help="Another clip than the reference; needs PyTorch.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads within a step.")
@click.option("--picture", type=PATH, help="Draw the drift into this PNG.")
@click.option("--json", "json_", is_flag=True, help="The report as JSON.")
def verify(
    bundle: Path, backend: str, against: str, clip: Path | None, threads: int | None, picture: Path | None, json_: bool
) -> None:
    """Prove that a backend computes what PyTorch computes, over a whole rollout."""
    from contextlib import ExitStack, closing

    from e3d_deploy import frames
    from e3d_deploy.data.clips import read_clips
    from e3d_deploy.doctor import installed
    from e3d_deploy.runtime.backend import open_backend
    from e3d_deploy.runtime.bundle import record_verification
    from e3d_deploy.runtime.verify import verify as verify_backend

    check_picture(picture)
    opened = open_bundle(bundle)
    config = opened.config
    given = None
    if clip is not None:
        pictures = read_clips(
            clip, image_size=config.image_size, channels=config.channels, most=opened.context_length + opened.horizon
        ).frames[0]
        given = frames.to_frames(pictures, image_size=config.image_size, channels=config.channels, name=str(clip))
    if backend == "auto":
        backend = next(iter(installed()), "onnxruntime")
    if against == "auto":
        against = "torch" if "torch" in installed() else "reference"
    with ExitStack() as stack, working(f"verifying {bundle}"):
        yardstick = None
        if against == "torch":
            yardstick = stack.enter_context(closing(open_backend(opened, "torch", threads=threads)))
        candidate = stack.enter_context(closing(open_backend(opened, backend, threads=threads)))
        report = verify_backend(opened, candidate, yardstick, given)
    if given is None:
        record_verification(opened, report.to_dict())
    if picture is not None:
        from e3d_deploy import plots

        picture.write_bytes(plots.drift(report))
    if json_:
        as_json(report.to_dict())
    else:
        show_report(report)
    name, state = report.worst_state
    line = (
        f"{report.backend} against {report.yardstick}: predictions {report.worst:.1e} of {report.budget:.1e}, "
        f"states {state:.1e} of {report.state_budget:.1e}"
    )
    verdict(report.passed, line)
    if not report.passed:
        where = f"step {report.worst_step + 1}" if max(report.predictions) > report.budget else f"state {name}"
        raise QualityError(f"{line}; furthest at {where}; try another backend, or export the model again")


def show_report(report: "Report") -> None:
    """A report of `verify` as tables."""
    kinds = ["hidden", "cell", "memory"] if report.states else []
    table(
        ["step", "saw", "prediction", *kinds],
        [
            (
                t + 1,
                "truth" if t < report.context_length else "itself",
                f"{difference:.1e}",
                *(f"{report.states[t][kind]:.1e}" for kind in kinds),
            )
            for t, difference in enumerate(report.predictions)
        ],
    )
    name, state = report.worst_state
    table(
        [f"{report.backend} against {report.yardstick}", "largest |difference|", "budget"],
        [
            ("predictions, step by step", f"{max(report.predictions):.1e}", f"{report.budget:.1e}"),
            ("predictions, clip graph", f"{report.clip:.1e}", f"{report.budget:.1e}"),
            (f"final states, most {name}", f"{state:.1e}", f"{report.state_budget:.1e}"),
        ],
    )
    if report.dssim is not None and report.dpsnr is not None:
        click.echo(f"lost against the truth: SSIM {report.dssim:+.1e}, PSNR {report.dpsnr:+.1e} dB")


@main.command()
@click.argument("model", metavar="BUNDLE_OR_MODEL", type=PATH)
@click.argument("clip", metavar="INPUT", type=PATH)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help=".npz, .mp4 or .gif, replaced if it is there, or a new folder for pictures.",
)
@click.option("--context", "context_length", type=click.IntRange(min=1), help="Frames to look at; else the bundle's.")
@click.option("--horizon", type=click.IntRange(min=1), help="Frames to predict; else the bundle's.")
@click.option("--backend", default="auto", help="auto, onnxruntime or torch.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads within a step.")
@click.option("--zoom", type=click.IntRange(min=1), default=1, help="Enlarge videos and pictures.")
def predict(
    model: Path,
    clip: Path,
    output: Path,
    context_length: int | None,
    horizon: int | None,
    backend: str,
    threads: int | None,
    zoom: int,
) -> None:
    """Predict the frames that follow the first of each clip in INPUT."""
    import numpy as np

    from e3d_deploy.data.clips import read_clips
    from e3d_deploy.data.write import check_target, write_clips
    from e3d_deploy.errors import ShapeError

    check_target(output)
    with open_predictor(model, backend, threads) as predictor:
        config = predictor.config
        context_length = context_length or predictor.context_length
        horizon = horizon or predictor.horizon
        clips = read_clips(clip, image_size=config.image_size, channels=config.channels, most=context_length)
        if clips.frames.shape[1] < context_length:
            raise ShapeError(
                f"{clip}: has {clips.frames.shape[1]} frames, the context is {context_length}; "
                "give a longer clip or a smaller --context"
            )
        forecasts = []
        with working(f"predicting {clip}") as progress:
            for number, pictures in enumerate(clips.frames):
                progress(f"clip {number + 1} of {len(clips.frames)}")
                stream = predictor.stream()
                for picture in pictures:
                    stream.push(picture)
                forecasts.append(stream.forecast(horizon))
        write_clips(output, np.stack(forecasts), frames_per_second=clips.frames_per_second, zoom=zoom)
    click.echo(output)
    click.echo(f"{len(forecasts)} × {horizon} frames by {predictor.backend.name}", err=True)


@main.command()
@click.argument("model", metavar="BUNDLE_OR_MODEL", type=PATH)
@click.argument("video", metavar="SOURCE", type=PATH)
@click.option("--horizon", type=click.IntRange(min=1), default=10, help="Frames to look ahead.")
@click.option("--backend", default="auto", help="auto, onnxruntime or torch.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads within a step.")
@click.option(
    "-o", "--output", type=PATH, help="What came beside what had been forecast for it: .mp4, .gif or a folder."
)
@click.option("--zoom", type=click.IntRange(min=1), default=4, help="Enlarge the output.")
@click.option("--json", "json_", is_flag=True, help="The summary as JSON.")
def stream(
    model: Path,
    video: Path,
    horizon: int,
    backend: str,
    threads: int | None,
    output: Path | None,
    zoom: int,
    json_: bool,
) -> None:
    """Forecast a video while it plays: after each picture, the next HORIZON."""
    import numpy as np

    from e3d_deploy.data.clips import play
    from e3d_deploy.data.write import check_target, write_clips
    from e3d_deploy.runtime.live import follow

    if output is not None:
        check_target(output)
    with open_predictor(model, backend, threads) as predictor:
        config = predictor.config
        playing = play(video, image_size=config.image_size, channels=config.channels)
        with working(f"streaming {video}") as progress:
            summary, seen, forecast = follow(
                predictor,
                playing.pictures,
                horizon=horizon,
                keep=output is not None,
                progress=lambda count, rate: progress(f"{count} frames, {rate:.1f} frames/s"),
            )
    if output is not None:
        side_by_side = np.concatenate([seen, forecast], axis=-1)[None]
        write_clips(output, side_by_side, frames_per_second=playing.frames_per_second, zoom=zoom)
        click.echo(output)
    if json_:
        as_json({**summary, "source_frames_per_second": playing.frames_per_second})
        return
    table(
        [f"{summary['frames']} frames by {summary['backend']}", "p50", "p99"],
        [
            (name, f"{summary[key]['p50']:.1f} ms", f"{summary[key]['p99']:.1f} ms")
            for name, key in (("push one picture", "push_ms"), (f"forecast {horizon} frames", "forecast_ms"))
        ],
    )
    click.echo(f"{summary['frames_per_second']:.1f} frames/s, the source has {playing.frames_per_second:.1f}")
    if summary["mse"] is not None:
        click.echo(
            f"{horizon} frames ahead: MSE {summary['mse']:.1f} a frame, "
            f"copying the last frame {summary['copy_mse']:.1f}"
        )


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--backends", default="torch,onnxruntime", help="Names; the first is compared with.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads within a step.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    help="Length of a block; each backend runs five and the warm-up.",
)
@click.option("--picture", type=PATH, help="Draw the latencies into this PNG.")
@click.option("--json", "json_", is_flag=True, help="Everything, with the environment, as JSON.")
def benchmark(
    bundle: Path, backends: str, threads: int | None, seconds: float, picture: Path | None, json_: bool
) -> None:
    """Time the step of several backends in turn, and say how right each is."""
    from contextlib import ExitStack, closing

    from e3d_deploy.runtime.backend import open_backend
    from e3d_deploy.runtime.benchmark import benchmark as run

    check_picture(picture)
    opened = open_bundle(bundle)
    with ExitStack() as stack, working(f"benchmarking {bundle}") as progress:
        candidates = [
            stack.enter_context(closing(open_backend(opened, name.strip(), threads=threads)))
            for name in backends.split(",")
        ]
        result = run(opened, candidates, threads=threads, seconds=seconds, progress=progress)
    if picture is not None:
        from e3d_deploy import plots

        picture.write_bytes(plots.latency(result))
    if json_:
        as_json(result)
        return
    benchmark_table(result)


def benchmark_table(result: Mapping[str, Any]) -> None:
    """The rows of a benchmark."""
    table(
        ["backend", "median", f"{result['confidence']:.0%} CI", "p90", "p99", "frames/s", "speed-up", "max |Δ|"],
        [
            (
                row["backend"],
                f"{row['median_ms']:.2f} ms",
                f"{row['median_ci_ms'][0]:.2f}–{row['median_ci_ms'][1]:.2f}",
                f"{row['p90_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"{row['frames_per_second']:.1f}",
                f"{row['speedup']:.2f}×",
                f"{row['max_abs_difference']:.1e}",
            )
            for row in result["results"]
        ],
    )
    environment = result["environment"]
    threads = environment["threads"] or "as many as the library likes"
    click.echo(
        f"one step on {environment['cpu']}, {environment['cores']} cores, threads: {threads}; "
        f"speed-up over {result['compared_with']}",
        err=True,
    )


@main.command()
@click.argument("path", metavar="BUNDLE_OR_MODEL", type=PATH)
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def inspect(path: Path, json_: bool) -> None:
    """Show what a bundle or a model file holds."""
    from e3d_deploy.inspect import inspect_bundle, inspect_model

    found = inspect_bundle(path) if path.is_dir() or not path.exists() else inspect_model(path)
    if json_:
        as_json(found)
        return
    for title, rows in found.items():
        if isinstance(rows, dict) and rows and all(isinstance(row, dict) for row in rows.values()):
            columns = list(next(iter(rows.values())))
            table([title, *columns], [(name, *(row.get(column) for column in columns)) for name, row in rows.items()])
        elif isinstance(rows, dict):
            table([title, ""], list(rows.items()))
        else:
            table([title, ""], [("", rows)])
        click.echo()


@main.command()
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def doctor(json_: bool) -> None:
    """Say what this machine has, what it lacks, what that costs and how to get it."""
    from e3d_deploy.doctor import examine

    found = examine()
    if json_:
        as_json(found)
        return
    machine = found["machine"]
    click.echo(f"e3d_deploy {found['e3d_deploy']}, Python {found['python']}, {machine['system']}")
    click.echo(
        f"{machine['cpu']}, {machine['cores']} cores, NVIDIA driver: {'yes' if machine['nvidia_driver'] else 'no'}"
    )
    table(
        ["library", "version", "gives", "get it by"],
        [(one["library"], one["version"] or "–", one["gives"], one["get"] or "") for one in found["libraries"]],
    )
    for warning in found["warnings"]:
        click.echo(f"WARN {warning}", err=True)
    ready = [name for name, there in found["backends"].items() if there]
    if ready:
        verdict(True, f"installed backends: {', '.join(ready)}; `e3d verify` proves them on a bundle")
    else:
        click.echo("WARN no backend is installed; pip install 'e3d_deploy[cpu]'", err=True)


@main.command()
@click.option("-o", "--output", type=PATH, default=Path("demo-output"), help="Folder for the results.")
def demo(output: Path) -> None:
    """The whole path on a trained model: export, build, verify, forecast, benchmark, report."""
    from e3d_deploy.demo.tour import tour

    with working("demo") as progress:
        result = tour(output, progress=progress)
    table(
        ["stage", "seconds", "result"], [(stage.name, f"{stage.seconds:.1f}", stage.result) for stage in result.stages]
    )
    benchmark_table(result.benchmark)
    click.echo(result.report)
    click.echo(result.gif)
    verdict(result.passed, "the exported graphs compute what PyTorch computes" if result.passed else "see the report")
    if not result.passed:
        raise QualityError("the demo's bundle drifts from PyTorch beyond its budget; see the report")
