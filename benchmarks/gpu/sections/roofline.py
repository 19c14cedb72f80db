"""Peaks of this GPU: products of square matrices of random numbers, and a copy."""

from functools import partial
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.plan import Unit
from benchmarks.gpu.timing import least_s
from e3d_deploy.tf32 import arithmetic

TYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def units(bench: Bench) -> list[Unit]:
    """List one row for each type, and the copy."""
    works = {name: partial(product, bench, name) for name in TYPES} | {"copy": partial(copy, bench)}
    return [Unit(section="roofline", row=name, tier=0, cost_s=1.0, work=work) for name, work in works.items()]


def product(bench: Bench, precision: str) -> dict[str, Any]:
    """Multiply two square matrices: 8192², and 4096² in float32, which has no tensor cores."""
    side = 256 if not bench.on_gpu else 4096 if precision == "fp32" else 8192
    with arithmetic(precision):
        one, other = (torch.randn(side, side, device=bench.device).to(TYPES[precision]) for _ in range(2))
        taken = least_s(bench, partial(torch.mm, one, other, out=torch.empty_like(one)))
    return {"side": side, "tflops": round(2 * side**3 / taken / 1e12, 4)}


def copy(bench: Bench) -> dict[str, Any]:
    """Copy 4 GB; both reading and writing count."""
    source = torch.zeros((4 << 30) // 4 if bench.on_gpu else 1 << 20, device=bench.device)
    target = torch.empty_like(source)
    taken = least_s(bench, partial(target.copy_, source))
    return {"bytes": source.nbytes, "terabytes_per_second": round(2 * source.nbytes / taken / 1e12, 4)}
