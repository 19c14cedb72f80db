"""The command `e3d`: reads options, calls one library function, shows what it returns.

The only place that prints or exits. Libraries come in inside the commands, so that `--help` is instant.
Results go to stdout, progress and remarks to stderr.
"""

import dataclasses
import errno
import json
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import click

from e3d_deploy import __version__, released_flags
from e3d_deploy.config import RECIPES, HardwareCompatibility, Semantics, TrainConfig
from e3d_deploy.errors import BackendUnavailable, E3DError, QualityError
from e3d_deploy.policies import POLICIES, RUNS, parse_budget

if TYPE_CHECKING:
    from e3d_deploy.data.splits import Split
    from e3d_deploy.evaluation import Evaluation
    from e3d_deploy.export.cache import EngineCache
    from e3d_deploy.export.why import Finding
    from e3d_deploy.runtime import Bundle, Predictor
    from e3d_deploy.runtime.verify import Report


class Commands(click.Group):
    """The one place that turns failures into a line and an exit code."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Let `train` take the command line of google/e3d_lstm."""
        if args[:1] == ["train"]:
            args, remarks = released_flags.translate(args[1:])
            for remark in remarks:
                click.echo(remark, err=True)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            from e3d_deploy.export.watch import BUILDING

            click.echo("interrupted", err=True)
            if any(thread.name == BUILDING for thread in threading.enumerate()):
                sys.stderr.flush()
                os._exit(130)  # with TensorRT still at work, an orderly end would be a crash
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
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return (f"{error.filename or 'file'}: {error.strerror or error}", 7 if full else 1)
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


