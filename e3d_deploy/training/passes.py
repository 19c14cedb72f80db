"""Training passes that are captured as CUDA graphs and replayed.

A training step runs thousands of small kernels. Python takes longer to launch them than a fast GPU takes to run them,
so a batch of 16 clips takes as long as a batch of 32 (benchmarks/NOTES.md). A captured graph launches all kernels at
once.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from e3d_deploy.model import E3DLSTM, State


class CapturedPasses:
    """The forward and backward pass of a network as CUDA graphs.

    One graph is captured for calls from the initial state, and one for calls from a state with a full history, after a
    burn-in. Predictions and gradients are stored in memory that the next call overwrites, so gradients must be set to
    None between two calls and cannot be accumulated.

    Args:
        model: network on a CUDA device; its parameters must not be moved.
        horizon: number of frames to predict after the context.
        recompute: passed to `E3DLSTM.forward`.
    """

    def __init__(self, model: E3DLSTM, horizon: int, *, recompute: bool = False) -> None:
        self.model, self.horizon, self.recompute = model, horizon, recompute
        self.captured: dict[tuple[torch.Size, ...], Callable[..., Any]] = {}

    def __call__(self, frames: Tensor, truth: Tensor, state: State | None) -> Tensor:
        """Predict by replaying a graph; the backward pass of the result replays one too.

        The first call for each set of tensor shapes captures the graphs. A state whose history is not full has a
        different shape at each age, so its pass is not captured.

        Args:
            frames: [B, T, C, H, W], in [0, 1].
            truth: draws of scheduled sampling, [B, T − 2]; see `E3DLSTM.forward`.
            state: state before the first frame; None for the initial one.

        Returns:
            Predictions, [B, T − 1, C, H, W].
        """
        tensors = (frames, truth, *flat(state))
        young = state is not None and len(state.history[0]) < self.model.config.history_length
        kind = frames.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        # The cache of autocast is switched off, so that the capture contains the casts of the weights. With the cache,
        # a replay would use casts of old weights.
        with torch.autocast(kind, low or torch.bfloat16, enabled=low is not None, cache_enabled=False):
            run: Callable[..., Any] = Pass(self.model, self.horizon, low, recompute=self.recompute)
            if not young:
                shapes = tuple(one.shape for one in tensors)
                run = self.captured.get(shapes) or self._capture(run, tensors)
                self.captured[shapes] = run
            predictions: Tensor = run(*tensors)
        return predictions

    def _capture(self, run: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
        # The nodes that accumulate gradients belong to the CUDA stream of the capture. PyTorch warns of the mismatch,
        # but synchronizes the CUDA streams, so the warning can be switched off.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        samples = tuple(one.detach().clone() for one in tensors)
        # Unused inputs are allowed: if the memory stays zero, the weights of its convolution are not used.
        captured: Callable[..., Any] = torch.cuda.make_graphed_callables(run, samples, allow_unused_input=True)
        return captured


class Pass(nn.Module):
    """Forward pass that takes and returns plain tensors; weights are cast once per call and not once per frame.

    Args:
        dtype: data type in which convolutions multiply; None for the data type of the weights.
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
    """Return the tensors of a state as a list; empty for None.

    The order is: hidden states, cell states, memory, window, then the history of each layer.
    """
    if state is None:
        return []
    return [*state.hidden, *state.cell, state.memory, state.window, *(one for layer in state.history for one in layer)]


def unflat(tensors: Sequence[Tensor], layers: int) -> State | None:
    """Return the state from whose tensors `flat` made a list; None for an empty list."""
    if not tensors:
        return None
    rest = iter(tensors)
    hidden, cell = (tuple(islice(rest, layers)) for _ in range(2))
    memory, window = next(rest), next(rest)
    entries = (len(tensors) - 2 * layers - 2) // layers  # in the history of each layer
    history = tuple(tuple(islice(rest, entries)) for _ in range(layers))
    return State(hidden=hidden, cell=cell, history=history, memory=memory, window=window)
