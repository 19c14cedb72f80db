"""What a GPU makes of the step: first whether it is right, then how fast, beside what PyTorch does by itself.

    python -m benchmarks.gpu [--quick] [--seconds 540] [--sections NAME,...] [--batches 1,8,32] [--out FILE]

Runs from the checkout with PyTorch and NumPy alone, and uses what else is there: onnx and safetensors for bundles, and
onnxruntime-gpu, tensorrt, tensorrt_rtx with cuda-core for their backends. What is not there is skipped with its reason,
what fails is recorded and the rest goes on; the results are written after each section, to $OUT/gpu.json if OUT is set.
Weights and frames are random, by fixed seeds; the model is the full-size one, except with `--quick` on a CPU, which
runs every line that a CPU can to see that none is wrong.

Never run on a GPU so far. Predictions before it is: eager is bound by its 400 launches, and its group norm of one
group by the one multiprocessor that runs it; so our captured step is 8 times faster at batch 1, and half of what is
left at batch 32 is convolutions.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.export.ring import FORMS, RingStep, arithmetic, compiled
from e3d_deploy.model import E3DLSTM, State

FULL = ModelConfig()
TINY = ModelConfig(image_size=(16, 24), patch_size=4, hidden=(4, 6), kernel_size=3, history_length=4)
PACKAGES = (
    *("torch", "triton", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "cuda-core", "cuda-bindings"),
    *("tensorrt", "tensorrt-rtx-cu13-bindings", "nvidia-cudnn-cu13"),
)
SMI = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")
OURS = ("frozen-memory", "conv2d", "norms")
"""Rewrites of export/step.py that a step has unless its row says otherwise."""
EXACT, ROUNDING = 1e-4, 4
"""As policies.py has them: what float32 may be off, or so many times what PyTorch's own is off from float64."""


class TimeUp(BaseException):
    """The time is over; no Exception, so that nothing that guards a row catches it."""


class Bench:
    """What the sections share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.quick = torch.device(options.device), options.quick
        self.on_gpu = options.device == "cuda"
        self.config = TINY if self.quick and not self.on_gpu else FULL
        self.batches: list[int] = options.batches
        self.rounds, self.block_s = (2, 0.02) if self.quick else (5, 0.15)
        self.deadline = time.monotonic() + options.seconds
        self.file: Path = options.out
        self.results: dict[str, Any] = {"benchmark": "gpu", "skipped": {}, "failed": {}}
        torch.manual_seed(0)
        self.model = E3DLSTM(self.config).eval().requires_grad_(False).to(self.device)
        torch._dynamo.config.recompile_limit = FORMS

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(finite(self.results), indent=1) + "\n")

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Record what goes wrong within, and go on after it."""
        try:
            yield
        except (BackendUnavailable, ImportError) as error:
            self.results["skipped"][name] = first_line(error)
            print(f"{name}: skipped, {first_line(error)}", file=sys.stderr, flush=True)
        except Exception as error:
            self.results["failed"][name] = said(error)
            print(f"{name}: FAILED, {first_line(error)}", file=sys.stderr, flush=True)
            if self.on_gpu and "memory" in str(error):
                torch.cuda.empty_cache()

    def pictures(self, batch: int, count: int) -> np.ndarray:
        """uint8 [count, B, H, W, C], the same for the same numbers."""
        shape = (count, batch, *self.config.image_size, self.config.channels)
        return np.random.default_rng(batch).integers(0, 256, shape, np.uint8)

    def frames(self, batch: int, count: int) -> Tensor:
        """The same as frames [count, B, C, H, W] on the device."""
        shown = torch.from_numpy(self.pictures(batch, count)).to(self.device)
        return shown.permute(0, 1, 4, 2, 3).contiguous().float() / 255


# What is stepped