def numbers(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """`48,40` or `64x64` as integers."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of integers such as 64,64") from error


def streams(_: click.Context, __: click.Parameter, text: str) -> int | None:
    """`4`, or `any` as None."""
    try:
        return None if text == "any" else int(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is neither a number nor `any`") from error


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


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> None:
    """A table on stdout; the first `left` columns are left aligned, the others right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        shown.add_column(column, justify="left" if number < left else "right", overflow="fold")
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


def open_predictor(
    path: Path, backend: str, threads: int | None, importing: Mapping[str, Any] | None = None
) -> "Predictor":
    """A predictor for a bundle, or by PyTorch for a model file, and with `importing` for a checkpoint of others."""
    from e3d_deploy import runtime
    from e3d_deploy.errors import ConfigError

    foreign = importing is not None and (path.suffix in (".ckpt", ".pth", ".pt") or index_of(path).exists())
    if not foreign and (path.is_dir() or not path.exists()):
        return runtime.load(path, backend, threads=threads)
    if backend not in ("auto", "torch"):
        raise ConfigError(f"{path}: a model file runs on torch; for {backend}, give a bundle made by `e3d export`")
    from e3d_deploy import checkpoint
    from e3d_deploy.export.torch_backend import TorchBackend
    from e3d_deploy.files import sha256

    if foreign:
        from e3d_deploy.importing import import_checkpoint

        model, _ = import_checkpoint(path, **(importing or {}))
        file = path if path.exists() else index_of(path)
    else:
        model, file = checkpoint.load(path), path
    return runtime.Predictor(model.config, TorchBackend(model, threads=threads), identity=sha256(file))


def index_of(prefix: Path) -> Path:
    """The file that lists the tensors of a TensorFlow checkpoint."""
    return prefix.with_name(prefix.name + ".index")


def open_bundle(path: Path) -> "Bundle":
    from e3d_deploy.runtime import Bundle

    return Bundle.open(path)


def setting(field: str, text: str, *, flag: str = "") -> Callable[[Any], Any]:
    """An option for a field of TrainConfig, which the recipe decides if it is not given."""
    default = next(one.default for one in dataclasses.fields(TrainConfig) if one.name == field)
    name = "--" + (flag or field).replace("_", "-")
    if isinstance(default, bool):
        return click.option(f"{name}/--no-{name[2:]}", field, default=None, help=text, show_default=str(default))
    hint = get_type_hints(TrainConfig)[field]
    number = float if float in (hint, *get_args(hint)) else int
    kind = click.Choice(get_args(hint)) if isinstance(default, str) else number
    return click.option(
        name, field, type=kind, default=None, help=text, show_default=None if default is None else str(default)
    )


@main.command()
@click.option("-o", "--output", type=PATH, required=True, help="Run folder; gets model.safetensors.")
@click.option(
    "--data",
    multiple=True,
    default=["moving-mnist"],
    metavar="SOURCE[:SHARE]",
    help="moving-mnist, or a file or folder, as `e3d data inspect` reads them; several are mixed by their shares.",
)
@click.option("--valid-data", "valid", metavar="SOURCE", help="To validate on; else what the data holds out.")
@click.option("--skip-bad", is_flag=True, help="Leave out pictures and videos that cannot be read, and say so.")
@click.option("--init", "initial", type=PATH, help="Model or checkpoint whose weights to begin with.")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder.")
@click.option(
    "--resume-or-new", is_flag=True, help="Go on if the folder holds this run; else begin in NAME-2, NAME-3, …"
)
@click.option(
    "--recipe", type=click.Choice(list(RECIPES)), default="modern", help="What the settings below are if not given."
)
@click.option("--image-size", default="64x64", callback=numbers, help="Height x width, pixels.")
@click.option("--channels", default=1, help="Colours of a frame.")
@click.option("--patch-size", default=4, help="Side of the square folded into channels, pixels.")
@click.option("--hidden", default="64,64,64,64", callback=numbers, help="Channels of each layer.")
@click.option("--kernel-size", default=5, help="Side of the convolutions, patches.")
@click.option("--history-length", default=20, help="Cell states kept for recall.")
@click.option("--norm-eps", default=1e-5, help="Added to the variance in the norms.")
@click.option("--semantics", type=click.Choice(get_args(Semantics)), default="paper", help="Which E3D-LSTM.")
@click.option("--stride", default=1, help="Of the convolutions, with --semantics openstl.")
@click.option("--layer-norm/--no-layer-norm", default=True, help="Normalise the gates.")
@setting("context_length", "Frames given.", flag="context")
@setting("horizon", "Frames predicted.")
@setting("steps", "Optimiser steps.")
@setting("batch_size", "Clips in a step, over all processes and parts.")
@setting("accumulate", "Parts that a step's clips are computed in.")
@setting("loss", "Means, or sums over the batch.")
@setting("l1_weight", "Weight of the absolute differences in the loss.")
@setting("optimizer", "Who makes steps of gradients.")
@setting("beta1", "Decay of the mean gradient.")
@setting("beta2", "Decay of the mean squared gradient.")
@setting("weight_decay", "Of adamw.")
@setting("learning_rate", "Highest learning rate.")
@setting("schedule", "Of the learning rate.")
@setting("warmup_steps", "Steps in which it rises, of cosine.")
@setting("sampling", "When true frames are shown.")
@setting("sampling_start", "Chance of a true frame at the start.")
@setting("sampling_decrease", "By how much it falls a step; else so that it is 0 at the stop.")
@setting("sampling_hold_steps", "Steps before the chances of reverse change; else half of the stop.")
@setting("sampling_stop_step", "No true frame is shown after this step; else half of the steps.")
@setting("sampling_decay_steps", "Of the exponential of reverse.")
@setting("reverse_input", "A second step on each batch, played backwards.")
@setting("ema_decay", "Decay of the moving average of the weights.")
@setting("ema_warmup", "Let that decay begin small.")
@setting("average", "Validate and save the moving average.")
@setting("gradient_clip", "Largest gradient norm; 0 for none.")
@setting("precision", "auto: bf16 on a GPU that has it.")
@setting("recompute", "Activation checkpointing over time: less memory, a third more work.")
@setting("compile", "Compile the cells with torch.compile.")
@setting("validate_every", "Steps between validations.")
@setting("validation_clips", "Clips of a validation; 0 for all.")
@setting("save_every", "Steps between saved states.")
@setting("log_every", "Steps between lines of the log.")
@setting("seed", "Decides weights, data and sampling.")
@click.option("--devices", type=click.IntRange(min=1), help="Processes, each on a device; else one, or torchrun's.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, help="Machines.")
@click.option("--workers", type=click.IntRange(min=0), help="Processes that load data; else 0, up to 8 for a GPU.")
@click.option("--time-limit", metavar="MINUTES", type=click.FloatRange(min=0, min_open=True), help="Then save and end.")
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard too.")
@click.option("--samples", type=PATH, help="Folder for pictures of validations, as the released code writes them.")
@click.option("--sample-count", type=click.IntRange(min=0), default=10, help="Batches that get such pictures.")
def train(
    output: Path,
    data: tuple[str, ...],
    valid: str | None,
    skip_bad: bool,
    initial: Path | None,
    resume: bool,
    resume_or_new: bool,
    recipe: str,
    **options: Any,
) -> None:
    """Train a model on Moving MNIST or on clips.

    Takes the flags of google/e3d_lstm run.py too, by their names with underscores.
    """
    from lightning.pytorch.utilities import rank_zero_only

    from e3d_deploy.config import ModelConfig
    from e3d_deploy.training.train import Machine, resume_or_next
    from e3d_deploy.training.train import train as train_model

    def part(config: type[Any]) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(config)}
        return {name: value for name, value in options.items() if name in names and value is not None}

    model_config, config = ModelConfig(**part(ModelConfig)), TrainConfig.of_recipe(recipe, **part(TrainConfig))
    minutes = options["time_limit"]
    machine = Machine(**part(Machine), time_limit_s=None if minutes is None else 60 * minutes)
    call: dict[str, Any] = {
        "data": [source(text) for text in data],
        "valid": valid,
        "skip_bad": skip_bad,
        "initial": initial,
        "machine": machine,
    }
    if resume_or_new:
        output, resume = resume_or_next(model_config, config, output, **call)
    try:
        path = train_model(model_config, config, output, resume=resume, **call)
    except KeyboardInterrupt:
        if (output / "last.ckpt").exists():
            next_command(f"e3d train -o {output} --resume with the same options")
        raise
    if getattr(rank_zero_only, "rank", 0) == 0:  # each process comes here
        click.echo(path)
        next_command(f"e3d export {path} -o {output.name}.e3d")


@main.command("import")
@click.argument("path", metavar="CKPT", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Model file, .safetensors.")
@click.option("--from", "origin", type=click.Choice(["auto", "google", "openstl"]), default="auto", help="Whose it is.")
@click.option(
    "--memory",
    type=click.Choice(["paper", "released"]),
    help="google: trained with a memory that moves, or with the released code, where it stays zero.",
)
@click.option("--ema", is_flag=True, help="google: the moving averages in place of the weights.")
@click.option("--patch-size", type=click.IntRange(min=1), help="Where frames are neither gray nor RGB.")
@click.option("--channels", type=click.IntRange(min=1), help="Colours of a frame; as the patch size.")
@click.option("--image-size", callback=numbers, help="google: height x width, pixels; else 64x64.")
@click.option("--stride", type=click.IntRange(min=1), help="openstl: of the convolutions; else as kept there, or 1.")
@click.option("--history-length", type=click.IntRange(min=1), help="Cell states kept for recall; else 20.")
@click.option("--reference", type=PATH, help="What the original gave, .npz; nothing is written if the model differs.")
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
def import_(path: Path, output: Path, reference: Path | None, overwrite: bool, **options: Any) -> None:
    """Import CKPT of google/e3d_lstm (TensorFlow) or OpenSTL (PyTorch) as a model.

    Says which network it found and how it knows. A TensorFlow checkpoint is given by its prefix, such as
    model.ckpt-80000, or by its folder.
    """
    from e3d_deploy import checkpoint
    from e3d_deploy.errors import ConfigError
    from e3d_deploy.importing import compare, import_checkpoint

    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: is there already; give --overwrite to replace it, or another name")
    with working(f"importing {path}"):
        model, evidence = import_checkpoint(path, **options)
    table(["what", "value", "how we know"], [(one.what, one.value, one.how) for one in evidence], left=3)
    if reference is not None:
        with working(f"comparing with {reference}"):
            parity = compare(model, reference)
        table(["predicted frame", "max |Δ|"], [(frame, f"{value:.1e}") for frame, value in parity.differences.items()])
        text = f"largest difference from {reference}: {parity.worst:.1e}, budget {parity.budget:.1e}"
        verdict(parity.passed, text)
        if not parity.passed:
            raise QualityError(f"{text}; the model is not what the original is, so {output} is not written")
    checkpoint.save(model, output)
    click.echo(output)
    next_command(f"e3d export {output} -o {output.stem}.e3d")


@main.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="NAME.e3d", help="Folder of the bundle.")
@click.option("--context", "context_length", default=10, help="Frames that the clip graph takes.")
@click.option("--horizon", default=10, help="Frames that the clip graph gives.")
@click.option("--batch", default="1", callback=streams, help="Streams that the graphs run at once, or `any`.")
@click.option(
    "--optimize", type=click.Choice(["cpu", "gpu", "none"]), default="cpu", help="For whom the step is rewritten."
)
@click.option(
    "--precision",
    type=click.Choice([*POLICIES, "auto"]),
    default="fp32",
    help="Type of convolutions and matrix products; auto: the cheapest that keeps its budget.",
)
@click.option("--budget", metavar="NAME=NUMBER,…", help="dssim, dpsnr, difference; else that of the precision.")
@click.option("--exclude", multiple=True, metavar="LAYER", help="Stays in float32; may be given several times.")
@click.option("--target", type=click.Choice(list(RUNS)), help="Who has to run it; auto without it: all of them.")
@click.option("--calibration", type=PATH, help="Clips to learn ranges from and to measure the drift on.")
@click.option("--reference", type=PATH, help="Clip to record PyTorch's answer to; else one of the package's.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
def export(model: Path, output: Path, budget: str | None, **options: Any) -> None:
    """Export MODEL as a bundle: ONNX graphs, weights, reference clip, manifest."""
    from e3d_deploy.export.bundle import export as export_model

    allowed = None if budget is None else parse_budget(budget)
    with working(f"exporting {model}") as progress:
        export_model(model, output, budget=allowed, progress=progress, **options)
    bundle = open_bundle(output)
    if tried := bundle.manifest["precision"].get("tried"):
        show_policies(tried, bundle.precision)
    graphs = bundle.manifest["graphs"]
    table(
        ["graph", "nodes", "opset", "precision"],
        [(entry["file"], entry["nodes"], entry["opset"], entry["precision"]) for entry in graphs.values()],
    )
    click.echo(output)
    next_command(f"e3d verify {output}" + ("" if bundle.precision in RUNS["onnxruntime"] else " --backend emulated"))


def show_policies(tried: Sequence[Mapping[str, Any]], chosen: str) -> None:
    """The policies that were tried, the cheapest first, and what each costs."""
    forms = {"difference": ".1e", "dssim": "+.1e", "dpsnr": "+.3f"}

    def drift(one: Mapping[str, Any]) -> list[str]:
        found = one["drift"]
        return ["no number" if found[name] is None else format(found[name], form) for name, form in forms.items()]

    table(
        ["precision", "graph and weights", "a step here", "max |Δ|", "SSIM lost", "PSNR lost, dB", "in float32", ""],
        [
            (
                one["policy"],
                megabytes(one["bytes"]),
                "–" if one["step_ms"] is None else f"{one['step_ms']:.2f} ms",
                *drift(one),
                ", ".join(one["exclude"]) or "–",
                "chosen" if one["policy"] == chosen else "over its budget",
            )
            for one in tried
        ],
    )
    click.echo("over whole rollouts, the worst of the clips; a step: of the step graph on ONNX Runtime", err=True)


TARGETS = click.Choice(["tensorrt-rtx", "tensorrt"])
CACHE = click.option(
    "--cache",
    "cache_folder",
    metavar="DIR",
    help="Folder of engines to take again.",
    show_default="~/.cache/e3d_deploy",
)


def buckets(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """`8` as streams that are always 8, `1,8,16` as 1 to 16 of them, mostly 8."""
    try:
        parts = [[int(part) for part in text.split(",")] for text in texts]
    except ValueError as error:
        raise click.BadParameter(f"{', '.join(texts)!r}: expected streams such as 8, or 1,8,16") from error
    return tuple(tuple(part * 3 if len(part) == 1 else part) for part in parts)


def open_cache(folder: str | None, limit_gb: float | None = None) -> "EngineCache":
    from e3d_deploy.export.cache import LIMIT_BYTES, EngineCache, default_folder

    limit = LIMIT_BYTES if limit_gb is None else int(limit_gb * 1e9)
    return EngineCache(default_folder() if folder is None else Path(folder), limit_bytes=limit)


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--target", type=TARGETS, required=True, help="Which builder.")
@click.option("--workspace-mb", type=click.IntRange(min=1), help="Scratch memory for kernels; else all there is.")
@click.option("--optimization-level", type=click.IntRange(0, 5), default=3, help="0 builds quickly, 5 runs quickly.")
@click.option(
    "--batch-bucket",
    "batches",
    multiple=True,
    callback=buckets,
    metavar="N|MIN,OPT,MAX",
    help="Streams that run at once, where the graphs leave it open; each bucket becomes a profile. Else one stream.",
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    metavar="8.6,8.9",
    help="tensorrt-rtx: the GPUs that the engine is for; else all that the library knows.",
)
@click.option(
    "--hardware-compatibility",
    type=click.Choice(get_args(HardwareCompatibility)),
    default="none",
    help="tensorrt: GPUs that the engine runs on beside this one.",
)
@click.option("--version-compatible", is_flag=True, help="tensorrt: let a later TensorRT run the engine.")
@click.option("--refit", "refittable", is_flag=True, help="Let `e3d refit` give the engine other weights.")
@click.option("--timing-cache", type=PATH, help="tensorrt: file that keeps how fast kernels were, for later builds.")
@click.option(
    "--cache",
    "cache_folder",
    metavar="DIR|none",
    help="Folder of engines to take again, and to keep these in.",
    show_default="~/.cache/e3d_deploy",
)
@click.option(
    "--cache-limit-gb",
    type=click.FloatRange(min=0),
    default=10.0,
    help="Beyond, engines that were not used for longest are removed.",
)
def build(
    bundle: Path,
    target: Any,
    workspace_mb: int | None,
    compute_capabilities: str | None,
    timing_cache: Path | None,
    cache_folder: str | None,
    cache_limit_gb: float,
    **options: Any,
) -> None:
    """Build a TensorRT engine of each graph of BUNDLE, or take it from the cache."""
    from e3d_deploy.config import EngineConfig
    from e3d_deploy.export.to_tensorrt import build as build_engines

    config = EngineConfig(
        workspace_bytes=None if workspace_mb is None else workspace_mb * 1_000_000,
        compute_capabilities=tuple(compute_capabilities.split(",")) if compute_capabilities else (),
        timing_cache=None if timing_cache is None else str(timing_cache),
        **options,
    )
    cache = None
    try:
        cache = None if cache_folder == "none" else open_cache(cache_folder, cache_limit_gb)
    except OSError as error:
        if cache_folder is not None:
            raise
        click.echo(f"nothing is cached: {error.filename}: {error.strerror}", err=True)
    with working(f"building {target}") as progress:

        def show(phase: str, seconds: float, expected: float | None) -> None:
            progress(f"{phase}, {seconds:.0f} s" + ("" if expected is None else f" of about {expected:.0f}"))

        sidecars = build_engines(
            open_bundle(bundle),
            target,
            config,
            cache=cache,
            progress=show,
            remark=lambda text: click.echo(text, err=True),
        )
    show_engines(target, sidecars)
    click.echo(
        "WARN built, not run: this version has no TensorRT backend, and what a plan computes is unproved", err=True
    )
    next_command(f"e3d inspect {bundle}")


def show_engines(target: str, sidecars: Mapping[str, Mapping[str, Any]]) -> None:
    """Engines that were just put into a bundle."""
    table(
        ["engine", "builder", "runs on", "precision", "proved by", "size", "built in"],
        [
            (
                f"engines/{graph}.{target}.plan",
                one["builder"],
                one["compute_capability"],
                one["precision"]["proved"],
                one["precision"]["by"],
                megabytes(one["bytes"]),
                f"{one['build_seconds']:.1f} s" + (", cached" if one["cached"] else ""),
            )
            for graph, one in sidecars.items()
        ],
    )


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--from", "source_", type=PATH, required=True, metavar="BUNDLE", help="Whose engines to take.")
@click.option("--target", type=TARGETS, required=True, help="Which engines.")
def refit(bundle: Path, source_: Path, target: Any) -> None:
    """Give BUNDLE the engines of another bundle of the same form, with its own weights.

    They must have been built with --refit. Quicker than building; needs the GPU that the engines are for.
    """
    from e3d_deploy.export.refit import refit as refit_engines

    with working(f"refitting {target}") as progress:
        sidecars = refit_engines(
            open_bundle(bundle), open_bundle(source_), target, progress=lambda phase, *_: progress(phase)
        )
    show_engines(target, sidecars)
    click.echo("WARN refitted, not run: this version has no TensorRT backend", err=True)
    next_command(f"e3d inspect {bundle}")


@main.group()
def cache() -> None:
    """Look after the engines that `e3d build` keeps to take again."""


@cache.command("ls")
@CACHE
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def cache_ls(cache_folder: str | None, json_: bool) -> None:
    """Show the engines, that which was used last at the end."""
    opened = open_cache(cache_folder)
    entries = opened.entries()
    if json_:
        rows = [
            {
                "key": one.key,
                "bytes": one.nbytes,
                "used": one.used.isoformat(timespec="seconds"),
                **one.sidecar["parts"],
            }
            for one in entries
        ]
        as_json({"folder": str(opened.folder), "entries": rows})
        return
    table(
        ["key", "graph", "weights", "builder", "runs on", "precision", "profile", "size", "last use"],
        [
            (
                one.key[:12],
                f"{one.sidecar['graph']} {one.sidecar['parts']['graph'][:8]}",
                one.sidecar["parts"]["weights"][:8],
                f"{one.sidecar['target']} {one.sidecar['builder']}",
                one.sidecar["compute_capability"],
                one.sidecar["parts"]["precision"],
                one.sidecar["parts"]["profile"],
                megabytes(one.nbytes),
                f"{one.used:%Y-%m-%d %H:%M}",
            )
            for one in entries
        ],
        left=7,
    )
    click.echo(f"{len(entries)} engines, {megabytes(sum(one.nbytes for one in entries))} in {opened.folder}", err=True)


@cache.command("rm")
@click.argument("keys", metavar="KEY...", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="Remove all of them.")
@CACHE
def cache_rm(keys: tuple[str, ...], all_: bool, cache_folder: str | None) -> None:
    """Remove engines by the beginnings of their keys."""
    from e3d_deploy.errors import ConfigError

    if bool(keys) == all_:
        raise ConfigError("give keys, or --all")
    opened = open_cache(cache_folder)
    for key in opened.keys() if all_ else [opened.matching(prefix) for prefix in keys]:
        opened.remove(key)
        click.echo(key)


@cache.command("verify")
@CACHE
def cache_verify(cache_folder: str | None) -> None:
    """Hash every engine, and say which are damaged; `e3d build` uses none of those."""
    from e3d_deploy.errors import CacheError

    opened = open_cache(cache_folder)
    with working(f"hashing {opened.folder}"):
        damaged = opened.damaged()
    for key, problem in damaged.items():
        click.echo(f"{key[:12]}: {problem}")
    text = f"{len(damaged)} of {len(opened.keys())} engines are damaged"
    verdict(not damaged, text)
    if damaged:
        raise CacheError(f"{text}; `e3d cache rm {' '.join(key[:12] for key in damaged)}` removes them")


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--backend", default="auto", help="auto, onnxruntime, torch, or emulated: types that nothing here has.")
@click.option(
    "--against",
    type=click.Choice(["auto", "torch", "reference"]),
    default="auto",
    help="PyTorch, or what it computed at export; auto takes PyTorch if it is installed.",
)
@click.option("--clip", type=PATH, help="Another clip than the reference; needs PyTorch.")
@click.option("--steps", type=click.IntRange(min=1), help="Go on for so many, to see the drift grow; needs PyTorch.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads within a step.")
@click.option("--picture", type=PATH, help="Draw the drift into this PNG.")
@click.option("--json", "json_", is_flag=True, help="The report as JSON.")
def verify(
    bundle: Path,
    backend: str,
    against: str,
    clip: Path | None,
    steps: int | None,
    threads: int | None,
    picture: Path | None,
    json_: bool,
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
        report = verify_backend(opened, candidate, yardstick, given, steps=steps)
        findings = [] if report.passed else why(opened, backend, threads)
    if given is None:
        record_verification(opened, report.to_dict())
    if picture is not None:
        from e3d_deploy import plots

        picture.write_bytes(plots.drift(report))
    if json_:
        as_json({**report.to_dict(), **({} if report.passed else {"why": [one.to_dict() for one in findings]})})
    else:
        show_report(report)
        show_findings(findings)
    line = judged(report)
    verdict(report.passed, line)
    if not report.passed:
        over = not max(report.predictions[: report.steps]) <= report.budget or math.isinf(report.budget)
        where = f"step {report.worst_step + 1}" if over else f"state {report.worst_state[0]}"
        mend = "try another backend, or export the model again"
        if findings:
            first = findings[0]
            mend = f"first off is {first.layer} ({first.cause}); export again with {first.advice}"
        raise QualityError(f"{line}; furthest at {where}; {mend}")


def judged(report: "Report") -> str:
    """A report in one line: what was found of what its budget allows."""
    who = f"{report.backend} against {report.yardstick}"
    if math.isinf(report.budget):
        lost = (("SSIM", report.dssim, report.dssim_budget, ""), ("PSNR", report.dpsnr, report.dpsnr_budget, " dB"))
        words = [
            f"{name} lost {'no number' if found is None else format(found, '.1e')} of {allowed:.1e}{unit}"
            for name, found, allowed, unit in lost
            if allowed is not None
        ]
        return f"{who} in {report.precision}: {', '.join(words)}, predictions off by {report.worst:.1e}"
    state = report.worst_state[1]
    return (
        f"{who}: predictions {report.worst:.1e} of {report.budget:.1e}, states {state:.1e} of {report.state_budget:.1e}"
    )


def why(bundle: "Bundle", backend: str, threads: int | None) -> list["Finding"]:
    """What is off first in the step graph, where the libraries to look into it are there."""
    from importlib.util import find_spec

    if backend not in ("onnxruntime", "emulated") or not find_spec("onnx") or not find_spec("onnxruntime"):
        return []
    from e3d_deploy.export.why import explain

    return explain(bundle, native=backend == "onnxruntime", threads=threads)


def show_findings(findings: Sequence["Finding"]) -> None:
    """Why a bundle is over its budget."""
    if findings:
        table(
            ["first off", "layer", "cause", "step", "error", "largest", "what mends it"],
            [
                (one.node, one.layer, one.cause, one.step, f"{one.error:.1e}", f"{one.largest:.1e}", one.advice)
                for one in findings
            ],
            left=3,
        )


def show_report(report: "Report") -> None:
    """A report of `verify` as tables."""
    kinds = ["hidden", "cell", "memory"] if report.states else []
    shown = {*range(report.steps), *range(report.steps, len(report.predictions), 10), len(report.predictions) - 1}
    table(
        ["step", "saw", "prediction", *kinds],
        [
            (
                t + 1,
                "truth" if t < report.context_length else "itself",
                f"{report.predictions[t]:.1e}",
                *(f"{report.states[t][kind]:.1e}" for kind in kinds),
            )
            for t in sorted(shown)
        ],
    )
    name, state = report.worst_state
    budget, state_budget = ("–" if math.isinf(one) else f"{one:.1e}" for one in (report.budget, report.state_budget))
    table(
        [f"{report.backend} against {report.yardstick}", "largest |difference|", "budget"],
        [
            ("predictions, step by step", f"{max(report.predictions[: report.steps]):.1e}", budget),
            ("predictions, clip graph", f"{report.clip:.1e}", budget),
            ("predictions, rollout graph", f"{report.rollout:.1e}", budget),
            (f"final states, most {name}", f"{state:.1e}", state_budget),
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
@click.option(
    "--data",
    default="moving-mnist",
    metavar="SOURCE",
    help="moving-mnist, or a file or folder: the original's .npz, mnist_test_seq.npy, KTH, videos, pictures, clips.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "valid", "test"]),
    default="test",
    help="Part of the data, where it has parts.",
)
@click.option("--context", "context_length", type=click.IntRange(min=1), help="Frames to look at; else the bundle's.")
@click.option("--horizon", type=click.IntRange(min=1), help="Frames to predict; else the bundle's.")
@click.option("--backend", default="auto", help="auto, onnxruntime or torch.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads within a step.")
@click.option("--most", type=click.IntRange(min=1), help="Clips to take; else all, or 100 where they are generated.")
@click.option(
    "--convention",
    type=click.Choice(["both", "openstl", "original"]),
    default="both",
    help="Whose way to measure; docs/metrics.md tells them apart.",
)
@click.option("-o", "--output", type=PATH, help="New folder for report, table, plots and samples.")
@click.option("--samples", type=click.IntRange(min=0), default=4, help="Clips to write as pictures into the folder.")
@click.option("--lpips", "lpips_weights", type=PATH, help="Weights of LPIPS, to measure it too; nothing is downloaded.")
@click.option("--skip-bad", is_flag=True, help="Leave out what cannot be read, and say so.")
@click.option("--image-size", callback=numbers, help="Of a checkpoint of others, as for `e3d import`.")
@click.option("--patch-size", type=int, help="The same.")
@click.option("--channels", type=int, help="The same.")
@click.option("--history-length", type=click.IntRange(min=1), help="The same.")
@click.option("--json", "json_", is_flag=True, help="Everything as JSON.")
def evaluate(
    model: Path,
    data: str,
    split: "Split",
    context_length: int | None,
    horizon: int | None,
    backend: str,
    threads: int | None,
    most: int | None,
    convention: str,
    output: Path | None,
    samples: int,
    lpips_weights: Path | None,
    skip_bad: bool,
    json_: bool,
    **importing: Any,
) -> None:
    """Measure forecasts against what came, beside two baselines.

    A checkpoint of google/e3d_lstm or OpenSTL is imported on the way.
    """
    from contextlib import ExitStack

    from e3d_deploy.data.datasets import evaluation_data
    from e3d_deploy.evaluation import evaluate as measure
    from e3d_deploy.evaluation.conventions import CONVENTIONS
    from e3d_deploy.evaluation.report import write_report
    from e3d_deploy.evaluation.samples import show_sample
    from e3d_deploy.files import new_folder

    check_picture(output)
    conventions = [one for name, one in CONVENTIONS.items() if convention in ("both", name)]
    if lpips_weights is not None:
        from e3d_deploy.evaluation.lpips import lpips_convention

        conventions.append(lpips_convention(lpips_weights))
    with ExitStack() as stack:
        folder = None if output is None else stack.enter_context(new_folder(output))
        predictor = stack.enter_context(open_predictor(model, backend, threads, importing))
        config = predictor.config
        context_length = context_length or predictor.context_length
        horizon = horizon or predictor.horizon
        progress = stack.enter_context(working(f"evaluating {model} on {data}"))
        clips = evaluation_data(
            data,
            split=split,
            image_size=config.image_size,
            channels=config.channels,
            length=context_length + horizon,
            most=most or (100 if data == "moving-mnist" else None),
            skip_bad=skip_bad,
            progress=progress,
        )

        def each(number: int, clip: Any, forecast: Any) -> None:
            progress(f"clip {number} of {len(clips)}")
            if folder is not None and number <= samples:
                show_sample(folder, str(number), clip, forecast, context_length)

        found = measure(
            predictor,
            (clips[index].numpy() for index in range(len(clips))),
            context_length=context_length,
            horizon=horizon,
            conventions=conventions,
            each=each,
        )
        about = {"model": str(model), "identity": predictor.identity, "data": data, "split": split}
        if folder is not None:
            write_report(folder, found, about)
    if json_:
        as_json({**about, **found.to_dict()})
    else:
        show_evaluation(found)
    if output is not None:
        click.echo(output, err=json_)
    click.echo(
        f"{found.clips} clips of {data} ({split}), {context_length} frames given, {horizon} predicted, "
        f"by {found.backend}",
        err=True,
    )


def show_evaluation(found: "Evaluation") -> None:
    """An evaluation as tables, each below the sentence that says what its numbers are."""
    from e3d_deploy.evaluation.report import number

    for one in found.conventions:
        click.echo(f"{one.name}: {one.meaning}")
        table(["", *one.measures], [(label, *map(number, values)) for label, values in found.rows(one)])
        click.echo()


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


@main.group()
def data() -> None:
    """Look at data before a model learns from it."""


@data.command("inspect")
@click.argument("source_", metavar="SOURCE")
@click.option("--image-size", default="64x64", callback=numbers, help="Height x width that the model takes, pixels.")
@click.option("--channels", type=click.IntRange(min=1), default=1, help="Colours of a frame.")
@click.option("--length", type=click.IntRange(min=1), default=20, help="Frames of a window, context and horizon.")
@click.option("--split", type=click.Choice(["train", "valid", "test"]), default="train", help="Which one to look into.")
@click.option("--picture", type=PATH, help="Draw windows of the split into this PNG.")
@click.option("--skip-bad", is_flag=True, help="Leave out what cannot be read, and say so.")
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def inspect_data(
    source_: str,
    image_size: tuple[int, ...],
    channels: int,
    length: int,
    split: Any,
    picture: Path | None,
    skip_bad: bool,
    json_: bool,
) -> None:
    """Show what SOURCE holds: its kind, its splits, and some of its frames."""
    from e3d_deploy.data import inspect as look

    check_picture(picture)
    with working(f"reading {source_}") as progress:
        opened = look.open_splits(
            source_,
            split=split,
            image_size=image_size,
            channels=channels,
            length=length,
            skip_bad=skip_bad,
            progress=progress,
        )
        found = look.describe(opened, split, length=length)
        if picture is not None:
            picture.write_bytes(look.contact_sheet(opened, split, length=length))
    if json_:
        as_json(found)
    else:
        show_data(found)
    if picture is not None:
        click.echo(picture, err=json_)
    size = "x".join(map(str, image_size))
    next_command(f"e3d train --data {source_} --image-size {size} --channels {channels} -o runs/first")


def show_data(found: Mapping[str, Any]) -> None:
    """What `e3d data inspect` found."""
    frame, values = found["frame"], found["values"]
    table(
        [found["source"], ""],
        [
            ("kind", found["kind"]),
            ("frames", f"{frame['height']}×{frame['width']}×{frame['channels']} {frame['dtype']}"),
            ("frames/s", ", ".join(f"{rate:g}" for rate in found["frames_per_second"]) or "–"),
            (
                f"values in {values['windows']} windows of {values['split']}",
                f"{values['min']:.3f} to {values['max']:.3f}, mean {values['mean']:.3f}",
            ),
        ],
    )
    click.echo()
    columns = ["split", "clips", f"windows of {found['length']}", "frames: least", "median", "most", "held out"]
    table(
        [*columns, "skipped", "short"],
        [
            (
                name,
                one["clips"],
                one["windows"],
                *(f"{number:g}" for number in one["lengths"].values()),
                "yes" if one["held_out"] else "no",
                len(one["skipped"]),
                len(one["short"]),
            )
            for name, one in found["splits"].items()
            if "error" not in one
        ],
    )
    for name, one in found["splits"].items():
        if "error" in one:
            click.echo(f"{name}: {one['error']}")
        for what in ("skipped", "short"):
            for text in one.get(what, ()):
                click.echo(f"{name}, {what}: {text}")


@main.command()
@click.argument("bundle", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="NAME.e3d.zip", help="Archive.")
@click.option(
    "--with-engines/--without-engines", "engines", default=False, help="TensorRT plans, which run on one kind of GPU."
)
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def pack(bundle: Path, output: Path, engines: bool, overwrite: bool) -> None:
    """Pack BUNDLE as one archive; the same bundle gives the same bytes."""
    from e3d_deploy.files import sha256
    from e3d_deploy.runtime.pack import pack as pack_bundle

    with working(f"packing {bundle}") as progress:
        opened = open_bundle(bundle)
        pack_bundle(opened, output, engines=engines, overwrite=overwrite, progress=progress)
    click.echo(output)
    click.echo(f"{megabytes(output.stat().st_size)}, SHA-256 {sha256(output)}", err=True)
    if opened.manifest["engines"] and not engines:
        left = ", ".join(opened.manifest["engines"])
        click.echo(f"left out: the engines {left}; `e3d build` makes them again on the device", err=True)
    next_command(f"e3d unpack {output} -o {output.name.removesuffix('.zip').removesuffix('.e3d')}.e3d")


@main.command()
@click.argument("archive", metavar="FILE", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="NAME.e3d", help="Folder of the bundle.")
@click.option("--trust-engines", is_flag=True, help="Keep TensorRT plans: native code of whoever packed them.")
@click.option("--limit-mb", type=click.IntRange(min=1), default=2000, help="Most that may come out.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
def unpack(archive: Path, output: Path, trust_engines: bool, limit_mb: int, overwrite: bool) -> None:
    """Take FILE, which `e3d pack` wrote, apart into a bundle, after everything in it was checked."""
    from e3d_deploy.runtime.pack import unpack as unpack_bundle

    with working(f"unpacking {archive}") as progress:
        _, dropped = unpack_bundle(
            archive,
            output,
            trust_engines=trust_engines,
            overwrite=overwrite,
            most_bytes=limit_mb * 1_000_000,
            progress=progress,
        )
    click.echo(output)
    if dropped:
        click.echo(
            f"WARN dropped: the engines {', '.join(dropped)}, native code that came with an archive; build them here, "
            "or give --trust-engines if you know who packed them",
            err=True,
        )
    next_command(f"e3d verify {output}")


@main.command()
@click.argument("path", metavar="BUNDLE_OR_MODEL", type=PATH)
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def inspect(path: Path, json_: bool) -> None:
    """Show what a bundle or a model file holds."""
    from e3d_deploy.inspect import inspect as look

    found = look(path)
    if json_:
        as_json(found)
        return
    for title, rows in found.items():
        if isinstance(rows, dict) and rows and all(isinstance(row, dict) for row in rows.values()):
            columns = list(next(iter(rows.values())))
            cells = [(name, *(grouped(row.get(column)) for column in columns)) for name, row in rows.items()]
            table([title, *columns], cells)
        elif isinstance(rows, dict):
            table([title, ""], [(name, grouped(value)) for name, value in rows.items()])
        else:
            click.echo(f"{title}: {rows}")
        click.echo()


def grouped(value: object) -> str:
    """A value in a table, large numbers in groups of three digits."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def scientific(value: float | None) -> str:
    """A difference in a table."""
    return "–" if value is None else f"{value:.1e}"


@main.command()
@click.argument("one", metavar="A", type=PATH)
@click.argument("other", metavar="B", type=PATH)
@click.option("--exit-code", is_flag=True, help="End with 3 where they differ.")
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def diff(one: Path, other: Path, exit_code: bool, json_: bool) -> None:
    """Show what differs between A and B: bundles, model files, or one of each.

    Names and times at which they were made do not count.
    """
    from e3d_deploy.diff import diff as compare

    with working(f"comparing {one} with {other}"):
        found = compare(one, other)
    if json_:
        as_json(found)
    else:
        show_difference(found)
    differs = found["differs_in"]
    line = f"{one} and {other} " + (f"differ in {', '.join(differs)}" if differs else "are the same")
    click.echo(line, err=json_)
    if differs and exit_code:
        raise QualityError(line)


def show_difference(found: Mapping[str, Any]) -> None:
    """What `e3d diff` found, as tables."""
    for name in found["differs_in"]:
        if name != "weights":
            rows = [(key, *(grouped(value)[:60] for value in pair)) for key, pair in found[name].items()]
            table([name, "A", "B"], rows, left=3)
            click.echo()
    weights = found["weights"]
    for text, names in (("in A alone", weights["only_a"]), ("in B alone", weights["only_b"])):
        if names:
            click.echo(f"weights {text}: {', '.join(names)}")
    if weights["shapes"]:
        table(["weights", "A", "B"], [(name, *pair) for name, pair in weights["shapes"].items()], left=3)
    if weights["largest"]:
        table(
            [f"the {len(weights['largest'])} weights that changed most", "shape", "max |Δ|", "‖Δ‖ / ‖A‖"],
            [
                (
                    row["name"],
                    row["shape"],
                    *("–" if row[key] is None else f"{row[key]:.1e}" for key in ("max_abs", "relative")),
                )
                for row in weights["largest"]
            ],
        )
    click.echo(f"weights: {weights['same']} the same, {weights['changed']} changed")
    for reason in sorted(set(found["not_compared"].values())):
        names = [name for name, why in found["not_compared"].items() if why == reason]
        click.echo(f"not compared, {reason}: {', '.join(names)}")


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
