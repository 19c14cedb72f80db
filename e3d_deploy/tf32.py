"""PyTorch's TF32 settings, which apply to the whole process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Enable the search for fast convolution algorithms and, except with `fp32`, TF32 for float32 products on a GPU.

    The settings apply to the whole process, and are restored when the block ends. PyTorch has two sets of names for
    these settings. Inductor reads the older names, and fails if the two sets disagree; they agree while the block runs.
    """
    cudnn: Any = torch.backends.cudnn  # Any, because the annotations lack some settings
    mkldnn: Any = torch.backends.mkldnn
    kinds: Any = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    settings = *kinds, mkldnn.matmul  # the older name of the matmul setting also changes oneDNN's
    before = [setting.fp32_precision for setting in settings]
    products = _setting(torch.get_float32_matmul_precision, "highest")
    allowed = _setting(lambda: cudnn.allow_tf32, True)
    benchmark = cudnn.benchmark
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    cudnn.allow_tf32 = precision != "fp32"
    for kind in kinds:  # the older names set `none`, which means the global setting
        kind.fp32_precision = "ieee" if precision == "fp32" else "tf32"
    cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        cudnn.allow_tf32, cudnn.benchmark = allowed, benchmark
        for setting, value in zip(settings, before, strict=True):  # last, because the older names change them too
            setting.fp32_precision = value


def _setting(read: Callable[[], T], otherwise: T) -> T:
    """Read a setting by its older name; return `otherwise` if PyTorch raises because the two sets of names disagree."""
    try:
        return read()
    except RuntimeError:
        return otherwise
