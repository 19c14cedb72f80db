"""The step as one would write it for torch.onnx.export, with nothing done to it: what ours is compared with."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from e3d_deploy import contract
from e3d_deploy.model import E3DLSTM, Recall, State, from_entry, to_entry
from e3d_deploy.runtime.backends.protocol import initial_arrays


class MaskedRecall(Recall):
    """Recall over a ring, its empty slots masked."""

    def forward(self, recall_gate: Tensor, history: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        ring, empty = history  # [B, K, D·h·w, N], bool [B, K]
        keys = ring.flatten(1, 2)
        scores = to_entry(recall_gate, self.semantics) @ keys.transpose(1, 2)
        masked = scores.masked_fill(empty.repeat_interleave(ring.shape[2], dim=1)[:, None], -torch.inf)
        return from_entry(masked.softmax(-1) @ keys, recall_gate, self.semantics)


class NaiveStep(nn.Module):
    """The step as one would write it for torch.onnx.export: the model as it is, and a ring around it."""

    def __init__(self, model: E3DLSTM) -> None:
        super().__init__()
        self.model = model
        for cell in model.cells:
            cell.recall = MaskedRecall(model.config.semantics)

    def forward(self, frame: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        config = self.model.config
        names = [tensor.name for tensor in contract.states(config)]
        state = dict(zip(names, states, strict=True))
        layers = range(len(config.hidden))
        slots = torch.arange(config.history_length)
        empty = slots >= state["written"][:, None]
        history = tuple((state[f"history.{layer}"], empty) for layer in layers)
        prediction, following = self.model.advance(
            frame,
            State(
                tuple(state[f"hidden.{layer}"] for layer in layers),
                tuple(state[f"cell.{layer}"] for layer in layers),
                history,  # type: ignore[arg-type]
                state["memory"],
                state["window"],
            ),
        )
        here = (slots == state["written"][:, None] % config.history_length)[:, :, None, None]
        more = state["written"] + 1
        out = {
            "memory": following.memory,
            "window": following.window,
            "written": torch.where(more >= 2 * config.history_length, more - config.history_length, more),
        }
        for layer in layers:
            out[f"hidden.{layer}"], out[f"cell.{layer}"] = following.hidden[layer], following.cell[layer]
            entry = to_entry(following.cell[layer], config.semantics)[:, None]
            out[f"history.{layer}"] = torch.where(here, entry, state[f"history.{layer}"])
        return prediction, *(out[name] for name in names)


def naive_export(model: E3DLSTM, path: Path) -> None:
    """torch.onnx.export of the step, with nothing done to it."""
    arrays = initial_arrays(model.config, 1)
    names = [tensor.name for tensor in contract.states(model.config)]
    frame = torch.zeros(contract.frame(model.config).shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            NaiveStep(model).eval(),
            (frame, *(torch.from_numpy(arrays[name]) for name in names)),
            str(path),
            input_names=[contract.FRAME, *names],
            output_names=[contract.PREDICTION, *(contract.NEXT + name for name in names)],
            opset_version=20,
            dynamo=True,
            verbose=False,
        )
