"""Time and accuracy of one step, compared with peers: other ways to run the same weights on the same frames.

    taskset -c 0 python -m benchmarks.peers [--size full|demo] [--semantics paper|google] [--threads 1]
        [--precision bf16]… [--without torch.compile]… [--folder exports]

The peers are PyTorch eager, torch.compile, and the naive export (the step from torch.onnx.export without any
optimisation) in ONNX Runtime and in OpenVINO. Each peer also runs with the options that a user can switch on without
further work: autocast to bfloat16 in PyTorch, the precision hint in OpenVINO, and int8 by the library's own tool. These
tools are ONNX Runtime's static quantiser and NNCF (`pip install nncf`); without NNCF its row is skipped. One row runs
OpenVINO with the device `AUTO` and no settings. OpenVINO then uses one thread per core that the process may use, so
this row is timed only if the number of these cores equals `--threads`.

The sides are timed in turn in one process, with the same threads and full rings; each side is fed its own states.
Accuracy is measured over a forecast of the reference clip, which no calibration uses. With the paper's semantics the
weights are trained ones: those of the checkout at full size, those of the demo otherwise. With `google` they are random
and amplify rounding. Exports take minutes; `--folder` keeps them for the next run. Writes
benchmarks/results/peers_SIZE_THREADS_PROCESSOR.json, or peers_SIZE_google_THREADS_PROCESSOR.json.

Predictions, written before the first run on a processor with AVX2: ours is twice as fast as eager and 1.1 times as fast
as the best peer, because our convolutions take a quarter fewer products, and ONNX Runtime has blocked kernels only for
2D convolutions; int8 gains little on a processor without int8 instructions. Measured: the convolutions of the full-size
step reach 97 GFLOP/s, the peak of a core with AVX2, and 45 % of the time is the recall, which PyTorch computes equally
fast. So in float32 only less arithmetic can make the step faster. benchmarks/NOTES.md lists the trials.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import openvino
import torch
from numpy.typing import NDArray

import e3d_deploy
from benchmarks.common import CLOCK_HELP, CLOCKS, FULL, SEMANTICS, compare, processor_kind, save, size_option
from benchmarks.naive import (
    Step,
    autocast_torch,
    compiled_torch,
    naive_export,
    naive_onnxruntime,
    naive_openvino,
    openvino_has_bf16,
)
from benchmarks.naive_int8 import CONTEXT, Samples, quantize_for_onnxruntime, quantize_for_openvino, training_clips
from benchmarks.peer_tables import best
from e3d_deploy import checkpoint
from e3d_deploy.config import ModelConfig, Semantics
from e3d_deploy.demo.exhibits import MODEL
from e3d_deploy.errors import BackendUnavailable, E3DError
from e3d_deploy.export.bundle import export
from e3d_deploy.files import sha256
from e3d_deploy.model import E3DLSTM
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.protocol import initial_arrays
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.rollout import rollout
from e3d_deploy.runtime.verify import quality_lost

PRECISIONS = ("fp32", "bf16", "int8")
OURS = ("onnxruntime", "openvino", "torch-compiled")
Opened = tuple[Step, Callable[[], Any]]
"""Step of a side, and a function that returns its initial state."""


class Side:
    """One side of the comparison: a way to step the network, with its current state."""

    def __init__(self, name: str, precision: str, step: Step, initial: Callable[[], Any]) -> None:
        self.name, self.precision, self.step, self.initial = name, precision, step, initial
        self.state = initial()
        self.predictions: list[NDArray[np.float32]] = []

    def initial_state(self, batch: int | None = None) -> Any:
        return self.initial()

    def roll(self, clip: NDArray[np.float32], context_length: int) -> None:
        """Roll through a clip [T, C, H, W] and store the predictions and the last state.

        The first `context_length` frames are true frames; after them each step is fed its last prediction.
        """
        for prediction, state in rollout(self, clip[None, :context_length], len(clip) - 1):
            self.predictions.append(np.array(prediction))
            self.state = state


@cache
def code() -> str:
    """Return a hash of the package's code, so that kept bundles of another version are not reused."""
    files = sorted(Path(e3d_deploy.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


class Exports:
    """Bundles and naive exports of one model, kept in a folder for this model and reused."""

    def __init__(self, source: Path, folder: Path, threads: int) -> None:
        self.source, self.threads = source, threads
        self.folder = folder / sha256(source)[:12]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.refused: dict[str, E3DError] = {}

    def model(self) -> E3DLSTM:
        return checkpoint.load(self.source)

    def bundle(self, policy: str) -> Bundle:
        """Return our bundle in a precision policy.

        Raises:
            E3DError: the export fails; later calls raise the same error without another export.
        """
        if policy in self.refused:
            raise self.refused[policy]
        path = self.folder / f"{policy}-{code()}.e3d"
        try:
            return Bundle.open(path if path.exists() else export(self.source, path, precision=policy))
        except E3DError as error:
            self.refused[policy] = error
            raise

    @property
    def naive(self) -> Path:
        return self._kept("naive.onnx", lambda path: naive_export(self.model(), path))

    def naive_int8(self, name: str, quantize: Callable[[Path, Path, Samples], None]) -> Path:
        def write(path: Path) -> None:
            config = checkpoint.load(self.source).config
            quantize(self.naive, path, Samples(self.naive, config, training_clips(config), self.threads))

        return self._kept(name, write)

    def _kept(self, name: str, write: Callable[[Path], None]) -> Path:
        """Return the path of a file in the folder; write the file first if it is missing.

        Args:
            write: writes the file to a path, and may write others next to it; if it fails, none of them is kept.
        """
        if not (path := self.folder / name).exists():
            with tempfile.TemporaryDirectory(dir=self.folder) as new:
                write(Path(new) / name)
                for file in Path(new).iterdir():
                    file.rename(self.folder / file.name)
        return path


def candidates(exports: Exports, threads: int) -> Iterator[tuple[str, str, Callable[[], Opened]]]:
    """Yield name, precision and opener of each side: PyTorch eager (the reference), then other peers, then ours."""
    config = exports.bundle("fp32").config
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    low = "bf16" if openvino_has_bf16() else "f32"
    zeros = partial(initial_arrays, config, 1)

    def eager() -> Opened:
        backend = open_backend(exports.bundle("fp32"), "torch", threads=threads)
        return backend.step, backend.initial_state

    def autocast() -> Opened:
        model = exports.model().eval()
        return autocast_torch(model), partial(model.initial_state, 1)

    def hinted() -> Opened:
        if low != "bf16":
            raise BackendUnavailable("this processor has no bfloat16; OpenVINO would use float32")
        return naive_openvino(exports.naive, **settings, INFERENCE_PRECISION_HINT="bf16"), zeros

    def with_defaults() -> Opened:
        if len(os.sched_getaffinity(0)) != threads:
            raise BackendUnavailable("it uses all cores of the process; limit these to --threads cores with taskset")
        return naive_openvino(exports.naive, "AUTO"), zeros

    def quantised() -> Opened:
        return naive_onnxruntime(exports.naive_int8("naive.int8.onnx", quantize_for_onnxruntime), threads), zeros

    def by_nncf() -> Opened:
        file = exports.naive_int8("naive.int8.xml", quantize_for_openvino)
        # This hint is OpenVINO's default for the layers that stay in float.
        return naive_openvino(file, **settings, INFERENCE_PRECISION_HINT=low), zeros

    def ours(policy: str, name: str) -> Opened:
        if (policy, name, low) == ("bf16", "openvino", "f32"):
            raise BackendUnavailable("this processor has no bfloat16; OpenVINO would use float32")
        backend = open_backend(exports.bundle(policy), name, threads=threads)
        return backend.step, backend.initial_state

    yield "PyTorch eager", "fp32", eager
    yield "PyTorch eager, autocast", "bf16", autocast
    yield "torch.compile", "fp32", lambda: (compiled_torch(exports.model(), autocast=False), zeros)
    yield "torch.compile, autocast", "bf16", lambda: (compiled_torch(exports.model(), autocast=True), zeros)
    yield "naive in ONNX Runtime", "fp32", lambda: (naive_onnxruntime(exports.naive, threads), zeros)
    fp32 = partial(naive_openvino, **settings, INFERENCE_PRECISION_HINT="f32")
    yield "naive in OpenVINO", "fp32", lambda: (fp32(exports.naive), zeros)
    yield "naive in OpenVINO, hint", "bf16", hinted
    yield "naive in OpenVINO, left alone", {"f32": "fp32"}.get(low, low), with_defaults
    yield "naive in ONNX Runtime, its quantiser", "int8", quantised
    yield "naive in OpenVINO, NNCF", "int8", by_nncf
    for policy in PRECISIONS:
        for name in OURS:
            yield f"ours in {name}", policy, partial(ours, policy, name)


def sides(
    exports: Exports, threads: int, precisions: tuple[str, ...], without: tuple[str, ...], skipped: dict[str, str]
) -> Iterator[Side]:
    """Open and yield the reference and the chosen sides.

    Args:
        precisions: precisions to open.
        without: parts of labels; sides whose label contains one of them are left out.
        skipped: receives the reason for each side that cannot be opened, by label.
    """
    for number, (name, precision, opened) in enumerate(candidates(exports, threads)):
        label = f"{name}, {precision}"
        if number and (precision not in precisions or any(part in label for part in without)):
            continue
        click.echo(label, err=True)
        try:
            yield Side(name, precision, *opened())
        except E3DError as error:
            skipped[label] = str(error)


def stepping(side: Side, frame: NDArray[np.float32]) -> Callable[[], None]:
    """Return a function that steps a side with the same frame each time."""

    def once() -> None:
        _, side.state = side.step(frame, side.state)

    return once


def rows(found: list[Side], times: dict[str, Any], clip: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Return time and accuracy of each side for JSON, both compared with the first side."""
    yardstick = np.concatenate(found[0].predictions)
    made = []
    for side, time in zip(found, times.values(), strict=True):
        predictions = np.concatenate(side.predictions)
        lost = quality_lost(yardstick[CONTEXT - 1 :], predictions[CONTEXT - 1 :], clip[CONTEXT:])
        made.append(
            {
                "side": side.name,
                "precision": side.precision,
                "median_ms": time["median_ms"],
                "speedup_over_eager": time.get("speedup_over_PyTorch eager, fp32", 1.0),
                "range": time.get("range", [1.0, 1.0]),
                "max_abs_difference": float(np.abs(predictions - yardstick).max()),
                "dssim": lost.get("ssim"),
                "dpsnr": lost.get("psnr"),
            }
        )
    return made


def source_of(size: str, semantics: Semantics, folder: Path) -> tuple[Path, Path]:
    """Return a model file, and the subfolder of `folder` for its exports."""
    place = folder.resolve() / f"{size}_{semantics}"
    place.mkdir(parents=True, exist_ok=True)
    if semantics == "paper":
        return (FULL if size == "full" else MODEL), place
    torch.manual_seed(0)
    config = ModelConfig() if size == "full" else checkpoint.load(MODEL).config
    checkpoint.save(E3DLSTM(replace(config, semantics=semantics)), path := place / "model.safetensors")
    return path, place


@click.command()
@size_option("full")
@SEMANTICS
@click.option("--threads", default=1, show_default=True, help="Number of threads.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="Measure only rows in this precision; repeatable.",
)
@click.option(
    "--without",
    multiple=True,
    metavar="NAME",
    help="Leave out rows whose name contains this, such as 'torch.compile' or 'NNCF, int8'; repeatable.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Folder in which exports are kept and reused."
)
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True, help=CLOCK_HELP)
@click.option("--rounds", default=7, show_default=True, help="Number of rounds; each side is timed once per round.")
def main(
    size: str,
    semantics: Semantics,
    threads: int,
    precisions: tuple[str, ...],
    without: tuple[str, ...],
    folder: Path | None,
    clock: str,
    rounds: int,
) -> None:
    """Compare one step of ours with other ways to run it."""
    torch.set_num_threads(threads)
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        source, place = source_of(size, semantics, folder or Path(temporary))
        exports = Exports(source, place, threads)
        found = list(sides(exports, threads, precisions or PRECISIONS, without, skipped))
        bundle = exports.bundle("fp32")
        clip, rounding = bundle.reference()["frames"], bundle.manifest.rounding.predictions
        for side in found:
            side.roll(clip, CONTEXT)
    frame = np.ascontiguousarray(clip[:1])
    turns = {f"{side.name}, {side.precision}": stepping(side, frame) for side in found}
    measured = rows(found, compare(turns, rounds=rounds, calls=5, clock=CLOCKS[clock]), clip)
    kind = processor_kind()
    result = {
        "what": "one step, ring full, frame and states in, prediction and next states out, on the host",
        "size": size,
        "semantics": semantics,
        "weights": "trained" if semantics == "paper" else "random",
        "threads": threads,
        "processor": kind,
        "clock": clock,
        "rows": measured,
        "best": best(measured),
        "rounding_of_pytorch": rounding,
        "skipped": skipped,
        "openvino": openvino.__version__,
    }
    memory = "" if semantics == "paper" else f"_{semantics}"
    save(f"peers_{size}{memory}_{threads}_{kind}", result, threads=threads)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
