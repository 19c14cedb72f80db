"""Build time and size of TensorRT-RTX engines, and the time to take them from the engine cache.

    python -m benchmarks.engines [PRECISION...]

Builds the graphs of `e3d export --backend tensorrt-rtx` in the given precision policies, or in all. TensorRT-RTX must
be installed; no GPU is used. Writes benchmarks/results/engines.json after each bundle.
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import save
from e3d_deploy import checkpoint
from e3d_deploy.bundle.sidecar import EngineSidecar
from e3d_deploy.config import ModelConfig
from e3d_deploy.export.bundle import export
from e3d_deploy.export.engines.build import build
from e3d_deploy.export.engines.cache import EngineCache
from e3d_deploy.model import E3DLSTM
from e3d_deploy.policies import Budget
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.specs import find

DEMO = Path(__file__).parents[1] / "e3d_deploy" / "demo" / "moving_mnist.safetensors"


def main(precisions: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        checkpoint.save(E3DLSTM(ModelConfig()), folder / "full.safetensors")
        rows, hits = [], {}
        for what, model, graphs in (("demo", DEMO, None), ("full size", folder / "full.safetensors", ["step"])):
            for precision in precisions:
                # The budget is unlimited, because the drift of random weights says nothing about a policy.
                budget = None if precision == "fp32" else Budget(difference=1e9)
                options: dict[str, Any] = {"precision": precision, "backend": "tensorrt-rtx", "budget": budget}
                if graphs == ["step"]:  # the step graph does not depend on the clip, so a short clip saves time
                    options |= {"context_length": 2, "horizon": 2}
                path = export(model, folder / "bundle.e3d", overwrite=True, **options)
                bundle = only(Bundle.open(path), graphs)
                cache = EngineCache(folder / "cache")
                sidecars = build(bundle, "tensorrt-rtx", cache=cache)
                rows += [{"model": what, **row(bundle, graph, one)} for graph, one in sidecars.items()]
                if precision == "fp32":
                    hits[what] = measure_hits(bundle, cache, folder)
                report(rows, hits)  # after each bundle, because all of them take half an hour


def report(rows: list[dict[str, Any]], hits: dict[str, Any]) -> None:
    """Print and write the results so far."""
    (builder,) = {one["builder"] for one in rows}
    plans = [{name: value for name, value in one.items() if name != "builder"} for one in rows]
    what = "TensorRT-RTX plans of the demo model, 10→10, and of hidden 4×64, 64×64, patch 4; built, not run"
    save("engines", {"what": what, "builder": builder, "plans": plans, "cache_hit_ms": hits})


def only(bundle: Bundle, graphs: list[str] | None) -> Bundle:
    """Return a bundle whose manifest lists only the named graphs; None keeps all."""
    kept = tuple(entry for entry in bundle.manifest.graphs if graphs is None or entry.name in graphs)
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, graphs=kept))


def row(bundle: Bundle, graph: str, sidecar: EngineSidecar) -> dict[str, Any]:
    """Return the entry of one plan for JSON."""
    return {
        "graph": graph,
        "precision": sidecar.precision.proved,
        "proved_by": sidecar.precision.by,
        "nodes": bundle.entry(graph).nodes,
        "build_seconds": sidecar.build_seconds,
        "plan_bytes": sidecar.bytes,
        "builder": sidecar.builder,
    }


def measure_hits(bundle: Bundle, cache: EngineCache, folder: Path, times: int = 20) -> dict[str, Any]:
    """Return the median time to take each plan from the cache, and of a build whose plans are all cached (ms)."""
    entries = cache.entries()[-len(bundle.graphs) :]
    taking = {}
    for entry in entries:
        spent = []
        for _ in range(times):
            started = time.perf_counter()
            found = cache.take(entry.parts, folder / "taken")
            spent.append(time.perf_counter() - started)
            assert found is not None
            (folder / "taken").unlink()
        taking[f"{entry.sidecar.graph}, {entry.nbytes / 1e6:.1f} MB"] = milliseconds(spent)
    spent = []
    for _ in range(times):
        started = time.perf_counter()
        build(bundle, "tensorrt-rtx", cache=cache)
        spent.append(time.perf_counter() - started)
    return {"take": taking, "whole_build": milliseconds(spent)}


def milliseconds(spent: list[float]) -> float:
    """Return the median of times in seconds (ms)."""
    return round(1000 * float(np.median(spent)), 2)


if __name__ == "__main__":
    main(sys.argv[1:] or find("tensorrt-rtx").ordered_policies)