class Eager:
    """The model as it is, its history growing.

    Args:
        autocast: type of PyTorch's automatic mixed precision.
    """

    def __init__(self, bench: Bench, batch: int, precision: str, *, autocast: torch.dtype | None = None) -> None:
        self.model, self.precision, self.autocast = bench.model, precision, autocast
        self.device, self.state, self.steps = bench.device, bench.model.initial_state(batch), 0

    def step(self, frame: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            prediction, self.state = self.model.step(frame, self.state)
        self.steps += 1
        return prediction

    def states(self) -> dict[str, Tensor]:
        return rings_of(self.model.config, self.state, self.steps)


class ChannelsLastEager(Eager):
    """With weights whose channels lie together in memory."""

    def __init__(self, bench: Bench, batch: int, precision: str, *, autocast: torch.dtype | None = None) -> None:
        super().__init__(bench, batch, precision, autocast=autocast)
        self.model = copy_of(bench).to(memory_format=torch.channels_last_3d)


class NaiveCompiled:
    """The model compiled by PyTorch as it is, for a full history; it does not go on from step to step, which spares it
    the copies of states that a user would have to make."""

    def __init__(self, bench: Bench, batch: int, precision: str, *, autocast: torch.dtype | None = None) -> None:
        model, self.precision, self.on_gpu = bench.model, precision, bench.on_gpu
        self.state = full_state(bench, batch)
        for tensor in torch.utils._pytree.tree_leaves(
            self.state
        ):  # which a graph of PyTorch's else copies at each call
            torch._dynamo.mark_static_address(tensor)
        kind = bench.device.type

        def step(frame: Tensor, state: State) -> tuple[Tensor, State]:
            with torch.autocast(kind, autocast, enabled=autocast is not None):
                return model.step(frame, state)

        self.compiled = torch.compile(step, dynamic=False, **compiler(bench, "max-autotune"))

    def step(self, frame: Tensor) -> Tensor:
        if self.on_gpu:
            torch.compiler.cudagraph_mark_step_begin()
        prediction, _ = self.compiled(frame, self.state)
        return prediction


class Rings:
    """Our step over rings of past cells, between two sets of states.

    Args:
        captured: as one CUDA graph for each of the two sets; on a CPU it runs as it is.
        mode: of torch.compile; None to leave it as it is.
        full: every ring is full from the first step on.
        options: of `RingStep`.
    """

    def __init__(
        self,
        bench: Bench,
        batch: int,
        precision: str,
        *,
        captured: bool = True,
        mode: str | None = None,
        full: bool = False,
        **options: Any,
    ) -> None:
        self.config, self.precision = bench.config, precision
        ring = RingStep(bench.model, precision=precision, **options).to(bench.device)
        self.ring: Callable[..., Tensor] = partial(compiled(ring, **compiler(bench, mode)) if mode else ring, full=full)
        self.names = [tensor.name for tensor in contract.states(self.config, batch)]
        self.sets = [initial(self.config, batch, bench.device) for _ in range(2)]
        if mode and not captured:  # else PyTorch makes no graph of what writes into its arguments
            for tensor in (*self.sets[0], *self.sets[1]):
                torch._dynamo.mark_static_address(tensor)
        self.frame, self.side = bench.frames(batch, 1)[0], 0
        self.graphs: list[tuple[torch.cuda.CUDAGraph, Tensor]] = []
        if captured and bench.on_gpu:
            self.capture()
            for one, fresh in zip(self.sets[0], initial(self.config, batch, bench.device), strict=True):
                one.copy_(fresh)

    def capture(self) -> None:
        with arithmetic(self.precision):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):  # also tries convolutions, and compiles
                    for side in (0, 1):
                        self.ring(self.frame, self.sets[side], self.sets[1 - side])
            torch.cuda.current_stream().wait_stream(stream)
            pool = torch.cuda.graph_pool_handle()
            for side in (0, 1):
                graph = torch.cuda.CUDAGraph()
                # The outer one, for a capture that fails leaves the thread with its stream.
                with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=pool):
                    prediction = self.ring(self.frame, self.sets[side], self.sets[1 - side])
                self.graphs.append((graph, prediction))

    def step(self, frame: Tensor) -> Tensor:
        side, self.side = self.side, 1 - self.side
        if self.graphs:
            self.frame.copy_(frame)
            graph, prediction = self.graphs[side]
            graph.replay()
            return prediction
        return self.ring(frame, self.sets[side], self.sets[1 - side])

    def states(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.sets[self.side], strict=True))


Stepper = Eager | NaiveCompiled | Rings
Rows = Mapping[str, Callable[[Bench, int], Stepper]]
"""By name, what makes each for so many streams."""
BF16, FP16 = torch.bfloat16, torch.float16


def ring(precision: str, **options: Any) -> Callable[[Bench, int], Stepper]:
    """`Rings` of our rewrites unless `options` say otherwise."""
    return lambda bench, batch: Rings(bench, batch, precision, **{"rewrites": OURS, **options})


