"""The step with its ring of past cells in PyTorch, between tensors that stay where they are.

The counterpart of `compose.step_graph` in ONNX. Every shape is fixed and the next states are written into tensors that
are given, so that the step can be compiled once and captured as a CUDA graph.
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
"""The type of the products of each policy; those of fp32 and tf32 are float32, and differ by `tf32.arithmetic`."""
FORMS = 64
"""Compiled forms of the ring step that PyTorch is to keep."""
UNMASKED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention kernels for a full ring, best first. PyTorch would take cuDNN's before flash attention, which alone splits
over keys: one stream has too few queries to occupy a GPU otherwise. Flash attention takes no mask and no float32."""
FLOAT32 = [SDPBackend.MATH]
"""Attention kernels for float32 on a GPU: products and softmax one by one were 14 times faster for one stream than the
fused kernel that PyTorch chooses, which does not split over keys (benchmarks/NOTES.md). Many were not compared."""


class FusedRecall(nn.Module):
    """`PlainRecall` as PyTorch's fused attention, which stores no scores, except in float32 on a GPU.

    Args:
        dtype: type of its products; it adds up in float32 in any case.
    """

    def __init__(self, semantics: Semantics, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.semantics, self.dtype = semantics, dtype

    def forward(self, recall_gate: Tensor, history: tuple[Tensor, Tensor | None]) -> Tensor:
        keys, key_bias = history  # [B, K·D·h·w, N], [B, 1, K·D·h·w]; no bias once no slot is empty
        dtype = self.dtype or recall_gate.dtype
        queries = to_entry(recall_gate, self.semantics).to(dtype).contiguous()[:, None]  # [B, 1, D·h·w, N]
        states = keys.to(dtype)[:, None]
        bias = None
        if key_bias is not None:
            # One row for all queries, by a stride of 0. As bool it would become a float tensor of full size.
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
    """A convolution whose products are of a low type, with its bias added in float32 as in `types.typed`."""

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
    """`FlatConvolution` with channels last in memory, the layout that tensor cores read; weights stay in it."""

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
    """One step of the network over rings of past cells.

    Args:
        rewrites: names in `step.REWRITES`.
        precision: `fp32`, `tf32`, `bf16` or `fp16`, as far as it is in the types; see `tf32.arithmetic`.
        channels_last: give the 2D convolutions of the rewrite `conv2d` tensors with channels last.
        in_place: overwrite the oldest slot of each ring, in place of copying all of them.

    Args of `forward`:
        frame: [B, C, H, W].
        states: in the order of `contract.states`; the rings may be of the type of the products. They stay as they are,
            except that the rings become the next ones with `in_place`.
        following: like `states`, in other memory; the next states are written there, with `in_place` without rings.
        full: no ring has an empty slot, and so none is masked. Attention is faster without a mask.

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

        # All that may need memory comes before the first write, so that a failed step leaves the states whole.
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
        """Copy the slots that a step in place overwrites; putting them back restores the states.

        Args:
            states: as in `forward`.
            following: in the places of the rings where the slots go, [B, D·h·w, N].
        """
        rows = self._rows(states[self.place["written"]])
        for ring in (self.place[f"history.{layer}"] for layer in range(len(self.config.hidden))):
            torch.index_select(states[ring].flatten(0, 1), 0, rows, out=following[ring])

    def _rows(self, written: Tensor) -> Tensor:
        """Return each stream's oldest slot among those of all, [B], in rings as [B·K, D·h·w, N]."""
        K = self.config.history_length
        return torch.arange(0, K * len(written), K, device=written.device) + written % K

    def _key_bias(self, written: Tensor) -> Tensor:
        """Return the bias that hides empty slots, as they hold zeros, [B, 1, K·D·h·w]."""
        empty = (self.slots >= written[:, None]).repeat_interleave(self.config.positions, dim=1)  # [B, K·D·h·w]
        return torch.zeros_like(empty, dtype=torch.float32).masked_fill(empty, contract.EMPTY_BIAS)[:, None]


def compiled(ring: RingStep, **how: Any) -> Callable[..., Tensor]:
    """A ring step compiled by torch.compile, once for each number of streams.

    PyTorch keeps few compiled forms of one function, and then refuses; each network and number of streams takes one.
    Its limit is raised for the time of a call: it belongs to the program and, in newer versions, to the thread.
    """
    step: Callable[..., Tensor] = torch.compile(ring, fullgraph=True, dynamic=False, **how)

    def call(*tensors: Any, **options: Any) -> Tensor:
        limit = max(torch._dynamo.config.recompile_limit, FORMS)
        with torch._dynamo.config.patch(recompile_limit=limit):
            return step(*tensors, **options)

    return call
