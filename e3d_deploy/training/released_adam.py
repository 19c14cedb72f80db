"""The optimizer of the released code: Adam with epsilon inside the square root."""

from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor
from torch.optim import Optimizer


class ReleasedAdam(Optimizer):
    """Adam with the update mean / √(squares + ε), where mean and squares are corrected for their start at zero.

    PyTorch's Adam adds ε after the root, which gives different updates for tiny gradients.

    Source: google/e3d_lstm src/models/model_factory.py, adam_updates; checked by test_trace_equals_the_released_one.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, betas: tuple[float, float], eps: float = 1e-8
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient; `closure`, if given, computes the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["mean"], state["squares"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] += 1
                state["mean"].lerp_(parameter.grad, 1 - beta1)
                state["squares"].lerp_(parameter.grad.square(), 1 - beta2)
                t = state["step"].item()
                mean, squares = state["mean"] / (1 - beta1**t), state["squares"] / (1 - beta2**t)
                parameter.addcdiv_(mean, (squares + group["eps"]).sqrt(), value=-group["lr"])
        return loss
