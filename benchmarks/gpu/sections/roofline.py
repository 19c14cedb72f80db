"""Section `roofline`: peak rates of this GPU in products of random square matrices, and in a copy."""

from functools import partial
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.plan import Unit
from benchmarks.gpu.timing import least_s
from e3d_deploy.tf32 import arithmetic

TYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def units(bench: Bench) -> list[Unit]:
    """List a row for each precision, and one for the copy."""
    works = {name: partial(product, bench, name) for name in TYPES} | {"copy": partial(copy, bench)}
    return [Unit(section="roofline", row=name, tier=0, cost_s=1.0, work=work) for name, work in works.items()]


def product(bench: Bench, precision: str) -> dict[str, Any]:
    """Time the product of two square matrices, with a side of 8192, or 4096 in float32, which uses no tensor cores."""
    side = 256 if not bench.on_gpu else 4096 if precision == "fp32" else 8192
    with arithmetic(precision):
        one, other = (torch.randn(side, side, device=bench.device).to(TYPES[precision]) for _ in range(2))
        taken = least_s(bench, partial(torch.mm, one, other, out=torch.empty_like(one)))
    return {"side": side, "tflops": round(2 * side**3 / taken / 1e12, 4)}


def copy(bench: Bench) -> dict[str, Any]:
    """Time a copy of 4 GiB; the rate counts reading and writing."""
    source = torch.zeros((4 << 30) // 4 if bench.on_gpu else 1 << 20, device=bench.device)
    target = torch.empty_like(source)
    taken = least_s(bench, partial(target.copy_, source))
    return {"bytes": source.nbytes, "terabytes_per_second": round(2 * source.nbytes / taken / 1e12, 4)}
