"""One step, ours on each backend beside what else one could run: same weights, same frames, same threads.

    python -m benchmarks.peers [--size full|demo] [--semantics paper|google] [--threads 1] [--no-low]

Peers are PyTorch eager, torch.compile, and torch.onnx.export of the same step, with nothing done to it, in ONNX
Runtime and in OpenVINO. The sides take turns in one process, on a full ring, each fed with its own states. Our backend
torch-compiled is left out: torch.compile of the model is the peer here, and ours was not timed on this processor.

Predictions before it was measured: ours twice as fast as eager and 1.1 times the best peer, as a quarter of the
products of a convolution is gone and ONNX Runtime has blocked kernels for the 2D ones alone; int8 gains little on a
processor without its instructions. Measured: 97 GFLOP/s in the convolutions of the full-size step, all that a core
with AVX2 has, and 45 % of its time in the recall, which PyTorch computes as fast; so that what is left to gain in
float32 is less arithmetic. benchmarks/NOTES.md says what was tried.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import openvino
import torch
from numpy.typing import NDArray

from benchmarks.common import compare, save
from benchmarks.naive import NaiveStep, naive_export
from e3d_deploy import checkpoint, contract
from e3d_deploy.config import ModelConfig, Semantics
from e3d_deploy.demo.tour import MODEL
from e3d_deploy.errors import E3DError
from e3d_deploy.export.bundle import export
from e3d_deploy.model import E3DLSTM
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.protocol import initial_arrays
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.rollout import rollout
from e3d_deploy.runtime.verify import quality_lost

Arrays = dict[str, NDArray[Any]]
Step = Callable[[NDArray[np.float32], Any], tuple[NDArray[np.float32], Any]]
LOW = ("int8", "bf16")


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


def naive_onnxruntime(file: Path, threads: int) -> Step:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def step(frame: NDArray[np.float32], state: Arrays) -> tuple[NDArray[np.float32], Arrays]:
        return split(dict(zip(names, session.run(names, {contract.FRAME: frame, **state}), strict=True)))

    return step


def naive_openvino(file: Path, threads: int) -> Step:
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(file, "CPU", settings)

    def step(frame: NDArray[np.float32], state: Arrays) -> tuple[NDArray[np.float32], Arrays]:
        found = compiled({contract.FRAME: frame, **state})
        return split({port.any_name: value for port, value in found.items()})

    return step


def compiled_torch(model: E3DLSTM) -> Step:
    module = torch.compile(NaiveStep(model).eval())
    names = [tensor.name for tensor in contract.states(model.config)]

    @torch.inference_mode()
    def step(frame: NDArray[np.float32], state: Arrays) -> tuple[NDArray[np.float32], Arrays]:
        tensors = [torch.from_numpy(state[name]) for name in names]
        prediction, *states = module(torch.from_numpy(frame), *tensors)
        return prediction.numpy(), {name: one.numpy() for name, one in zip(names, states, strict=True)}

    return step


def split(outputs: Arrays) -> tuple[NDArray[np.float32], Arrays]:
    prediction = outputs.pop(contract.PREDICTION)
    return prediction, {name.removeprefix(contract.NEXT): value for name, value in outputs.items()}


def sides(source: Path, folder: Path, threads: int, low: bool, skipped: dict[str, str]) -> Iterator[Side]:
    """The yardstick first, then peers, then ours."""
    bundle = Bundle.open(export(source, folder / "fp32.e3d"))
    config = bundle.config
    eager = open_backend(bundle, "torch", threads=threads)
    yield Side("PyTorch eager", "fp32", eager.step, eager.initial_state)

    def initial() -> Arrays:
        return initial_arrays(config, 1)

    yield Side("torch.compile", "fp32", compiled_torch(checkpoint.load(source)), initial)
    naive_export(checkpoint.load(source), folder / "naive.onnx")
    yield Side("naive in ONNX Runtime", "fp32", naive_onnxruntime(folder / "naive.onnx", threads), initial)
    yield Side("naive in OpenVINO", "fp32", naive_openvino(folder / "naive.onnx", threads), initial)
    for name in ("onnxruntime", "openvino"):
        ours = open_backend(bundle, name, threads=threads)
        yield Side(f"ours in {name}", "fp32", ours.step, ours.initial_state)
    for policy in LOW if low else ():
        try:
            typed = Bundle.open(export(source, folder / f"{policy}.e3d", precision=policy))
        except E3DError as error:
            skipped[policy] = str(error)
            continue
        for name in ("onnxruntime", "openvino"):
            if name == "openvino" and policy == "bf16" and "BF16" not in capabilities():
                skipped["bf16 in openvino"] = "this processor has no bfloat16, OpenVINO computes it in float32"
                continue
            try:
                ours = open_backend(typed, name, threads=threads)
            except E3DError as error:
                skipped[f"{policy} in {name}"] = str(error)
                continue
            yield Side(f"ours in {name}", policy, ours.step, ours.initial_state)


def capabilities() -> list[str]:
    return list(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


@click.command()
@click.option("--size", type=click.Choice(["full", "demo"]), default="full", show_default=True)
@click.option("--semantics", type=click.Choice(["paper", "google"]), default="paper", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option(
    "--low/--no-low", default=True, show_default=True, help="Low precisions too, which take minutes to export."
)
@click.option("--rounds", default=7, show_default=True)
def main(size: str, semantics: Semantics, threads: int, low: bool, rounds: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = MODEL
        if size == "full" or semantics != "paper":
            config = ModelConfig() if size == "full" else checkpoint.load(MODEL).config
            source = folder / "model.safetensors"
            checkpoint.save(E3DLSTM(replace(config, semantics=semantics)), source)
        found = list(sides(source, folder, threads, low, skipped))
        reference = Bundle.open(folder / "fp32.e3d").reference()
        clip = reference["frames"]
        for side in found:
            side.roll(clip, 10)
        rounding = Bundle.open(folder / "fp32.e3d").manifest.rounding.predictions

    def stepping(side: Side) -> Callable[[], None]:
        frame = np.ascontiguousarray(clip[:1])

        def once() -> None:
            _, side.state = side.step(frame, side.state)

        return once

    labels = [f"{side.name}, {side.precision}" for side in found]
    times = compare(dict(zip(labels, map(stepping, found), strict=True)), rounds=rounds, calls=5)
    yardstick = np.concatenate(found[0].predictions)
    rows = []
    for label, side in zip(labels, found, strict=True):
        predictions = np.concatenate(side.predictions)
        lost = quality_lost(yardstick[-10:], predictions[-10:], clip[-10:])
        rows.append(
            {
                "side": side.name,
                "precision": side.precision,
                "median_ms": times[label]["median_ms"],
                "speedup_over_eager": times[label].get(f"speedup_over_{labels[0]}", 1.0),
                "range": times[label].get("range", [1.0, 1.0]),
                "max_abs_difference": float(np.abs(predictions - yardstick).max()),
                "dssim": lost.get("ssim"),
            }
        )
    peers = rows[1:4]
    best_peer = min(peers, key=lambda row: row["median_ms"])
    ours = min((row for row in rows[4:] if row["precision"] == "fp32"), key=lambda row: row["median_ms"])
    result = {
        "what": "one step, ring full, frame and states in, prediction and next states out, on the host",
        "size": size,
        "semantics": semantics,
        "threads": threads,
        "rows": rows,
        "best_peer": best_peer["side"],
        "best_of_ours": ours["side"],
        "ours_over_best_peer": round(ours["speedup_over_eager"] / best_peer["speedup_over_eager"], 3),
        "rounding_of_pytorch": rounding,
        "skipped": skipped,
        "openvino": openvino.__version__,
    }
    memory = "" if semantics == "paper" else f"_{semantics}"
    save(f"peers_{size}{memory}_{threads}", result, threads=threads)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
