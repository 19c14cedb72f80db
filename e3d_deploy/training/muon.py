"""Muon: the convolutions of the cells get orthogonal updates, all other weights get updates of AdamW.

`torch.optim.Muon` accepts only matrices; here the kernel of a convolution is split into one matrix per gate that it
computes.

Source: Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024.
"""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import AdamW

GATES = {"hidden_conv": 4, "input_conv": 7, "memory_conv": 4, "cell_to_output": 1, "memory_to_output": 1, "merge": 1}
"""Number of gates that each convolution of a cell computes."""
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x³ and x⁵ in a polynomial that moves singular values towards 1 (Jordan et al.)."""
ROUNDS = 5
"""Number of applications of the polynomial per optimizer step."""
MOMENTUM = 0.95
"""Decay of the mean gradient per optimizer step, for weights with orthogonal updates."""
RMS = 0.2
"""Root mean square of the entries of an orthogonal update at a learning rate of 1. It is about as large as with AdamW,
so one learning rate suits both (Liu et al., Muon is scalable for LLM training, 2025)."""


class Muon(AdamW):
    """AdamW, with orthogonal updates for the groups of parameters whose `gates` is above 0.

    In these groups a kernel is split into `gates` matrices. The update of the kernel is Nesterov momentum with each
    matrix made orthogonal.

    Args:
        parameters: groups of parameters, as returned by `groups`.
    """

    def __init__(self, parameters: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(parameters, lr=lr, betas=betas)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all weights that have a gradient; `closure`, if given, computes the gradients first."""
        loss = None
        if closure is not None:  # before param_groups is narrowed, because the closure may set all gradients to zero
            with torch.enable_grad():
                loss = closure()
        every = self.param_groups
        for group in every:
            for weight in group["params"] if group["gates"] else ():
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(self._direction(weight, weight.grad, group["gates"]), alpha=-group["lr"])
        self.param_groups = [group for group in every if not group["gates"]]
        try:
            super().step()
        finally:
            self.param_groups = every
        return loss

    def _direction(self, weight: Tensor, gradient: Tensor, gates: int) -> Tensor:
        state = self.state[weight]
        if not state:  # named as in AdamW, which expects `step` in every state that it loads
            state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(weight)
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(state["exp_avg"], MOMENTUM)
        matrices = ahead.reshape(gates, len(weight) // gates, -1)
        size: float = RMS * max(matrices.shape[1:]) ** 0.5
        return orthogonal(matrices).mul_(size).reshape(weight.shape)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return approximately U Vᵀ for matrices U S Vᵀ, float32 [N, rows, columns], by Newton-Schulz iteration."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = POLYNOMIAL
    for _ in range(ROUNDS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.transpose(1, 2)


def groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters of a network as groups for `Muon`, without weight decay for norms and biases."""
    found: dict[tuple[int, float], list[Tensor]] = {}
    for name, weight in model.named_parameters():
        *_, module, kind = name.split(".")
        gates = GATES.get(module, 0) if kind == "weight" else 0
        decays = weight.ndim > 1 and "norm" not in name
        found.setdefault((gates, weight_decay if decays else 0.0), []).append(weight)
    return [
        {"params": weights, "gates": gates, "weight_decay": decay} for (gates, decay), weights in sorted(found.items())
    ]
