"""Sections `backends` and `bundles`: the backends that applications use, timed from picture to prediction."""

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.correctness import Yardstick, distance
from benchmarks.gpu.plan import Unit

if TYPE_CHECKING:
    from e3d_deploy.bundle.manifest import Manifest

ON_GPU = ("onnxruntime-cuda", "torch-cuda-graph", "tensorrt", "tensorrt-rtx")
ON_CPU = ("onnxruntime",)
"""Backends that are added without a GPU, so that the section has a row that runs."""
BUILT = {"tensorrt": 90.0, "tensorrt-rtx": 90.0}
"""Estimated time to build the engines of a backend on a GPU (s)."""
COMPILED = {"torch-cuda-graph": 45.0}
"""Estimated time to open a backend that compiles its step (s)."""


def units(bench: Bench) -> list[Unit]:
    """List the rows of torch-cuda-graph, for each precision and number of streams."""
    return [
        Unit(
            section="backends",
            row=f"torch-cuda-graph {precision} at batch {batch}",
            tier=(1 if batch in (bench.settings.batches[0], bench.settings.batches[-1]) else 2)
            + 2 * (precision != "bf16"),
            cost_s=COMPILED["torch-cuda-graph"],
            work=partial(torch_cuda_graph, bench, precision, batch),
        )
        for batch in bench.settings.batches
        for precision in ("fp32", "tf32", "bf16")
    ]


def bundles(bench: Bench) -> list[Unit]:
    """List a row for each backend and bundle; if there are no bundles, a single row that cannot run."""
    names = ON_GPU if bench.on_gpu else (*ON_CPU, *ON_GPU)
    folder = bench.settings.bundles
    paths = sorted(folder.glob("*.e3d")) if folder else []
    works: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
        (path.name.removesuffix(".e3d"), name): partial(on_bundle, bench, path, name)
        for name in names
        for path in paths
    }
    if not works:
        given = "no --bundles FOLDER was given" if folder is None else f"{folder} contains no .e3d"
        reason = f"{given}; export bundles with `python -m benchmarks.gpu.bundles -o FOLDER`"
        return [Unit(section="bundles", row="all", tier=1, cost_s=0.0, work=dict, absent=reason)]
    return [
        Unit(
            section="bundles",
            row=f"{name} {bundle}",
            tier=3 if name in BUILT else 2 if name in COMPILED else 1,
            cost_s={**BUILT, **COMPILED}.get(name, 4.0),
            work=work,
        )
        for (bundle, name), work in works.items()
    ]


def torch_cuda_graph(bench: Bench, precision: str, batch: int) -> dict[str, Any]:
    """Measure torch-cuda-graph on a bundle with a model and no graphs, because it reads only the model."""
    from e3d_deploy import checkpoint
    from e3d_deploy.bundle.folder import MODEL, Bundle
    from e3d_deploy.bundle.held import Folder, HeldFiles
    from e3d_deploy.runtime.backends.registry import open_backend

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        checkpoint.save(bench.model, Path(folder) / MODEL)
        held = HeldFiles(dict(Folder(Path(folder), None).read([MODEL])))
        bundle = Bundle(Path(folder), _without_graphs(bench, precision, batch), bench.config, held)
        backend = open_backend(bundle, "torch-cuda-graph")
        stack.callback(backend.close)
        return stepped(bench, backend, batch, judged=precision == "fp32", on_device=True)


def _without_graphs(bench: Bench, precision: str, batch: int) -> "Manifest":
    """Return a manifest in which only the fields that torch-cuda-graph reads have meaningful values."""
    from e3d_deploy.bundle import manifest as parts

    return parts.Manifest(
        schema=parts.SCHEMA,
        name="",
        created="",
        producer=parts.Producer(e3d_deploy="", torch="", onnx=""),
        config=bench.config.to_dict(),
        context_length=2,
        horizon=2,
        batch=batch,
        dynamic_batch=False,
        history=parts.History(slots=0, exact_for_steps=0, then=""),
        preprocessing=parts.Preprocessing(frames="", patching="", output=""),
        rounding=parts.Rounding(predictions=0.0, states=0.0),
        precision=parts.Precision(policy=precision, exclude=(), budget={}),
        graphs=(),
        verification={},
        engines={},
        files={},
    )


