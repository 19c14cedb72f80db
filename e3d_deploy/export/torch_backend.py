"""The PyTorch model behind the runtime's Backend: the yardstick."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from e3d_deploy import checkpoint, contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.model import E3DLSTM
from e3d_deploy.model import State as ModelState
from e3d_deploy.runtime.backend import State
from e3d_deploy.runtime.bundle import MODEL, Bundle


class TorchBackend:
    """Eager float32 on the CPU, with the history that grows until it is full.

    A state is a dictionary with the model's State and the count of cells written.
    """

    name = "torch"

    def __init__(self, model: E3DLSTM, *, batch: int = 1, horizon: int = 10, threads: int | None = None) -> None:
        self.model, self.batch, self.horizon, self.threads = model.eval(), batch, horizon, threads

    @classmethod
    def of_bundle(cls, bundle: Bundle, *, threads: int | None = None) -> "TorchBackend":
        """The model that a bundle was made from."""
        model = checkpoint.load(bundle.path / MODEL)
        return cls(model, batch=bundle.batch, horizon=bundle.horizon, threads=threads)

    def initial_state(self) -> State:
        return {"model": self.model.initial_state(self.batch), "written": 1}

    @torch.inference_mode()
    def step(self, frame: NDArray[np.float32], state: State) -> tuple[NDArray[np.float32], State]:
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        prediction, model_state = self.model.step(torch.from_numpy(frame), state["model"])
        written = state["written"] + 1
        if written == 2 * self.model.config.history_length:
            written = self.model.config.history_length
        return prediction.numpy(), {"model": model_state, "written": written}

    @torch.inference_mode()
    def clip(self, context: NDArray[np.float32]) -> NDArray[np.float32]:
        forecast: NDArray[np.float32] = self.model(torch.from_numpy(context), self.horizon)[:, -self.horizon :].numpy()
        return forecast

    def to_arrays(self, state: State) -> dict[str, NDArray[Any]]:
        config: ModelConfig = self.model.config
        tensors: ModelState = state["model"]
        arrays = {"memory": tensors.memory.numpy().copy(), "window": tensors.window.numpy().copy()}
        arrays["written"] = np.full(self.batch, state["written"], np.int32)
        shapes = {tensor.name: tensor.shape for tensor in contract.states(config, self.batch)}
        for layer in range(len(config.hidden)):
            arrays[f"hidden.{layer}"] = tensors.hidden[layer].numpy().copy()
            arrays[f"cell.{layer}"] = tensors.cell[layer].numpy().copy()
            ring = np.zeros(shapes[f"history.{layer}"], np.float32)
            ring[:, _slots(state["written"], config.history_length)] = tensors.history[layer].numpy()
            arrays[f"history.{layer}"] = ring
        return arrays

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
        written = int(arrays["written"][0])
        slots = _slots(written, self.model.config.history_length)
        layers = range(len(self.model.config.hidden))
        state = ModelState(
            hidden=tuple(tensors[f"hidden.{layer}"] for layer in layers),
            cell=tuple(tensors[f"cell.{layer}"] for layer in layers),
            history=tuple(tensors[f"history.{layer}"][:, slots] for layer in layers),
            memory=tensors["memory"],
            window=tensors["window"],
        )
        return {"model": state, "written": written}

    def close(self) -> None:
        del self.model


def _slots(written: int, history_length: int) -> list[int]:
    """Slots of a ring in the order in which they were written, oldest first."""
    return [entry % history_length for entry in range(max(0, written - history_length), written)]
