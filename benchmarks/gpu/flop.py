"""Number of operations of a step: by the paper's formulas, and as executed with rewrites.

A multiplication and an addition count as two operations.
"""

from functools import lru_cache

import torch

from e3d_deploy.config import ModelConfig
from e3d_deploy.model import E3DLSTM, Convolution


def by_paper(config: ModelConfig, entries: int) -> int:
    """Return the number of operations of a step of one stream, by the paper's formulas.

    At full size, a forecast of ten frames from ten takes 302 GFLOP: 19 steps with 1 to 19 entries. Products with the
    padded slot of the window are counted, because PyTorch's 3D convolution computes them.

    Args:
        entries: number of cell states in the history.
    """
    return executed(config, entries, ())


@lru_cache
def executed(config: ModelConfig, entries: int, rewrites: tuple[str, ...]) -> int:
    """Return the number of operations that a step of one stream executes; a test compares it with PyTorch's counter.

    Data types, memory layouts and compilation do not change the number.

    Args:
        entries: number of cell states that the recall reads; a step over rings reads all K slots from the first frame.
        rewrites: `conv2d` omits the products of the convolutions with the padded slot, a quarter for a window of two;
            `frozen-memory` omits the convolution of a memory that stays zero.
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