def on_bundle(bench: Bench, path: Path, name: str) -> dict[str, Any]:
    """Measure a backend on a bundle, compared with eager float32 of the bundle's model."""
    from e3d_deploy import checkpoint
    from e3d_deploy.bundle.folder import MODEL, Bundle
    from e3d_deploy.runtime.backends.registry import open_backend

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        started = time.monotonic()
        bundle = Bundle.open(path)
        if name in BUILT:
            bundle = with_engines(bundle, name, Path(folder) / path.name)
        backend = open_backend(bundle, name)
        stack.callback(backend.close)
        opened_s = round(time.monotonic() - started, 2)
        own, judged = Bench(bench.settings, checkpoint.load(path / MODEL)), bundle.precision == "fp32"
        found = stepped(own, backend, bundle.batch, judged=judged, on_device=name in ON_GPU)
        return {"opened_s": opened_s, **found}


def with_engines(bundle: Any, name: Any, copy: Path) -> Any:
    """Copy a bundle and build its engines; the given bundle may be read-only or shared."""
    from e3d_deploy.bundle.folder import Bundle
    from e3d_deploy.export.engines.build import build
    from e3d_deploy.runtime.backends.cuda import Cuda
    from e3d_deploy.tensorrt_library import library

    library(name)
    Cuda()  # both lines raise if a part is missing, before a build that takes minutes
    shutil.copytree(bundle.path, copy)
    build(Bundle.open(copy), name)
    return Bundle.open(copy)


def stepped(bench: Bench, backend: Any, batch: int, *, judged: bool, on_device: bool) -> dict[str, Any]:
    """Compare a backend with eager float32 over more frames than the ring has slots, and time its step.

    Args:
        judged: compare the difference with the budget; for backends that compute in float32.
        on_device: the backend is a `DeviceBackend`, which measures its time on the GPU.
    """
    yardstick = Yardstick(bench, batch)
    expected, count = yardstick.expected[0], len(yardstick.frames)
    pictures, predictions = bench.pictures(batch, count), []
    started = time.monotonic()
    state = backend.initial_state(batch)
    prepared_s = round(time.monotonic() - started, 2)  # some backends compile and capture here
    for shown in pictures:
        prediction, state = backend.step(shown, state)
        predictions.append(torch.from_numpy(prediction).to(bench.device))
    found: dict[str, Any] = {"predictions": distance(torch.stack(predictions), expected), "steps": count}
    found["prepared_s"] = prepared_s
    if on_device:
        found |= {"captures": backend.captures, "compiles": backend.compiles}
    if judged:
        found["budget"] = yardstick.budget()
        found["passed"] = found["predictions"] <= found["budget"]
    return found | times_of(bench, backend, pictures, state, on_device=on_device)


def times_of(bench: Bench, backend: Any, pictures: np.ndarray, state: Any, *, on_device: bool) -> dict[str, Any]:
    """Time single steps, from picture to prediction and then on the device; return the times (ms)."""
    end_to_end: list[float] = []
    device: list[float] = []
    began = time.perf_counter()
    while len(end_to_end) < 5 or (
        len(end_to_end) < 2000 and time.perf_counter() - began < bench.rounds * bench.block_s
    ):
        started = time.perf_counter()
        _, state = backend.step(pictures[len(end_to_end) % len(pictures)], state)
        end_to_end.append(time.perf_counter() - started)
    if on_device:
        backend.measure(True)
        for shown in pictures:
            _, state = backend.step(shown, state)
            device.append(backend.device_ms)
    p50, p99 = (round(1000 * float(one), 4) for one in np.quantile(end_to_end, (0.5, 0.99)))
    device_ms = round(float(np.median(device)), 4) if device else None
    return {"end_to_end_ms": p50, "end_to_end_p99_ms": p99, "device_ms": device_ms, "calls": len(end_to_end)}