EAGER: Rows = {
    "eager fp32": lambda bench, batch: Eager(bench, batch, "fp32"),
    "eager tf32": lambda bench, batch: Eager(bench, batch, "tf32"),
    "autocast bf16": lambda bench, batch: Eager(bench, batch, "bf16", autocast=BF16),
    "autocast fp16": lambda bench, batch: Eager(bench, batch, "fp16", autocast=FP16),
    "autocast bf16, channels last": lambda bench, batch: ChannelsLastEager(bench, batch, "bf16", autocast=BF16),
}
CAPTURED: Rows = {
    "ring tf32, not captured": ring("tf32", captured=False),
    "ring fp32": ring("fp32"),
    "ring tf32": ring("tf32"),
    "ring tf32, channels last": ring("tf32", channels_last=True),
    "ring tf32, no rewrite": ring("tf32", rewrites=()),
    "ring bf16": ring("bf16"),
    "ring bf16, channels last": ring("bf16", channels_last=True),
    "ring fp16, channels last": ring("fp16", channels_last=True),
    "ring bf16, conv2d alone": ring("bf16", channels_last=True, rewrites=("conv2d",)),
    "ring bf16, norms alone": ring("bf16", rewrites=("norms",)),
    "ring bf16, no rewrite": ring("bf16", rewrites=()),
}
UNMASKED: Rows = {"ring bf16, channels last, no mask": ring("bf16", channels_last=True, full=True)}
"""Right once the ring is full, and so not compared from the first frame on."""
ALONE = "max-autotune-no-cudagraphs"
COMPILED: Rows = {
    "torch.compile max-autotune tf32": lambda bench, batch: NaiveCompiled(bench, batch, "tf32"),
    "ring bf16, compiled and captured": ring("bf16", channels_last=True, mode=ALONE),
    "torch.compile max-autotune bf16": lambda bench, batch: NaiveCompiled(bench, batch, "bf16", autocast=BF16),
    "ring tf32, compiled and captured": ring("tf32", mode=ALONE),
    "ring fp32, compiled and captured": ring("fp32", mode=ALONE),
    "ring bf16, torch.compile max-autotune": ring("bf16", channels_last=True, captured=False, mode="max-autotune"),
}
BASE = "eager tf32"
"""What the others are compared with in speed."""


def compiler(bench: Bench, mode: str) -> dict[str, Any]:
    """How torch.compile is to work; on a CPU it only traces, as kernels there take minutes."""
    return {"mode": mode} if bench.on_gpu else {"backend": "eager"}


def copy_of(bench: Bench) -> E3DLSTM:
    model = E3DLSTM(bench.config).eval().requires_grad_(False).to(bench.device)
    model.load_state_dict(bench.model.state_dict())
    return model


def initial(config: ModelConfig, batch: int, device: torch.device) -> list[Tensor]:
    """The states before the first frame, in the order of the contract."""
    states = []
    for tensor in contract.states(config, batch):
        fill = 1 if tensor.name == "written" else 0
        states.append(torch.full(tensor.shape, fill, dtype=getattr(torch, tensor.dtype), device=device))
    return states


def full_state(bench: Bench, batch: int) -> State:
    """A state of the model whose history is full."""
    state = bench.model.initial_state(batch)
    for frame in bench.frames(batch, bench.config.history_length):
        _, state = bench.model.step(frame, state)
    return state


def rings_of(config: ModelConfig, state: State, steps: int) -> dict[str, Tensor]:
    """A state of the model as the contract has it."""
    K, batch = config.history_length, len(state.memory)
    written = contract.written_after(steps, K)
    names = (tensor.name for tensor in contract.states(config, batch))
    tensors = dict(zip(names, initial(config, batch, state.memory.device), strict=True))
    tensors["written"].fill_(written)
    tensors |= {"memory": state.memory, "window": state.window}
    for layer, entries in enumerate(state.history):
        tensors |= {f"hidden.{layer}": state.hidden[layer], f"cell.{layer}": state.cell[layer]}
        tensors[f"history.{layer}"][:, contract.slots(written, K)] = torch.stack([one.float() for one in entries], 1)
    return tensors


# The sections


def environment(bench: Bench, into: dict[str, Any]) -> None:
    into |= {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "versions": {package: one for package in PACKAGES if (one := version_of(package))},
        "model": bench.config.to_dict(),
        "gflop_per_step": flop(bench.model, bench.config.history_length) / 1e9,
    }
    if bench.on_gpu:
        properties = torch.cuda.get_device_properties(0)
        into |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nvidia_smi": clocks(),
        }


