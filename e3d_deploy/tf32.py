"""PyTorch's settings of TF32, which hold for the whole process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Let a GPU round the factors of float32 products to TF32, except for `fp32`, and try convolution algorithms.

    PyTorch has these settings for the whole process only, so they are put back. It has two sets of names for them,
    and Inductor asks by the older one and fails where the two disagree; within, they agree.
    """
    cudnn: Any = torch.backends.cudnn  # Any: the annotations lack some settings
    mkldnn: Any = torch.backends.mkldnn
    kinds: Any = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    settings = *kinds, mkldnn.matmul  # which the older name of the first changes too
    before = [setting.fp32_precision for setting in settings]
    products = _setting(torch.get_float32_matmul_precision, "highest")
    allowed = _setting(lambda: cudnn.allow_tf32, True)
    benchmark = cudnn.benchmark
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    cudnn.allow_tf32 = precision != "fp32"
    for kind in kinds:  # the older names leave `none`, which takes the setting of the whole process
        kind.fp32_precision = "ieee" if precision == "fp32" else "tf32"
    cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        cudnn.allow_tf32, cudnn.benchmark = allowed, benchmark
        for setting, value in zip(settings, before, strict=True):  # last, since the older names change them too
            setting.fp32_precision = value


def _setting(read: Callable[[], T], otherwise: T) -> T:
    """Read a setting by its older name; `otherwise` if PyTorch refuses, as where the two sets of names disagree."""
    try:
        return read()
    except RuntimeError:
        return otherwise
