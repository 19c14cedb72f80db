"""One step, ours on each backend beside what else one could run: same weights, same frames, same threads.

    taskset -c 0 python -m benchmarks.peers [--size full|demo] [--semantics paper|google] [--threads 1]
        [--precision bf16]… [--without torch.compile]… [--folder exports]

Peers are PyTorch eager, torch.compile, and torch.onnx.export of the same step, with nothing done to it, in ONNX
Runtime and in OpenVINO, each with the switches that cost nothing: autocast to bfloat16 in PyTorch, the precision hint
in OpenVINO, and int8 by the engine's own tool. Those are ONNX Runtime's static quantiser and NNCF, which
`pip install nncf` brings; without it that row is skipped. OpenVINO left alone, as `AUTO` with no settings, takes a
thread for each core that the process may use, so that it is timed only where these are as many as `--threads`.

The sides take turns in one process, on a full ring, each fed with its own states. Accuracy is measured over a forecast
of the reference clip, which no calibration saw. At full size with the paper's semantics the weights are the trained
ones of a checkout, else random ones, which amplify rounding. Exports take minutes; with `--folder` they are kept, and
used again by the next run. Writes benchmarks/results/peers_SIZE_THREADS_PROCESSOR.json.

Predictions before it was measured on a processor with AVX2: ours twice as fast as eager and 1.1 times the best peer,
as a quarter of the products of a convolution is gone and ONNX Runtime has blocked kernels for the 2D ones alone; int8
gains little on a processor without its instructions. Measured: 97 GFLOP/s in the convolutions of the full-size step,
all that a core with AVX2 has, and 45 % of its time in the recall, which PyTorch computes as fast; so that what is left
to gain in float32 is less arithmetic. benchmarks/NOTES.md says what was tried.
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
from benchmarks.common import CLOCK_HELP, CLOCKS, FULL, compare, processor_kind, save
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
"""A step, and what returns its first state."""


class Side:
    """Something that steps, and the state that it is in."""

    def __init__(self, name: str, precision: str, step: Step, initial: Callable[[], Any]) -> None:
        self.name, self.precision, self.step, self.initial = name, precision, step, initial
        self.state = initial()
        self.predictions: list[NDArray[np.float32]] = []

    def initial_state(self, batch: int | None = None) -> Any:
        return self.initial()

    def roll(self, clip: NDArray[np.float32], context_length: int) -> None:
        """Through a clip [T, C, H, W] as in a forecast; keeps what was predicted."""
        for prediction, state in rollout(self, clip[None, :context_length], len(clip) - 1):
            self.predictions.append(np.array(prediction))
            self.state = state


@cache
def code() -> str:
    """Return a hash of the package, so that bundles of another version of it are not timed as those of this one."""
    files = sorted(Path(e3d_deploy.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


class Exports:
    """Bundles and naive exports of one model in a folder of its own; what is there already is used again."""

    def __init__(self, source: Path, folder: Path, threads: int) -> None:
        self.source, self.threads = source, threads
        self.folder = folder / sha256(source)[:12]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.refused: dict[str, E3DError] = {}

    def model(self) -> E3DLSTM:
        return checkpoint.load(self.source)

    def bundle(self, policy: str) -> Bundle:
        """Return a bundle of ours in a precision; a precision that was refused is not tried again."""
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
        """Return the file of a name; write it and those beside it, whole or not at all, if it is missing."""
        if not (path := self.folder / name).exists():
            with tempfile.TemporaryDirectory(dir=self.folder) as new:
                write(Path(new) / name)
                for file in Path(new).iterdir():
                    file.rename(self.folder / file.name)
        return path


def candidates(exports: Exports, threads: int) -> Iterator[tuple[str, str, Callable[[], Opened]]]:
    """Yield name, precision and opener of each side: the yardstick first, then peers, then ours."""
    config = exports.bundle("fp32").config
    alone = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
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
            raise BackendUnavailable("this processor has no bfloat16, OpenVINO computes it in float32")
        return naive_openvino(exports.naive, **alone, INFERENCE_PRECISION_HINT="bf16"), zeros

    def left_alone() -> Opened:
        if len(os.sched_getaffinity(0)) != threads:
            raise BackendUnavailable("it takes all cores that the process may use; run under taskset with --threads")
        return naive_openvino(exports.naive, "AUTO"), zeros

    def quantised() -> Opened:
        return naive_onnxruntime(exports.naive_int8("naive.int8.onnx", quantize_for_onnxruntime), threads), zeros

    def by_nncf() -> Opened:
        file = exports.naive_int8("naive.int8.xml", quantize_for_openvino)
        # The hint is what OpenVINO takes unasked for the layers that stay in float.
        return naive_openvino(file, **alone, INFERENCE_PRECISION_HINT=low), zeros

    def ours(policy: str, name: str) -> Opened:
        if (policy, name, low) == ("bf16", "openvino", "f32"):
            raise BackendUnavailable("this processor has no bfloat16, OpenVINO computes it in float32")
        backend = open_backend(exports.bundle(policy), name, threads=threads)
        return backend.step, backend.initial_state

    yield "PyTorch eager", "fp32", eager
    yield "PyTorch eager, autocast", "bf16", autocast
    yield "torch.compile", "fp32", lambda: (compiled_torch(exports.model(), autocast=False), zeros)
    yield "torch.compile, autocast", "bf16", lambda: (compiled_torch(exports.model(), autocast=True), zeros)
    yield "naive in ONNX Runtime", "fp32", lambda: (naive_onnxruntime(exports.naive, threads), zeros)
    fp32 = partial(naive_openvino, **alone, INFERENCE_PRECISION_HINT="f32")
    yield "naive in OpenVINO", "fp32", lambda: (fp32(exports.naive), zeros)
    yield "naive in OpenVINO, hint", "bf16", hinted
    yield "naive in OpenVINO, left alone", {"f32": "fp32"}.get(low, low), left_alone
    yield "naive in ONNX Runtime, its quantiser", "int8", quantised
    yield "naive in OpenVINO, NNCF", "int8", by_nncf
    for policy in PRECISIONS:
        for name in OURS:
            yield f"ours in {name}", policy, partial(ours, policy, name)


def sides(
    exports: Exports, threads: int, precisions: tuple[str, ...], without: tuple[str, ...], skipped: dict[str, str]
) -> Iterator[Side]:
    """Open the yardstick and the sides that are asked for; note why others were skipped."""
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
    def once() -> None:
        _, side.state = side.step(frame, side.state)

    return once


def rows(found: list[Side], times: dict[str, Any], clip: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Return time and accuracy of each side for JSON; the first is the yardstick of both."""
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
    """Return a model file, and the folder in `folder` for its exports."""
    place = folder.resolve() / f"{size}_{semantics}"
    place.mkdir(parents=True, exist_ok=True)
    if semantics == "paper":
        return (FULL if size == "full" else MODEL), place
    torch.manual_seed(0)
    config = ModelConfig() if size == "full" else checkpoint.load(MODEL).config
    checkpoint.save(E3DLSTM(replace(config, semantics=semantics)), path := place / "model.safetensors")
    return path, place


@click.command()
@click.option("--size", type=click.Choice(["full", "demo"]), default="full", show_default=True)
@click.option("--semantics", type=click.Choice(["paper", "google"]), default="paper", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--precision", "precisions", type=click.Choice(PRECISIONS), multiple=True, help="Only rows in these.")
@click.option(
    "--without",
    multiple=True,
    metavar="NAME",
    help="Leave out rows with this in their name, such as 'torch.compile' or 'NNCF, int8'.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Keep exports here, and use those that are here."
)
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True, help=CLOCK_HELP)
@click.option("--rounds", default=7, show_default=True)
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