def correctness(bench: Bench, into: dict[str, Any], rows: Rows, batch: int) -> None:
    """Every row against eager float32 with TF32 off, beyond a full ring; for float32 also whether that is near enough,
    by what PyTorch itself is off from float64."""
    frames = bench.frames(batch, max(12, bench.config.history_length + 4))
    yardstick = Eager(bench, batch, "fp32")
    expected = rolled(yardstick, frames)
    states = yardstick.states()
    into["rounding"] = rounding = off_from_doubles(bench, frames, expected, states)
    for name, make in rows.items():
        with bench.guard(f"correctness of {name}"):
            row = make(bench, batch)
            if isinstance(row, NaiveCompiled):
                into[name] = {"predictions": one_step(bench, row, batch), "steps": 1}
                continue
            predictions = rolled(row, frames)
            found: dict[str, Any] = {
                "predictions_12": distance(predictions[:12], expected[:12]),
                "predictions": distance(predictions, expected),
                "states": by_kind(states, row.states()),
                "steps": len(frames),
            }
            worst = float(np.max([found["predictions"], *found["states"].values()]))
            if row.precision == "fp32":
                found |= {"budget": max(EXACT, ROUNDING * max(rounding.values()))}
            found["passed"] = worst <= found.get("budget", sys.float_info.max)
            into[name] = found


def off_from_doubles(bench: Bench, frames: Tensor, expected: Tensor, states: Mapping[str, Tensor]) -> dict[str, float]:
    """What float32 loses in these steps, of predictions and of final states."""
    exact = copy_of(bench).double()
    state, predictions = exact.initial_state(frames.shape[1]), []
    for frame in frames.double():
        prediction, state = exact.step(frame, state)
        predictions.append(prediction)
    doubles = rings_of(bench.config, state, len(frames))
    return {
        "predictions": distance(torch.stack(predictions), expected),
        "states": max(by_kind(doubles, states).values()),
    }


def rolled(row: Eager | Rings, frames: Tensor) -> Tensor:
    with arithmetic(row.precision):
        return torch.stack([row.step(frame).float().clone() for frame in frames])


def one_step(bench: Bench, row: NaiveCompiled, batch: int) -> float:
    """How far one step from a full history is off."""
    frame = bench.frames(batch, 1)[0]
    with arithmetic(row.precision):
        found = row.step(frame).float().clone()
    with arithmetic("fp32"):
        expected, _ = bench.model.step(frame, row.state)
    return distance(expected, found)


