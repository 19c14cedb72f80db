"""Section `micro`: attention, convolutions and norms of a layer, each timed alone in several variants."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.failures import line_of
from benchmarks.gpu.plan import Unit
from e3d_deploy.tf32 import arithmetic

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KERNELS = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
CALLS, REPLAYS = 20, 7
"""Number of calls in a captured CUDA graph, and number of its replays."""
Variants = dict[str, Callable[[], object]]
"""Functions that run an operation once, by name of the variant."""


def units(bench: Bench, batch: int) -> list[Unit]:
    """List a row for each attention, convolution and norm; products of float32 tensors are computed in TF32."""
    N, P = bench.config.hidden[-1], bench.config.patch_channels
    convolutions = dict.fromkeys([(N, 7 * N), (N, 4 * N), (N, N), (P, 7 * N)])
    works: dict[str, Callable[[], dict[str, Any]]] = {}
    for precision in TYPES:
        works[f"attention {precision}"] = partial(attention, bench, batch, precision)
    for inputs, outputs in convolutions:
        for precision in TYPES:
            name = f"convolution {inputs}→{outputs} {precision}"
            works[name] = partial(convolution, bench, batch, precision, inputs, outputs)
    for channels in (7 * N, 4 * N, N):
        works[f"norm of {channels}"] = partial(norm, bench, batch, channels)
    batches = bench.settings.batches
    tier = 2 + (batch != batches[0]) + (batch not in (batches[0], batches[-1]))
    section = f"micro at batch {batch}"
    return [Unit(section=section, row=name, tier=tier, cost_s=1.5, work=work) for name, work in works.items()]


def attention(bench: Bench, batch: int, precision: str) -> dict[str, Any]:
    """Time the recall of one layer over a full ring, with each attention kernel of PyTorch, without and with a mask.

    The mask is one row, expanded to all queries.
    """
    config = bench.config
    N, entries, positions = config.hidden[-1], config.history_length, config.positions
    make = partial(torch.rand, device=bench.device)
    query = make(batch, 1, positions, N).to(TYPES[precision])
    states = make(batch, 1, entries * positions, N).to(TYPES[precision])
    row = torch.zeros(batch, 1, 1, entries * positions, device=bench.device, dtype=TYPES[precision])
    mask = row.expand(-1, -1, positions, -1)
    exact = recalled(query[:1].double(), states[:1].double())
    gflop = 4 * batch * positions**2 * entries * N / 1e9
    variants: Variants = {
        "chosen by PyTorch": partial(recalled, query, states),
        "chosen by PyTorch, mask": partial(recalled, query, states, mask),
    }
    for kernel in KERNELS:
        name = kernel.name.lower().removesuffix("_attention")
        variants[name] = partial(by_kernel, kernel, query, states)
        variants[f"{name}, mask"] = partial(by_kernel, kernel, query, states, mask)
    return timed_variants(bench, precision, gflop, variants, exact)


def recalled(query: Tensor, states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the recall, with the kernel that PyTorch chooses."""
    return F.scaled_dot_product_attention(query, states, states, attn_mask=mask, scale=1.0)


def by_kernel(kernel: SDPBackend, query: Tensor, states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the recall, with a given kernel."""
    with sdpa_kernel(kernel):
        return recalled(query, states, mask)


def convolution(bench: Bench, batch: int, precision: str, inputs: int, outputs: int) -> dict[str, Any]:
    """Time a convolution over a padded window, in 3D and as the two 2D convolutions of the rewrite `conv2d`."""
    (height, width), k = bench.config.grid_size, bench.config.kernel_size
    dtype, around = TYPES[precision], k // 2
    window = torch.randn(batch, inputs, 3, height, width, device=bench.device, dtype=dtype)
    weight = torch.randn(outputs, inputs, 2, k, k, device=bench.device, dtype=dtype)
    both, last = window[:, :, :2].flatten(1, 2), window[:, :, 1]
    flat, late = weight.flatten(1, 2), weight[:, :, 0]
    last_3d, last_2d = torch.channels_last_3d, torch.channels_last
    window_last, weight_last = (one.contiguous(memory_format=last_3d) for one in (window, weight))
    pair = [one.contiguous() for one in (both, flat, last, late)]
    pair_last = [one.contiguous(memory_format=last_2d) for one in pair]
    variants: Variants = {
        "3d": partial(F.conv3d, window, weight, padding=(0, around, around)),
        "3d, channels last": partial(F.conv3d, window_last, weight_last, padding=(0, around, around)),
        "2d": partial(two_in_2d, around, *pair),
        "2d, channels last": partial(two_in_2d, around, *pair_last),
    }
    gflop = 2 * batch * 2 * height * width * weight.numel() / 1e9
    return timed_variants(bench, precision, gflop, variants)


def two_in_2d(around: int, both: Tensor, flat: Tensor, last: Tensor, late: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two 2D convolutions of the rewrite `conv2d`.

    Args:
        around: padding on each side.
        both: both frames of the window as channels, convolved with `flat`.
        last: last frame of the window, convolved with `late`.
    """
    return F.conv2d(both, flat, padding=around), F.conv2d(last, late, padding=around)


def norm(bench: Bench, batch: int, channels: int) -> dict[str, Any]:
    """Time a norm over channels, window and grid, as a group norm, a layer norm, and by its parts."""
    x = torch.randn(batch, channels, bench.config.window_length, *bench.config.grid_size, device=bench.device)
    scale = torch.ones(channels, device=bench.device)
    variants: Variants = {
        "group norm": partial(F.group_norm, x, 1, scale, scale),
        "layer norm": partial(F.layer_norm, x.flatten(1), (x[0].numel(),)),
        "var_mean": partial(torch.var_mean, x.flatten(1), 1),
        "mean in two stages": lambda: x.mean((2, 3, 4), keepdim=True).mean(1, keepdim=True),
    }
    return timed_variants(bench, "fp32", 0.0, variants)


def timed_variants(
    bench: Bench, precision: str, gflop: float, variants: Variants, exact: Tensor | None = None
) -> dict[str, Any]:
    """Time each variant; record the error of a variant whose first call fails.

    A later error fails the row, because it may come from a failed capture, after which results are unreliable.

    Args:
        gflop: number of operations of each variant (GFLOP); 0 reports no rates.
        exact: result for the first stream in float64; None reports no errors.
    """
    found: dict[str, Any] = {}
    with arithmetic("tf32" if precision == "fp32" else precision):
        for name, work in variants.items():
            try:
                result = work()
            except torch.OutOfMemoryError:
                raise  # the other variants need as much memory
            except RuntimeError as error:
                found[name] = {"not_run": line_of(error)}
                continue
            micros = microseconds(bench, work)
            found[name] = {"us": micros, "tflops": round(gflop / micros * 1e3, 2) if gflop else None}
            if exact is not None:
                assert isinstance(result, Tensor)
                error_norm = (result[:1].double() - exact).norm() / exact.norm()
                found[name]["relative_error"] = float(error_norm)
    return {"gflop": round(gflop, 4), "variants": found}


def microseconds(bench: Bench, work: Callable[[], object]) -> float:
    """Capture calls in one CUDA graph and replay it; return the median time of a call (µs)."""
    for _ in range(3):
        work()
    if not bench.on_gpu:
        started = time.perf_counter()
        work()
        return round(1e6 * (time.perf_counter() - started), 1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            work()
    times = []
    for _ in range(REPLAYS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        times.append(1000 * first.elapsed_time(last) / CALLS)
    return round(sorted(times)[REPLAYS // 2], 2)
