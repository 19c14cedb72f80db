"""Reference backend: the PyTorch model on the CPU, uncompiled."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from e3d_deploy import checkpoint, contract
from e3d_deploy.bundle.folder import MODEL, Bundle
from e3d_deploy.config import ModelConfig
from e3d_deploy.frames import FLOAT32, to_input
from e3d_deploy.model import E3DLSTM
from e3d_deploy.model import State as ModelState
from e3d_deploy.runtime.backends.host import as_frames
from e3d_deploy.runtime.backends.lifetime import Lifetime
from e3d_deploy.runtime.backends.protocol import Drive, Frame, NodeTime, State
from e3d_deploy.runtime.backends.rollout import clip_by_steps, rollout_by_steps
from e3d_deploy.runtime.backends.torch_settings import OwnSettings

DOUBLE = np.dtype(np.float64)


class TorchBackend(Lifetime):
    """Backend that runs the PyTorch model in eager mode on the CPU, in float32.

    The history of a state grows until it is full. A state is a dictionary of the model's `State` and the number of
    steps. A model in float64 runs in float64.
    """

    name = "torch"
    pads = False
    device = None

    def __init__(self, model: E3DLSTM, *, batch: int = 1, horizon: int = 10, threads: int | None = None) -> None:
        super().__init__()
        self.model, self.batch, self.horizon, self.threads = model.eval(), batch, horizon, threads
        self.sizes: tuple[int, ...] = (batch,)

    @classmethod
    def of_bundle(cls, bundle: Bundle, *, threads: int | None = None) -> "TorchBackend":
        """Open the model of a bundle."""
        with OwnSettings():
            model = checkpoint.load_content(bundle.held.shared(MODEL), bundle.path / MODEL)
        return cls(model, batch=bundle.batch, horizon=bundle.horizon, threads=threads)

    def initial_state(self, batch: int | None = None) -> State:
        self.check_open()
        with OwnSettings():
            return {"model": self.model.initial_state(batch or self.batch), "steps": 0}

    def gather(self, rows: Sequence[tuple[State, int]]) -> State:
        """Return the only state in `rows`.

        Histories that are not full differ in length, so streams cannot be combined in one step.
        """
        self.check_open()
        [(state, _)] = rows
        return state

    def step(self, frame: Frame, state: State) -> tuple[NDArray[np.float32], State]:
        self.check_open()
        with OwnSettings(self.threads), torch.inference_mode():
            dtype = self.model.to_patch.weight.dtype
            given = to_input(as_frames(frame, self.model.config), dtype=DOUBLE if dtype == torch.float64 else FLOAT32)
            prediction, model_state = self.model.step(torch.tensor(given, dtype=dtype), state["model"])
            steps = state["steps"] + 1
            return prediction.numpy(), {"model": model_state, "steps": steps}

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], State]:
        return clip_by_steps(self, context, self.horizon)

    def rollout(self, prediction: NDArray[np.float32], state: State) -> tuple[NDArray[np.float32], State]:
        self.check_open()
        return rollout_by_steps(self, prediction, state, self.horizon)

    def to_arrays(self, state: State) -> dict[str, NDArray[Any]]:
        self.check_open()
        with OwnSettings():
            return self._arrays(state)

    def _arrays(self, state: State) -> dict[str, NDArray[Any]]:
        config: ModelConfig = self.model.config
        tensors: ModelState = state["model"]
        arrays = {"memory": tensors.memory.numpy().copy(), "window": tensors.window.numpy().copy()}
        K = config.history_length
        written = contract.written_after(state["steps"], K)
        batch = len(tensors.memory)
        arrays["written"] = np.full(batch, written, np.int32)
        shapes = {tensor.name: tensor.shape for tensor in contract.states(config, batch)}
        for layer in range(len(config.hidden)):
            arrays[f"hidden.{layer}"] = tensors.hidden[layer].numpy().copy()
            arrays[f"cell.{layer}"] = tensors.cell[layer].numpy().copy()
            entries = torch.stack(tensors.history[layer], dim=1).numpy()
            ring = np.zeros(shapes[f"history.{layer}"], entries.dtype)
            ring[:, contract.slots(written, K)] = entries
            arrays[f"history.{layer}"] = ring
        return arrays

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        self.check_open()
        written = int(arrays["written"][0])
        slots = contract.slots(written, self.model.config.history_length)
        layers = range(len(self.model.config.hidden))
        with OwnSettings():
            tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
            state = ModelState(
                hidden=tuple(tensors[f"hidden.{layer}"] for layer in layers),
                cell=tuple(tensors[f"cell.{layer}"] for layer in layers),
                history=tuple(tensors[f"history.{layer}"][:, slots].unbind(1) for layer in layers),
                memory=tensors["memory"],
                window=tensors["window"],
            )
        return {"model": state, "steps": written - 1}

    def free(self) -> None:
        """Do nothing: another thread may be in a step, and the model is freed with the backend object."""


def profile(bundle: Bundle, drive: Drive, *, threads: int | None, steps: int) -> tuple[list[NodeTime], float]:
    """Time the operators of a step with PyTorch's profiler, which sums them over the steps; see `protocol.Profiler`."""
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
    with TorchBackend.of_bundle(bundle, threads=threads) as backend:
        step_ms = drive(backend, recording=profiler)
    operators = profiler.key_averages(group_by_input_shape=True)
    nodes = [
        NodeTime(_with_shapes(op.key, op.input_shapes), op.key, op.self_cpu_time_total / 1000, op.count)
        for op in operators
    ]
    return nodes, step_ms


def _with_shapes(key: str, shapes: Iterable[list[int]]) -> str:
    """Return a name such as `aten::cat 1×40×8×8, …`, because PyTorch gives single operators no name."""
    known = ["×".join(map(str, shape)) for shape in shapes if shape]
    return f"{key} {', '.join(known)}" if known else key
