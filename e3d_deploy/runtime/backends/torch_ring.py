"""PyTorch step with rings of past cell states, which reads and writes tensors at fixed addresses.

The ONNX counterpart of this step is `compose.step_graph`. All shapes are fixed, and the next states are written to
tensors that the caller passes, so that the step can be compiled once and captured as a CUDA graph.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from e3d_deploy import contract
from e3d_deploy.config import Semantics
from e3d_deploy.model import E3DLSTM, from_entry, to_entry
from e3d_deploy.step import REWRITES, FlatConvolution, FlatOpenSTLConvolution, Step

LOW = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Low type of convolutions and matrix products by policy.

fp32 and tf32 both use float32; `tf32.arithmetic` selects between them.
"""
FORMS = 64
"""Maximum number of compiled forms of the ring step; PyTorch compiles one per network and batch size."""
UNMASKED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention kernels for full rings, in order of preference.

By default PyTorch prefers cuDNN's kernel to flash attention. Only flash attention divides its work over the keys, which
one stream needs to occupy a GPU, because it has few queries. Flash attention supports neither masks nor float32.
"""
FLOAT32 = [SDPBackend.MATH]
"""Attention kernels for float32 on a GPU: separate matrix products and softmax.

For one stream they were 14 times faster than the fused kernel that PyTorch chooses, which does not divide its work over
the keys (benchmarks/NOTES.md). Larger batches were not compared.
"""


class FusedRecall(nn.Module):
    """`PlainRecall` with PyTorch's fused attention, which does not store the scores; on a GPU in float32 it is unfused.

    Args:
        dtype: type of the factors of its matrix products, which are accumulated in float32; None for the type of the
            recall gate.
    """

    def __init__(self, semantics: Semantics, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.semantics, self.dtype = semantics, dtype

    def forward(self, recall_gate: Tensor, history: tuple[Tensor, Tensor | None]) -> Tensor:
        keys, key_bias = history  # [B, K·D·h·w, N], [B, 1, K·D·h·w]; None if no slot is empty
        dtype = self.dtype or recall_gate.dtype
        queries = to_entry(recall_gate, self.semantics).to(dtype).contiguous()[:, None]  # [B, 1, D·h·w, N]
        states = keys.to(dtype)[:, None]
        bias = None
        if key_bias is not None:
            # All queries share one row, by a stride of 0. PyTorch would expand a bool mask to a full-size float tensor.
            bias = key_bias.to(dtype)[:, None].expand(-1, -1, queries.shape[2], -1)
        if queries.is_cuda and dtype == torch.float32:
            with sdpa_kernel(FLOAT32):
                recalled = F.scaled_dot_product_attention(queries, states, states, attn_mask=bias, scale=1.0)
        elif bias is None:
            with sdpa_kernel(UNMASKED, set_priority=True):
                recalled = F.scaled_dot_product_attention(queries, states, states, scale=1.0)
        else:
            recalled = F.scaled_dot_product_attention(queries, states, states, attn_mask=bias, scale=1.0)
        return from_entry(recalled[:, 0].to(recall_gate.dtype), recall_gate, self.semantics)


class TypedConvolution(nn.Module):
    """Convolution in a low type, with the bias added in float32 as in `types.typed`."""

    def __init__(self, convolution: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.bias = getattr(convolution, "bias", None)
        if self.bias is not None:
            convolution.bias = None  # type: ignore[assignment]
        self.convolution, self.dtype = convolution.to(dtype), dtype

    def forward(self, window: Tensor) -> Tensor:
        unbiased: Tensor = self.convolution(window.to(self.dtype)).to(window.dtype)
        return unbiased if self.bias is None else unbiased + self.bias.view(-1, 1, 1, 1)


class ChannelsLast(nn.Module):
    """`FlatConvolution` with inputs and weights stored channels last, the layout that tensor cores read."""

    both: Tensor
    last: Tensor

    def __init__(self, convolution: FlatConvolution) -> None:
        super().__init__()
        self.bias, self.padding = convolution.bias, convolution.padding
        weights = {"both": convolution.weight.flatten(1, 2), "last": convolution.weight[:, :, 0]}
        for name, weight in weights.items():
            self.register_buffer(name, weight.detach().clone(memory_format=torch.channels_last))

    def forward(self, window: Tensor) -> Tensor:
        D = window.shape[2]
        pairs = [self._convolved(window[:, :, slot : slot + 2].flatten(1, 2), self.both) for slot in range(D - 1)]
        return torch.stack([*pairs, self._convolved(window[:, :, D - 1], self.last)], dim=2)

    def _convolved(self, slots: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(slots.contiguous(memory_format=torch.channels_last), weight, self.bias, padding=self.padding)


class RingStep(nn.Module):
    """One step of the network, with rings of past cell states.

    Args:
        rewrites: keys of `step.REWRITES`.
        precision: `fp32`, `tf32`, `bf16` or `fp16`. fp32 and tf32 give the same module; the caller selects between them
            with `tf32.arithmetic`.
        channels_last: store the inputs of the 2D convolutions of the rewrite `conv2d` channels last.
        in_place: overwrite the oldest slot of each ring instead of copying the ring.

    Args of `forward`:
        frame: [B, C, H, W].
        states: tensors in the order of `contract.states`; rings may have the low type. They are not changed, except
            that with `in_place` the rings become the next rings.
        following: tensors like `states`, in other memory, to which the next states are written. With `in_place`, no
            rings are written there.
        full: True if no ring has an empty slot. Then no slot is masked, and attention is faster.

    Returns:
        The prediction, [B, C, H, W].
    """

    slots: Tensor

    def __init__(
        self,
        model: E3DLSTM,
        rewrites: Collection[str] = tuple(REWRITES),
        *,
        precision: str = "fp32",
        channels_last: bool = False,
        in_place: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.in_place = model.config, in_place
        self.core = Step(model, rewrites).eval().requires_grad_(False)
        low = LOW.get(precision)
        for cell in self.core.model.cells:
            cell.recall = FusedRecall(self.config.semantics, low)
            for name, module in list(cell.named_children()):
                if channels_last and isinstance(module, FlatConvolution):
                    module = ChannelsLast(module)
                if low and isinstance(module, nn.Conv3d | ChannelsLast | FlatConvolution | FlatOpenSTLConvolution):
                    module = TypedConvolution(module, low)
                setattr(cell, name, module)
        names = [tensor.name for tensor in contract.states(self.config)]
        self.place = {name: place for place, name in enumerate(names)}
        self.register_buffer("slots", torch.arange(self.config.history_length, dtype=torch.int32), persistent=False)

    def forward(
        self, frame: Tensor, states: Sequence[Tensor], following: Sequence[Tensor], *, full: bool = False
    ) -> Tensor:
        K, place = self.config.history_length, self.place
        written = states[place["written"]]  # [B]
        bindings = [
            states[place[name.replace("keys", "history")]].flatten(1, 2) if "keys" in name else states[place[name]]
            for name in self.core.inputs
        ]
        outputs: tuple[Tensor, ...] = self.core(frame, None if full else self._key_bias(written), *bindings)
        results = dict(zip(self.core.outputs, outputs[1:], strict=True))

        # Everything that may allocate memory precedes the first write, so that a failed step leaves the states intact.
        rings = [place[f"history.{layer}"] for layer in range(len(self.config.hidden))]
        entries = [results.pop(f"entry.{layer}").to(states[ring].dtype) for layer, ring in enumerate(rings)]
        more = torch.where(written + 1 >= 2 * K, written + 1 - K, written + 1)
        if self.in_place:
            rows = self._rows(written)
            for ring, entry in zip(rings, entries, strict=True):
                states[ring].flatten(0, 1).index_copy_(0, rows, entry)
        else:
            here = (self.slots == (written % K)[:, None])[:, :, None, None]  # [B, K, 1, 1]
            for ring, entry in zip(rings, entries, strict=True):
                torch.where(here, entry[:, None], states[ring], out=following[ring])
        for name, result in results.items():
            following[place[name.removeprefix(contract.NEXT)]].copy_(result)
        following[place["written"]].copy_(more)
        return outputs[0]

    def save(self, states: Sequence[Tensor], following: Sequence[Tensor]) -> None:
        """Save the slots that a step with `in_place` overwrites; copying them back restores the states.

        Args:
            states: as in `forward`.
            following: as in `forward`, but with a tensor of one slot, [B, D·h·w, N], at the position of each ring; the
                slots are saved there.
        """
        rows = self._rows(states[self.place["written"]])
        for ring in (self.place[f"history.{layer}"] for layer in range(len(self.config.hidden))):
            torch.index_select(states[ring].flatten(0, 1), 0, rows, out=following[ring])

    def _rows(self, written: Tensor) -> Tensor:
        """Return the row of each stream's oldest slot, [B], in rings flattened to [B·K, D·h·w, N]."""
        K = self.config.history_length
        return torch.arange(0, K * len(written), K, device=written.device) + written % K

    def _key_bias(self, written: Tensor) -> Tensor:
        """Return the bias on the attention scores, [B, 1, K·D·h·w]: `contract.EMPTY_BIAS` for empty slots, else 0."""
        empty = (self.slots >= written[:, None]).repeat_interleave(self.config.positions, dim=1)  # [B, K·D·h·w]
        return torch.zeros_like(empty, dtype=torch.float32).masked_fill(empty, contract.EMPTY_BIAS)[:, None]


def compiled(ring: RingStep, **how: Any) -> Callable[..., Tensor]:
    """Return a ring step that `torch.compile` compiles once for each batch size.

    PyTorch limits the number of compiled forms per function and raises an error beyond the limit. Each network and
    batch size needs one form, so the limit is raised during each call. The limit is restored after the call because it
    is a setting of the application and, in newer versions, of the thread.

    Args:
        how: further arguments of `torch.compile`.
    """
    step: Callable[..., Tensor] = torch.compile(ring, fullgraph=True, dynamic=False, **how)

    def call(*tensors: Any, **options: Any) -> Tensor:
        limit = max(torch._dynamo.config.recompile_limit, FORMS)
        with torch._dynamo.config.patch(recompile_limit=limit):
            return step(*tensors, **options)

    return call
