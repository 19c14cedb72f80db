"""Protocol of a backend, which runs the step of a bundle, and of its profiler."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.config import ModelConfig

if TYPE_CHECKING:
    from e3d_deploy.bundle.folder import Bundle

State = Any
"""State of one or more streams, with the tensors of `contract.States`.

Only the backend that made a state can read it, because the state may be on a GPU. States are immutable values: no call
changes a state that is still referenced. The memory of an unreferenced state is reused.
"""
Frame = NDArray[np.float32] | NDArray[np.uint8]
"""One frame per stream, float32 [B, C, H, W] in [0, 1], or one picture per stream, uint8 [B, H, W, C]."""


class Device(Protocol):
    """Additional methods of a backend that keeps states and frames on a GPU."""

    @property
    def device_ms(self) -> float | None:
        """Time of the last call's graph on the GPU (ms); None if that call was not timed, as before `measure(True)`."""
        ...

    def measure(self, on: bool) -> None:
        """Switch the timing of calls on the GPU on or off."""
        ...

    def step_on_device(self, frame: Any, state: State) -> tuple[Any, State]:
        """Step like `Backend.step`, but leave the prediction on the GPU; it can be passed as the next frame."""
        ...

    def keep(self, picture: Any) -> Any:
        """Copy pictures that are on the GPU, uint8 [B, H, W, C], to memory of the backend on the same GPU."""
        ...

    def fetch(self, picture: Any) -> NDArray[Any]:
        """Return a host copy of a picture that `keep` returned, uint8 [1, H, W, C]."""
        ...


class Backend(Protocol):
    """Runs the step of a bundle, and its clip and rollout.

    A backend keeps no state between calls, so streams can share it. Any thread may call it. Leaving its `with` block
    closes the backend. After `close`, every call except `close` raises `StreamError`.
    """

    name: str
    sizes: tuple[int, ...]
    """Batch sizes that a step accepts (streams), ascending."""
    pads: bool
    """True if a step of a larger size costs no more than a step of a smaller size, as on a GPU with idle cores."""

    @property
    def device(self) -> Device | None:
        """Additional methods of a backend on a GPU; None for a backend on the CPU."""
        ...

    def initial_state(self, batch: int | None = None) -> State:
        """Return the state of `batch` streams before their first frame.

        Args:
            batch: one of `sizes`; None for the batch size that the bundle was exported with.
        """
        ...

    def gather(self, rows: Sequence[tuple[State, int]]) -> State:
        """Return a new state whose row i is a copy of row `rows[i][1]` of the state `rows[i][0]`."""
        ...

    def step(self, frame: Frame, state: State) -> tuple[NDArray[np.float32], State]:
        """Step each stream by one frame or picture.

        `state` is not changed and may be passed again. Pictures are converted to frames on the device of the backend.

        Returns:
            The predictions, float32 [B, C, H, W], and the next state.
        """
        ...

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], State]:
        """Forecast from the initial state in one call.

        Args:
            context: frames before the forecast, [B, L, C, H, W].

        Returns:
            The forecast, [B, horizon, C, H, W], and the state after the last step.

        Raises:
            BundleError: the bundle has no clip graph, and the backend needs one.
        """
        ...

    def rollout(self, prediction: NDArray[np.float32], state: State) -> tuple[NDArray[np.float32], State]:
        """Continue a forecast from a prediction and the state after it, in one call.

        Args:
            prediction: prediction that the last `step` returned, [B, C, H, W].
            state: state that the last `step` returned; it is not changed.

        Returns:
            The forecast, [B, horizon, C, H, W], whose first frame is `prediction`, and the state after the last step.
            The last step predicts the last frame, so the state has not seen that frame.

        Raises:
            BundleError: the bundle has no rollout graph, and the backend needs one.
        """
        ...

    def to_arrays(self, state: State) -> dict[str, NDArray[Any]]:
        """Return a copy of a state as NumPy arrays by name; `contract.States` lists the names."""
        ...

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """Return the state that `to_arrays` copied; empty slots are set to zero, whatever the arrays contain there."""
        ...

    def close(self) -> None:
        """Free the memory of the backend, which cannot be used afterwards; closing it again does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True)
class NodeTime:
    """Time that a library reports for one node name: of one run, the sum of several runs, or the mean per step."""

    name: str
    kind: str
    ms: float
    calls: float = 1


class Drive(Protocol):
    """Runs the steps that a profiler records."""

    def __call__(
        self,
        backend: Backend,
        *,
        recording: AbstractContextManager[object] | None = None,
        after: Callable[[], object] = lambda: None,
    ) -> float:
        """Run steps with a full history and return the time of one step (ms).

        The steps that fill the history run first, outside `recording`.

        Args:
            recording: context in which the timed steps run.
            after: called after each timed step.
        """
        ...


class Profiler(Protocol):
    """Times the nodes of a step with the profiler of the backend's library."""

    def __call__(
        self, bundle: "Bundle", drive: Drive, *, threads: int | None, steps: int
    ) -> tuple[list[NodeTime], float]:
        """Open a backend with profiling enabled and run `drive` on it.

        Args:
            steps: number of steps that `drive` runs and times.

        Returns:
            The times of the nodes in these steps, and the time of one step (ms).
        """
        ...


def step_size(backend: Backend, streams: int) -> int:
    """Return the batch size of the next step when `streams` streams are ready.

    A size is filled if it is at most `streams`. The result is the largest filled size in `backend.sizes`. If no size is
    filled, or if the backend `pads`, the result is the smallest size that holds all streams, if there is such a size.
    """
    filled = [size for size in backend.sizes if size <= streams]
    holding = [size for size in backend.sizes if size >= streams]
    return min(holding) if holding and (backend.pads or not filled) else max(filled)


def initial_arrays(config: ModelConfig, batch: int) -> dict[str, NDArray[Any]]:
    """Return the state of `batch` streams before the first frame: all zeros, with one (zero) entry in each history."""
    return contract.states_of(config).initial(batch)