def roofline(bench: Bench, into: dict[str, Any]) -> None:
    """What this GPU can do at most: products of square matrices on random data, and a copy."""
    side = 8192 if bench.on_gpu else 256
    into["tflops"] = peaks = dict[str, float]()
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", BF16), ("fp16", FP16)):
        with bench.guard(f"roofline of {name}"), arithmetic(name):
            size = side // 2 if name == "fp32" else side
            one, other = (torch.randn(size, size, device=bench.device).to(dtype) for _ in range(2))
            peaks[name] = 2 * size**3 / seconds(bench, partial(torch.mm, one, other, out=torch.empty_like(one))) / 1e12
    source = torch.empty((4 << 30) // 4 if bench.on_gpu else 1 << 20, device=bench.device).zero_()
    target = torch.empty_like(source)
    copying = seconds(bench, lambda: target.copy_(source))
    into["copy_terabytes_per_second"] = 2 * source.nbytes / copying / 1e12


def seconds(bench: Bench, work: Callable[[], object]) -> float:
    """Least of a few times."""
    for _ in range(3):
        work()
    return min(timed(bench, work, 10) for _ in range(3)) / 1000


def speed(bench: Bench, into: dict[str, Any], rows: Rows, batch: int) -> None:
    """The rows in turn at one number of streams, their rings full."""
    steppers: dict[str, Stepper] = {}
    frame, pictures, calls = bench.frames(batch, 1)[0], bench.pictures(batch, 8), dict[str, int]()
    for name, make in rows.items():
        with bench.guard(f"speed of {name} at batch {batch}"):
            row = make(bench, batch)
            started = time.monotonic()
            warm_up(bench, row, batch)
            calls[name] = calls_for(bench, row, frame)
            steppers[name] = row
            print(f"batch {batch}, {name}: ready, {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    device: dict[str, list[float]] = {name: [] for name in steppers}
    whole: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(bench.rounds):
        for name, row in steppers.items():
            with bench.guard(f"speed of {name} at batch {batch}"), arithmetic(row.precision):
                device[name].append(timed(bench, partial(row.step, frame), calls[name]))
                whole[name].append(end_to_end(bench, row, pictures, max(1, calls[name] // 2)))
        for name, row in ((name, row) for name, row in steppers.items() if device[name]):
            into[name] = described(bench, name, batch, device, whole, row.precision)


def compiled_speed(bench: Bench, into: dict[str, Any], batch: int) -> None:
    """What PyTorch compiles, each in turn with two others and at once, as compiling may take all the time there is."""
    beside = {name: {**EAGER, **CAPTURED}[name] for name in (BASE, "ring bf16, channels last")}
    for name, make in COMPILED.items():
        if batch == bench.batches[0]:
            correctness(bench, bench.results.setdefault("compiled, correctness", {}), {name: make}, batch)
        speed(bench, into, {**beside, name: make}, batch)
        bench.write()


def described(
    bench: Bench,
    name: str,
    batch: int,
    device: Mapping[str, Sequence[float]],
    whole: Mapping[str, Sequence[float]],
    precision: str,
) -> dict[str, Any]:
    """What the times of a row come to."""
    median, base = float(np.median(device[name])), device.get(BASE, [])
    work = batch * flop(bench.model, bench.config.history_length)
    peak = bench.results.get("roofline", {}).get("tflops", {}).get(precision)
    rate = work / median / 1e9  # TFLOP/s
    pairs = list(zip(base, device[name], strict=False))
    return {
        "precision": precision,
        "device_ms": round(median, 4),
        "device_ms_range": [round(float(one), 4) for one in (min(device[name]), max(device[name]))],
        "end_to_end_ms": round(float(np.median(whole[name])), 4) if whole[name] else None,
        "frames_per_second": round(1000 * batch / median, 1),
        "speedup": round(float(np.median([one / other for one, other in pairs])), 3) if pairs else None,
        "tflops": round(rate, 2),
        "share_of_peak": round(rate / peak, 4) if peak else None,
    }


def warm_up(bench: Bench, row: Stepper, batch: int) -> None:
    """Fill the ring."""
    with arithmetic(row.precision):
        for frame in bench.frames(batch, bench.config.history_length + 4):
            row.step(frame)
    bench.wait()


def calls_for(bench: Bench, row: Stepper, frame: Tensor) -> int:
    with arithmetic(row.precision):
        once = timed(bench, partial(row.step, frame), 3) / 1000
    return max(3, min(2000, int(bench.block_s / once)))


def timed(bench: Bench, work: Callable[[], object], calls: int) -> float:
    """Milliseconds of a call on the device, of many one after the other."""
    if not bench.on_gpu:
        started = time.perf_counter()
        for _ in range(calls):
            work()
        return 1000 * (time.perf_counter() - started) / calls
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(calls):
        work()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / calls


def end_to_end(bench: Bench, row: Stepper, pictures: np.ndarray, calls: int) -> float:
    """Milliseconds from a picture on the host to the prediction there, median of single calls."""
    staging = torch.from_numpy(pictures[0].copy())
    staging = staging.pin_memory() if bench.on_gpu else staging
    times = []
    for call in range(calls):
        started = time.perf_counter()
        staging.copy_(torch.from_numpy(pictures[call % len(pictures)]))
        frame = staging.to(bench.device, non_blocking=True).permute(0, 3, 1, 2).contiguous().float() / 255
        row.step(frame).float().cpu().numpy()
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))


def backends(bench: Bench, into: dict[str, Any]) -> None:
    """The backend torch-cuda-graph as an app has it: verified, then its step from a picture to the prediction."""
    from e3d_deploy import checkpoint
    from e3d_deploy.runtime.backend import open_backend
    from e3d_deploy.runtime.bundle import MODEL, Bundle

    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(bench.model, Path(folder) / MODEL)
        for precision in ("fp32", "tf32", "bf16"):
            for batch in bench.batches:
                name = f"torch-cuda-graph {precision} at batch {batch}"
                lengths = {"context_length": 2, "horizon": 2, "batch": batch, "dynamic_batch": False}
                manifest = {**lengths, "graphs": {"step": {"precision": precision}}}
                with bench.guard(name), ExitStack() as stack:
                    backend = open_backend(Bundle(Path(folder), manifest, bench.config), "torch-cuda-graph")
                    stack.callback(backend.close)
                    into[name] = stepped(bench, backend, batch)


def stepped(bench: Bench, backend: Any, batch: int) -> dict[str, Any]:
    """How far a backend is from eager float32 until its ring is full, and how long its step takes then."""
    count = bench.config.history_length + 4
    pictures, predictions = bench.pictures(batch, count), []
    expected = rolled(Eager(bench, batch, "fp32"), bench.frames(batch, count))
    state = backend.initial_state(batch)
    for shown in pictures:
        prediction, state = backend.step(shown, state)
        predictions.append(torch.from_numpy(prediction).to(bench.device))
    worst = distance(torch.stack(predictions), expected)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 5 or (len(times) < 2000 and time.perf_counter() - began < bench.rounds * bench.block_s):
        started = time.perf_counter()
        _, state = backend.step(pictures[len(times) % len(pictures)], state)
        times.append(time.perf_counter() - started)
    p50, p99 = (round(1000 * float(one), 4) for one in np.quantile(times, (0.5, 0.99)))
    return {"max_abs_difference": worst, "end_to_end_ms": p50, "end_to_end_p99_ms": p99, "calls": len(times)}


def engines(bench: Bench, into: dict[str, Any]) -> None:
    """Backends of other libraries on a bundle of this model, where they are installed."""
    from e3d_deploy import checkpoint
    from e3d_deploy.export.bundle import export
    from e3d_deploy.runtime.backend import open_backend
    from e3d_deploy.runtime.bundle import Bundle

    with tempfile.TemporaryDirectory() as folder:
        model, path = Path(folder) / "model.safetensors", Path(folder) / "step.e3d"
        checkpoint.save(bench.model, model)
        export(model, path, context_length=2, horizon=2, optimize="gpu")
        for name in ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx"):
            with bench.guard(name), ExitStack() as stack:
                if name == "tensorrt-rtx":
                    into["validity"] = validity(path)
                elif name == "tensorrt":
                    built(path, name)
                backend = open_backend(Bundle.open(path), name)
                stack.callback(backend.close)
                into[name] = stepped(bench, backend, 1)


def built(path: Path, target: Any) -> None:
    """Give a bundle engines of a target."""
    from e3d_deploy.export.to_tensorrt import build
    from e3d_deploy.runtime.bundle import Bundle

    build(Bundle.open(path), target)


def validity(path: Path) -> dict[str, Any]:
    """What TensorRT-RTX says of its engine on this GPU; 9.0 is in none of its lists of compute capabilities."""
    from e3d_deploy.runtime.tensorrt_library import library, make_logger

    trt = library("tensorrt-rtx")
    built(path, "tensorrt-rtx")
    plan = (path / "engines" / "step.tensorrt-rtx.plan").read_bytes()
    logger = make_logger(trt)
    verdict, bits = trt.Runtime(logger).get_engine_validity(plan)
    found = {"version": trt.__version__, "validity": str(verdict), "diagnostics": int(bits), "errors": logger.errors}
    print(f"tensorrt-rtx: {found}", file=sys.stderr, flush=True)
    return found


# What runs them


def sections(bench: Bench) -> dict[str, Callable[[dict[str, Any]], None]]:
    """What there is to do: first what is quick and what others need, last what is compiled."""
    plain = {**EAGER, **CAPTURED}
    found: dict[str, Callable[[dict[str, Any]], None]] = {
        "environment": partial(environment, bench),
        "correctness": partial(correctness, bench, rows=plain, batch=2),
        "roofline": partial(roofline, bench),
    }
    for batch in bench.batches:
        found[f"speed at batch {batch}"] = partial(speed, bench, rows={**plain, **UNMASKED}, batch=batch)
    found |= {"backends": partial(backends, bench), "engines": partial(engines, bench)}
    for batch in bench.batches:
        found[f"compiled, speed at batch {batch}"] = partial(compiled_speed, bench, batch=batch)
    return found


@contextmanager
def limit(duration: float) -> Iterator[None]:
    """Raise TimeUp within when the time is over."""

    def over(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, duration))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(bench: Bench, wanted: Sequence[str]) -> None:
    for name, section in sections(bench).items():
        if wanted and not any(name.startswith(one) for one in wanted) and name != "environment":
            continue
        left = bench.deadline - time.monotonic()
        if left < 3:
            bench.results["skipped"][name] = "no time was left for it"
            continue
        print(f"== {name} ({left:.0f} s left)", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            with limit(left), bench.guard(name), torch.no_grad():
                section(bench.results.setdefault(name, {}))
        except TimeUp:
            bench.results["failed"][name] = "the time was over"
        bench.results.setdefault("seconds", {})[name] = round(time.monotonic() - started, 1)
        if bench.on_gpu:
            peak = torch.cuda.max_memory_allocated()
            bench.results.setdefault("after", {})[name] = {"nvidia_smi": clocks(), "peak_memory_bytes": peak}
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.empty_cache()
        bench.write()


def table(results: Mapping[str, Any]) -> str:
    """The rows, as lines."""
    lines = []
    for section, rows in results.items():
        if section.endswith("correctness"):
            lines.append(f"\n{section}, largest difference from eager float32")
            lines += [f"{name:40} {row['predictions']:.2e} {verdict(row)}" for name, row in scored(rows).items()]
        elif "speed" in section:
            lines.append(f"\n{section:40} {'device ms':>10} {'end to end':>10} {'× ' + BASE:>12} {'of peak':>8}")
            for name, row in rows.items():
                share = f"{100 * row['share_of_peak']:.1f} %" if row["share_of_peak"] else ""
                whole = f"{row['end_to_end_ms']:10.3f}" if row["end_to_end_ms"] else f"{'–':>10}"
                times = f"{row['device_ms']:10.3f} {whole} {row['speedup'] or 0:12.2f}"
                lines.append(f"{name:40} {times} {share:>8}")
        elif section in ("backends", "engines") and rows:
            lines += ["", *(f"{name:40} {json.dumps(row)}" for name, row in rows.items())]
    lines += ["", *(f"{name}: skipped, {reason}" for name, reason in results["skipped"].items())]
    lines += [f"{name}: FAILED, {reason.splitlines()[-1]}" for name, reason in results["failed"].items()]
    return "\n".join(lines)


def scored(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a section that were compared."""
    return {name: row for name, row in rows.items() if name != "rounding"}


def verdict(row: Mapping[str, Any]) -> str:
    if row.get("passed") is False:
        return "FAIL"
    return "PASS" if "budget" in row else ""


# Small helpers


def flop(model: E3DLSTM, entries: int) -> int:
    """Operations of a step of one stream with so many entries in its history, as the paper's formulas have them: 302
    GFLOP for ten frames after ten at full size. The rewrite `conv2d` leaves a quarter of the convolutions out."""
    config, total = model.config, 0
    height, width = config.grid_size
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv3d):
            positions = height * width if name == "to_patch" else config.positions
            total += 2 * module.weight.numel() * positions
    return total + sum(4 * entries * config.positions**2 * channels for channels in config.hidden)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def by_kind(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for name, tensor in expected.items():
        kind = name.split(".")[0]
        kinds[kind] = max(kinds.get(kind, 0.0), distance(tensor, found[name]))
    return kinds


def clocks() -> dict[str, str] | str:
    """What nvidia-smi says of the GPU now."""
    query = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return first_line(error)
    return dict(zip(SMI, (one.strip() for one in done.stdout.splitlines()[0].split(",")), strict=False))


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def said(error: Exception) -> str:
    """The end of its traceback."""
    return "\n".join("".join(traceback.format_exception(error)).strip().splitlines()[-12:])


def finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="few and short rounds; on a CPU with a tiny model")
    parser.add_argument("--seconds", type=float, default=540, help="for all of it")
    parser.add_argument("--sections", default="", help="names, or how they begin, with commas between; all if empty")
    parser.add_argument("--batches", default="1,8,32", help="streams in a step, with commas between")
    folder = os.environ.get("OUT") or str(Path(__file__).parent.parent / "results")
    parser.add_argument("--out", type=Path, default=Path(folder) / "gpu.json")
    options = parser.parse_args()
    options.batches = [int(one) for one in options.batches.split(",")]
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"no GPU: PyTorch {torch.__version__} finds none; --device cpu --quick tries the script", file=sys.stderr)
        return 4
    bench = Bench(options)
    run(bench, [one for one in options.sections.split(",") if one])
    print(table(bench.results))
    compared = [scored(rows) for name, rows in bench.results.items() if name.endswith("correctness")]
    return 3 if any(row.get("passed") is False for rows in compared for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
