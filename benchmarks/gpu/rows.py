"""Rows of the sections `plain` and `compiled`: the ways to step that are compared and timed.

To add a row, add it to a table here; sections, plan and report read these tables. A name must not contain a comma,
because `--rows` separates names by commas.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.steppers import Eager, NaiveCompiled, Rings, Stepper

BF16, FP16 = torch.bfloat16, torch.float16
DEFAULT, MAX, MAX_ALONE = "default", "max-autotune", "max-autotune-no-cudagraphs"
"""Modes of torch.compile; with the last one, our stepper captures the CUDA graph instead of PyTorch."""
BASE = "eager tf32"
"""Row that each other row is timed in turn with, and whose time is the base of its speed-up."""


@dataclass(frozen=True)
class Row:
    """One way to step."""

    name: str
    make: Callable[[Bench, int], Stepper]
    """Function that makes the stepper for a number of streams."""
    tier: int = 2
    """Priority; 1 for rows that short runs should include, 2 for others."""
    profiled: bool = False
    """True if the section `profile` lists the kernels of this row."""


PLAIN = (
    Row("eager fp32", partial(Eager, precision="fp32")),
    Row("eager tf32", partial(Eager, precision="tf32"), tier=1, profiled=True),
    Row("autocast bf16", partial(Eager, precision="bf16", autocast=BF16), tier=1, profiled=True),
    Row("autocast fp16", partial(Eager, precision="fp16", autocast=FP16)),
    Row("autocast bf16 channels-last", partial(Eager, precision="bf16", autocast=BF16, channels_last=True)),
    Row("ring fp32", partial(Rings, precision="fp32"), tier=1),
    Row("ring tf32", partial(Rings, precision="tf32"), tier=1, profiled=True),
    Row("ring tf32 not-captured", partial(Rings, precision="tf32", captured=False)),
    Row("ring tf32 channels-last", partial(Rings, precision="tf32", channels_last=True)),
    Row("ring tf32 no-rewrite", partial(Rings, precision="tf32", rewrites=())),
    Row("ring bf16", partial(Rings, precision="bf16")),
    Row("ring bf16 channels-last", partial(Rings, precision="bf16", channels_last=True), tier=1, profiled=True),
    Row("ring fp16 channels-last", partial(Rings, precision="fp16", channels_last=True)),
    Row("ring bf16 conv2d-alone", partial(Rings, precision="bf16", channels_last=True, rewrites=("conv2d",))),
    Row("ring bf16 norms-alone", partial(Rings, precision="bf16", rewrites=("norms",))),
    Row("ring bf16 no-rewrite", partial(Rings, precision="bf16", rewrites=())),
    Row("ring bf16 no-mask", partial(Rings, precision="bf16", channels_last=True, unmasked=True)),
    Row("ring tf32 in-place", partial(Rings, precision="tf32", channels_last=True, unmasked=True, in_place=True)),
    Row(
        "ring bf16 in-place",
        partial(Rings, precision="bf16", channels_last=True, unmasked=True, in_place=True),
        tier=1,
        profiled=True,
    ),
)
COMPILED = (
    Row("torch.compile tf32", partial(NaiveCompiled, precision="tf32", mode=MAX), tier=1),
    Row(
        "ring bf16 in-place compiled",
        partial(Rings, precision="bf16", channels_last=True, unmasked=True, in_place=True, mode=DEFAULT),
        tier=1,
        profiled=True,
    ),
    Row(
        "ring bf16 in-place max-autotune",
        partial(Rings, precision="bf16", channels_last=True, unmasked=True, in_place=True, mode=MAX_ALONE),
    ),
    Row("ring bf16 compiled captured", partial(Rings, precision="bf16", channels_last=True, mode=MAX_ALONE)),
    Row("torch.compile bf16", partial(NaiveCompiled, precision="bf16", mode=MAX, autocast=BF16)),
    Row("ring tf32 compiled captured", partial(Rings, precision="tf32", mode=MAX_ALONE)),
    Row("ring fp32 compiled captured", partial(Rings, precision="fp32", mode=MAX_ALONE)),
    Row(
        "ring bf16 torch.compile",
        partial(Rings, precision="bf16", channels_last=True, captured=False, mode=MAX),
    ),
)
"""Rows that are compiled, in a section of their own because compilation takes up to minutes."""
