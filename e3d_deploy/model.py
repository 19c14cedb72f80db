"""E3D-LSTM in the notation of the paper (Wang et al., Eidetic 3D LSTM, ICLR 2019, section 3).

Axes: B batch, T frames, C picture channels, H W pixels, p patch side, P = C·p² patch channels, h w patch grid,
D frames in the window, N hidden channels, S cell states in the history (at most K, the number of slots), L layers.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from e3d_deploy.config import ModelConfig, Semantics


def to_patches(frames: Tensor, patch_size: int) -> Tensor:
    """Fold each p×p square into channels: [..., C, H, W] to [..., P, h, w].

    The index of a channel is (row·p + column)·C + colour, as in google/e3d_lstm. `pixel_unshuffle` has the
    colour first, which differs for colour frames.
    """
    *lead, C, H, W = frames.shape
    p, h, w = patch_size, H // patch_size, W // patch_size
    squares = frames.reshape(-1, C, h, p, w, p).permute(0, 3, 5, 1, 2, 4)  # [-1, p, p, C, h, w]
    return squares.reshape(*lead, p * p * C, h, w)


def to_frames(patches: Tensor, patch_size: int) -> Tensor:
    """Unfold patches into frames, the inverse of `to_patches`: [..., P, h, w] to [..., C, H, W]."""
    *lead, P, h, w = patches.shape
    p, C = patch_size, P // patch_size**2
    squares = patches.reshape(-1, p, p, C, h, w).permute(0, 3, 4, 1, 5, 2)  # [-1, C, h, p, w, p]
    return squares.reshape(*lead, C, h * p, w * p)


def to_entry(cell: Tensor, semantics: Semantics) -> Tensor:
    """Convert a cell state [B, N, D, h, w] to an entry of the history, [B, D·h·w, N]: D·h·w keys of the recall.

    A key contains the N channels of one position. OpenSTL reshapes the state without a transposition, so that its
    keys contain N positions of one channel.
    """
    if semantics == "openstl":
        return cell.reshape(cell.shape[0], -1, cell.shape[1])
    return cell.flatten(2).transpose(1, 2)


def from_entry(entry: Tensor, like: Tensor, semantics: Semantics) -> Tensor:
    """Convert an entry of the history back, the inverse of `to_entry`: [B, D·h·w, N] to the shape of `like`."""
    return (entry if semantics == "openstl" else entry.transpose(1, 2)).reshape(like.shape)


class Recall(nn.Module):
    """Attention over past cell states, with the recall gate as the query at each position.

    Args of `forward`:
        recall_gate: [B, N, D, h, w], in (0, 1).
        history: S entries of past cell states in any order, each [B, D·h·w, N].

    Returns:
        The recalled state, [B, N, D, h, w].

    Source: paper, RECALL; google/e3d_lstm src/layers/rnn_cell.py, _attn. One head, no scale.
    """

    def __init__(self, semantics: Semantics) -> None:
        super().__init__()
        self.semantics = semantics

    def forward(self, recall_gate: Tensor, history: tuple[Tensor, ...]) -> Tensor:
        # Without an axis for heads, or if the queries are not contiguous, PyTorch uses an implementation that stores
        # all scores.
        queries = to_entry(recall_gate, self.semantics).contiguous()[:, None]  # [B, 1, D·h·w, N]
        states = torch.cat(history, dim=1)[:, None]  # [B, 1, S·D·h·w, N], both keys and values
        recalled = F.scaled_dot_product_attention(queries, states, states, scale=1.0)
        return from_entry(recalled[:, 0], recall_gate, self.semantics)


class Convolution(nn.Conv3d):
    """Convolution with kernel (2, k, k) and zero padding: [B, N, D, h, w] to [B, M, D, h, w].

    The padding equals SAME in TensorFlow for a kernel of depth 2: nothing before the first frame, one frame of zeros
    after the last frame. So output d sees frames d and d + 1, and the last output sees only the last frame.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        around = kernel_size // 2
        super().__init__(in_channels, out_channels, (2, kernel_size, kernel_size), padding=(0, around, around))

    def forward(self, window: Tensor) -> Tensor:
        return super().forward(F.pad(window, (0, 0, 0, 0, 0, 1)))


