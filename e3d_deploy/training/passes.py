"""Training passes replayed as CUDA graphs.

A step of training is thousands of small kernels. Python takes longer to launch them than a fast GPU takes to run them,
so that a batch of 16 clips takes as long as one of 32 (benchmarks/NOTES.md). Recorded once, they are launched as one.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from e3d_deploy.model import E3DLSTM, State


class CapturedPasses:
    """The forward and backward pass of a network, captured once from the initial state and once from an old one.

    Calling it takes and returns what `E3DLSTM.forward` does, except that predictions and gradients lie in memory that
    the next call overwrites. So gradients must be set to None between two calls, not added up.

    Args:
        model: network on a CUDA device; its parameters stay where they are.
        horizon: frames to predict beyond the context.
    """

    def __init__(self, model: E3DLSTM, horizon: int, *, recompute: bool = False) -> None:
        self.model, self.horizon, self.recompute = model, horizon, recompute
        self.captured: dict[tuple[torch.Size, ...], Callable[..., Any]] = {}

    def __call__(self, frames: Tensor, truth: Tensor, state: State | None) -> Tensor:
        """Predict and, in the backward pass, differentiate by replaying a graph; the first call of a kind captures it.

        A state whose history is not full has a shape of its own for each age, so that its pass is not captured.

        Args:
            frames: [B, T, C, H, W], in [0, 1].
            truth: [B, T − 2], see `E3DLSTM.forward`.
            state: state before the first frame; None for the initial one.

        Returns:
            Predictions, [B, T − 1, C, H, W].
        """
        tensors = (frames, truth, *flat(state))
        young = state is not None and len(state.history[0]) < self.model.config.history_length
        kind = frames.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        # A captured cast of a weight must not be replaced by one that was cached outside.
        with torch.autocast(kind, low or torch.bfloat16, enabled=low is not None, cache_enabled=False):
            run: Callable[..., Any] = Pass(self.model, self.horizon, low, recompute=self.recompute)
            if not young:
                shapes = tuple(one.shape for one in tensors)
                run = self.captured.get(shapes) or self._capture(run, tensors)
                self.captured[shapes] = run
            predictions: Tensor = run(*tensors)
        return predictions

    def _capture(self, run: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
        # The nodes that add up gradients belong to the stream of the capture; PyTorch orders the streams, and warns.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        samples = tuple(one.detach().clone() for one in tensors)
        # Where the memory stays zero, its convolution is not used.
        captured: Callable[..., Any] = torch.cuda.make_graphed_callables(run, samples, allow_unused_input=True)
        return captured


class Pass(nn.Module):
    """A network's predictions on plain tensors, with weights cast once instead of at every frame.

    Args:
        dtype: type of the products of convolutions; None: that of the weights.
    """

    def __init__(self, model: E3DLSTM, horizon: int, dtype: torch.dtype | None, *, recompute: bool = False) -> None:
        super().__init__()
        self.model, self.horizon, self.dtype, self.recompute = model, horizon, dtype, recompute

    def forward(self, frames: Tensor, truth: Tensor, *state: Tensor) -> Tensor:
        weights = {
            name: weight.to(self.dtype or weight.dtype)
            for name, weight in self.model.named_parameters()
            if weight.ndim == 5
        }
        options = {"truth": truth, "state": unflat(state, len(self.model.cells)), "recompute": self.recompute}
        predictions: Tensor = functional_call(self.model, weights, (frames, self.horizon), options)
        return predictions


def flat(state: State | None) -> list[Tensor]:
    """Return the tensors of a state: hidden, cell, memory, window, entries of each layer; none for no state."""
    if state is None:
        return []
    return [*state.hidden, *state.cell, state.memory, state.window, *(one for layer in state.history for one in layer)]


def unflat(tensors: Sequence[Tensor], layers: int) -> State | None:
    """Return the state of `flat`, given the number of layers; None for no tensors."""
    if not tensors:
        return None
    rest = iter(tensors)
    hidden, cell = (tuple(islice(rest, layers)) for _ in range(2))
    memory, window = next(rest), next(rest)
    entries = (len(tensors) - 2 * layers - 2) // layers  # of each layer
    history = tuple(tuple(islice(rest, entries)) for _ in range(layers))
    return State(hidden=hidden, cell=cell, history=history, memory=memory, window=window)
