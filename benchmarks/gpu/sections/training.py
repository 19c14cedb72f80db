"""Section `training`: forward and backward pass of an optimizer step, launched by Python or as a CUDA graph."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.flop import by_paper
from benchmarks.gpu.plan import Unit
from benchmarks.gpu.timing import timed_ms
from e3d_deploy.model import E3DLSTM
from e3d_deploy.step import flatten_convolutions
from e3d_deploy.tf32 import arithmetic
from e3d_deploy.training.passes import CapturedPasses

CONTEXT, HORIZON = 10, 10
STEPS = CONTEXT + HORIZON - 1
Predict = Callable[[Tensor, Tensor], Tensor]
"""Function that takes frames and the mask of the true frames that are shown, and returns the predictions."""
COSTS = {"eager": 8.0, "captured": 12.0, "compiled": 60.0, "compiled-conv2d": 60.0}
"""Estimated time of each row on a GPU (s); all rows but `eager` are captured."""


def units(bench: Bench) -> list[Unit]:
    """List the rows, each for batches of 16 and 32 clips."""
    return [
        Unit(section="training", row=f"{name} {batch}", tier=4, cost_s=cost, work=partial(row, bench, name, batch))
        for name, cost in COSTS.items()
        for batch in ((2,) if bench.quick else (16, 32))
    ]


def row(bench: Bench, name: str, batch: int) -> dict[str, Any]:
    """Compare the gradients of a pass with those of eager float32, and time the pass."""
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, STEPS + 1, bench.config.channels, *bench.config.image_size)
    frames = torch.rand(shape, generator=generator).to(bench.device)
    truth = (torch.rand(batch, STEPS - 1, generator=generator) < 0.5).float().to(bench.device)
    model = bench.copy_of_model().train().requires_grad_()
    with arithmetic("fp32"):
        expected = gradients(model, eager(model), frames[:2], truth[:2], None)
    started = time.monotonic()
    predict = make(bench, name, model)
    with arithmetic("tf32"):
        # A captured pass has a fixed batch size. Two clips, repeated to fill it, have the gradients of two clips.
        again = frames[:2].repeat(batch // 2, 1, 1, 1, 1), truth[:2].repeat(batch // 2, 1)
        found = gradients(model, predict, *again, torch.bfloat16)
        ready = time.monotonic() - started
        calls = 1 if bench.quick else 5
        times = sorted(
            timed_ms(bench, partial(gradients, model, predict, frames, truth, torch.bfloat16), calls) for _ in range(3)
        )
    entries = (min(step + 1, bench.config.history_length) for step in range(STEPS))
    gflop = 3 * batch * sum(by_paper(bench.config, one) for one in entries) / 1e9
    return {
        "ready_s": round(ready, 1),
        "cosine_of_gradients": round(float(cosine_similarity(found, expected, dim=0)), 5),
        "step_ms": round(times[1], 2),
        "step_ms_range": [round(times[0], 2), round(times[2], 2)],
        "sequences_per_second": round(1000 * batch / times[1], 1),
        "tflops": round(gflop / times[1], 1),
    }


def make(bench: Bench, name: str, model: E3DLSTM) -> Predict:
    """Return the forward pass of a row."""
    if name.endswith("conv2d"):
        for cell in model.cells:
            flatten_convolutions(cell, model.config)
    if name.startswith("compiled") and bench.on_gpu:  # on a CPU the compilation takes minutes
        from e3d_deploy.training.module import compile_cells  # imported here, because it needs Lightning

        compile_cells(model)
    if name == "eager" or not bench.on_gpu:
        return eager(model)
    captured = CapturedPasses(model, HORIZON)
    return lambda frames, truth: captured(frames, truth, None)


def eager(model: E3DLSTM) -> Predict:
    """Return the forward pass that Python launches."""
    return lambda frames, truth: model(frames, HORIZON, truth)


@torch.enable_grad()
def gradients(model: nn.Module, predict: Predict, frames: Tensor, truth: Tensor, low: torch.dtype | None) -> Tensor:
    """Return the gradients of the mean squared error as one vector.

    Args:
        low: data type of autocast; None computes in float32.
    """
    model.zero_grad()
    with torch.autocast(frames.device.type, low or torch.bfloat16, enabled=low is not None):
        predictions = predict(frames, truth)
    (predictions.float() - frames[:, 1:]).square().mean().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