class OpenSTLConvolution(nn.Conv3d):
    """OpenSTL's convolution with kernel (2, k, k) over a window of two frames: [B, N, 2, h, w] to [B, M, 2, h, w].

    The window is not padded in time, so the convolution returns one frame, on a grid that is coarser by `stride`.
    Nearest upsampling copies this frame to both frames of the output and to the full grid.

    Source: openstl/modules/e3dlstm_modules.py, tf_Conv3d.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        around = kernel_size // 2
        super().__init__(
            in_channels,
            out_channels,
            (2, kernel_size, kernel_size),
            stride=(1, stride, stride),
            padding=(0, around, around),
            bias=False,
        )

    def forward(self, window: Tensor) -> Tensor:
        return F.interpolate(super().forward(window), size=window.shape[2:])


class E3DLSTMCell(nn.Module):
    """Cell of one layer (paper, equations 1 to 3; released code, Eidetic3DLSTMCell).

    Args of `forward`:
        inputs: [B, I, D, h, w]; hidden, cell: [B, N, D, h, w]; memory: [B, M, D, h, w];
        history: S entries [B, D·h·w, N].

    Returns:
        next_hidden, next_cell [B, N, D, h, w], and the memory for the next layer: the updated memory
        [B, N, D, h, w] with `paper` semantics, and `memory` itself with `google` and `openstl` semantics.

    Only `openstl` semantics use `stride` and `grid_size` (h, w). The norms need the grid size, because they have one
    scale per position.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        memory_channels: int,
        *,
        kernel_size: int,
        layer_norm: bool,
        norm_eps: float,
        semantics: Semantics,
        stride: int = 1,
        grid_size: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.semantics = semantics
        openstl = semantics == "openstl"

        def convolution(inputs: int, outputs: int) -> nn.Module:
            if openstl:
                return OpenSTLConvolution(inputs, outputs, kernel_size, stride)
            return Convolution(inputs, outputs, kernel_size)

        def norm(channels: int) -> nn.Module:
            """Return a norm over channels, window and grid together."""
            if openstl:
                return nn.LayerNorm((channels, 2, *grid_size), norm_eps)
            return nn.GroupNorm(1, channels, norm_eps)  # one scale and shift per channel

        def gate_norm(channels: int) -> nn.Module:
            return norm(channels) if layer_norm else nn.Identity()

        self.hidden_conv = convolution(hidden, 4 * hidden)
        self.hidden_norm = gate_norm(4 * hidden)
        self.input_conv = convolution(in_channels, 7 * hidden)
        self.input_norm = gate_norm(7 * hidden)
        self.cell_norm = norm(hidden)
        self.memory_conv = convolution(memory_channels, 4 * hidden)
        self.memory_norm = gate_norm(4 * hidden)
        self.cell_to_output = convolution(hidden, hidden)
        self.memory_to_output = convolution(hidden, hidden)
        # Only OpenSTL normalises these two.
        self.cell_to_output_norm = gate_norm(hidden) if openstl else nn.Identity()
        self.memory_to_output_norm = gate_norm(hidden) if openstl else nn.Identity()
        self.merge = nn.Conv3d(2 * hidden, hidden, 1, bias=not openstl)
        self.recall = Recall(semantics)

    def forward(
        self, inputs: Tensor, hidden: Tensor, cell: Tensor, memory: Tensor, history: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        recall_gate, input_gate, candidate, output, next_memory = self.gates(inputs, hidden, memory)
        recalled = self.recall(recall_gate, history)
        next_hidden, next_cell = self.states(cell, recalled, input_gate, candidate, output, next_memory)
        # The released code returns the memory unchanged: google/e3d_lstm issues 1 and 13. Checked by
        # test_memory_moves_at_every_step and the golden traces.
        return next_hidden, next_cell, next_memory if self.semantics == "paper" else memory

    # The computation before the recall and after it is in two methods, each of which is compiled only once. The recall
    # itself is not compiled, because it reads a growing number of entries.

    def gates(self, inputs: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return recall gate, input gate, candidate, partial output and next memory. None depends on the cell state."""
        i_h, g_h, r_h, o_h = self.hidden_norm(self.hidden_conv(hidden)).chunk(4, dim=1)
        i_x, g_x, r_x, o_x, mi_x, mg_x, mf_x = self.input_norm(self.input_conv(inputs)).chunk(7, dim=1)
        recall_gate = torch.sigmoid(r_x + r_h)
        input_gate = torch.sigmoid(i_x + i_h)
        candidate = torch.tanh(g_x + g_h)

        mi_m, mf_m, mg_m, m_m = self.memory_norm(self.memory_conv(memory)).chunk(4, dim=1)
        memory_input_gate = torch.sigmoid(mi_x + mi_m)
        memory_candidate = torch.tanh(mg_x + mg_m)
        memory_forget_gate = torch.sigmoid(mf_x + mf_m + 1.0)  # forget bias of 1, as in the released code
        next_memory = memory_forget_gate * torch.tanh(m_m) + memory_input_gate * memory_candidate
        return recall_gate, input_gate, candidate, o_x + o_h, next_memory

    def states(
        self, cell: Tensor, recalled: Tensor, input_gate: Tensor, candidate: Tensor, output: Tensor, next_memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the next hidden state and cell from the gates and the recalled state."""
        next_cell = self.cell_norm(cell + recalled) + input_gate * candidate
        # The sigmoid of a tanh is not in the paper. It is in the released code, which trained all published weights.
        o_c = self.cell_to_output_norm(self.cell_to_output(next_cell))
        o_m = self.memory_to_output_norm(self.memory_to_output(next_memory))
        output_gate = torch.sigmoid(torch.tanh(output + o_c + o_m))
        next_hidden = output_gate * torch.tanh(self.merge(torch.cat([next_cell, next_memory], dim=1)))
        return next_hidden, next_cell


class State(NamedTuple):
    """State of the network between two frames of a video."""

    hidden: tuple[Tensor, ...]
    """Hidden state of each layer, [B, N, D, h, w]."""
    cell: tuple[Tensor, ...]
    """Cell state of each layer, [B, N, D, h, w]."""
    history: tuple[tuple[Tensor, ...], ...]
    """History of each layer: S entries [B, D·h·w, N], oldest first; S grows up to `history_length`."""
    memory: Tensor
    """Global memory, [B, N, D, h, w], with the N of the top layer."""
    window: Tensor
    """The last D − 1 patched frames, oldest first, [B, P, D − 1, h, w]."""


class E3DLSTM(nn.Module):
    """E3D-LSTM network, which predicts the next frame after each input frame."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        inputs = (config.patch_channels, *config.hidden[:-1])
        self.cells = nn.ModuleList(
            E3DLSTMCell(
                in_channels,
                hidden,
                memory_channels,
                kernel_size=config.kernel_size,
                layer_norm=config.layer_norm,
                norm_eps=config.norm_eps,
                semantics=config.semantics,
                stride=config.stride,
                grid_size=config.grid_size,
            )
            for in_channels, hidden, memory_channels in zip(inputs, config.hidden, config.memory_channels, strict=True)
        )
        # Joins the D frames of the window into one frame, without activation or clipping.
        self.to_patch = nn.Conv3d(
            config.hidden[-1],
            config.patch_channels,
            (config.window_length, 1, 1),
            bias=config.semantics != "openstl",
        )
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def initial_state(self, batch: int) -> State:
        """Return the state before the first frame: zeros, with the zero state as the only entry of the history."""
        like, D, grid = self.to_patch.weight, self.config.window_length, self.config.grid_size
        hidden = tuple(like.new_zeros(batch, N, D, *grid) for N in self.config.hidden)
        return State(
            hidden=hidden,
            cell=hidden,
            history=tuple((to_entry(cell, self.config.semantics),) for cell in hidden),
            memory=hidden[-1],
            window=like.new_zeros(batch, self.config.patch_channels, D - 1, *grid),
        )

    def advance(self, frame: Tensor, state: State) -> tuple[Tensor, State]:
        """Run a step like `step`, but return the history unchanged."""
        patches = to_patches(frame, self.config.patch_size)
        window = torch.cat([state.window, patches[:, :, None]], dim=2)  # [B, P, D, h, w]
        inputs, memory = window, state.memory
        next_hidden, next_cell = [], []
        for layer, cell in enumerate(self.cells):
            inputs, c_next, memory = cell(inputs, state.hidden[layer], state.cell[layer], memory, state.history[layer])
            next_hidden.append(inputs)
            next_cell.append(c_next)
        prediction = to_frames(self.to_patch(inputs)[:, :, 0], self.config.patch_size)
        return prediction, State(tuple(next_hidden), tuple(next_cell), state.history, memory, window[:, :, 1:])

    def step(self, frame: Tensor, state: State) -> tuple[Tensor, State]:
        """Process one frame [B, C, H, W]; return the prediction of the next frame, [B, C, H, W], and the next state."""
        prediction, advanced = self.advance(frame, state)
        history = tuple(
            (*entries, to_entry(cell, self.config.semantics))[-self.config.history_length :]
            for entries, cell in zip(state.history, advanced.cell, strict=True)
        )
        return prediction, advanced._replace(history=history)

    def forward(
        self,
        frames: Tensor,
        horizon: int,
        truth: Tensor | None = None,
        *,
        state: State | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Predict the frame after each of the first L + horizon − 1 frames.

        Args:
            frames: input frames in [0, 1], [B, T, C, H, W]. Without `truth`, all T frames are context: L = T. With
                `truth`, T = L + horizon, and predictions may replace all frames but the first.
            horizon: number of frames to predict after the context, at least 1.
            truth: weight of the true frame in each input frame 1 to T − 2, float [B, T − 2]: 1 uses the true frame,
                0 the prediction. Drawn by scheduled sampling.
            state: state before the first frame; None for the initial state.
            recompute: store only the states between steps, and compute each step again in the backward pass.

        Returns:
            Predictions, [B, L + horizon − 1, C, H, W]; the last `horizon` follow the context.
        """
        context_length = frames.shape[1] if truth is None else frames.shape[1] - horizon
        step = partial(checkpoint, self.step, use_reentrant=False) if recompute else self.step
        state = self.initial_state(frames.shape[0]) if state is None else state
        predictions: list[Tensor] = []
        for t in range(context_length + horizon - 1):
            if t == 0 or (truth is None and t < context_length):
                frame = frames[:, t]
            elif truth is None:
                frame = predictions[-1]
            else:
                shown = truth[:, t - 1, None, None, None]
                frame = shown * frames[:, t] + (1 - shown) * predictions[-1]
            prediction, state = step(frame, state)
            predictions.append(prediction)
        return torch.stack(predictions, dim=1)
