"""Operations of a step: by the paper's formulas, and as executed.

One multiplication and one addition are two operations, as everywhere.
"""

from functools import lru_cache

import torch

from e3d_deploy.config import ModelConfig
from e3d_deploy.model import E3DLSTM, Convolution


def by_paper(config: ModelConfig, entries: int) -> int:
    """Return the operations of a step of one stream with so many entries in its history, by the paper's formulas.

    At full size, ten frames after ten take 302 GFLOP: 19 steps with 1 to 19 entries. The products with the padded slot
    of the window count, as PyTorch's 3D convolution computes them.
    """
    return executed(config, entries, ())


@lru_cache
def executed(config: ModelConfig, entries: int, rewrites: tuple[str, ...]) -> int:
    """Return the operations that a step of one stream executes; a test compares them with PyTorch's own counter.

    Types, layouts and compiling change no count. A ring has all its K entries read from the first step on.

    Args:
        rewrites: `conv2d` leaves out the convolutions' products with the padded slot, a quarter for a window of two;
            `frozen-memory` leaves out the convolution of a memory that stays zero.
    """
    with torch.device("meta"):
        model = E3DLSTM(config)
    (height, width), D, total = config.grid_size, config.window_length, 0
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Conv3d):
            continue
        slots: float = 1 if name == "to_patch" else D
        if "conv2d" in rewrites and isinstance(module, Convolution):
            slots = D - 0.5  # the last slot is convolved with half of the weights
        if "frozen-memory" in rewrites and config.semantics != "paper" and name.endswith("memory_conv"):
            slots = 0
        total += int(2 * module.weight.numel() * slots * height * width)
    return total + sum(4 * entries * config.positions**2 * channels for channels in config.hidden)
