"""Protocol of whatever runs the graphs of a bundle."""

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
"""Tensors of the states of a few streams, `contract.States`. Only the backend that made it can read it: it may live on
a device. It is a value: no call changes one that somebody holds, and what it holds is used again when nobody does."""
Frame = NDArray[np.float32] | NDArray[np.uint8]
"""A frame of each stream, float32 [B, C, H, W] in [0, 1], or a picture of each, uint8 [B, H, W, C]."""


class Device(Protocol):
    """Abilities of a backend whose states and frames lie on a GPU."""

    @property
    def device_ms(self) -> float | None:
        """Time of the last call's graph on the GPU (ms); None until `measure(True)`, and if it was not measured."""
        ...

    def measure(self, on: bool) -> None:
        """Switch the timing of calls on the GPU on or off."""
        ...

    def step_on_device(self, frame: Any, state: State) -> tuple[Any, State]:
        """Step like `Backend.step`, but leave the prediction on the GPU, where it can be the next frame."""
        ...

    def keep(self, picture: Any) -> Any:
        """Copy pictures on the GPU, uint8 [B, H, W, C], to memory of the backend."""
        ...

    def fetch(self, picture: Any) -> NDArray[Any]:
        """Copy a picture that `keep` returned to the host, uint8 [1, H, W, C]."""
        ...


class Backend(Protocol):
    """Runs the graphs of a bundle. It holds no video, so that streams can share it; any thread may call it.

    It is a context manager, which closes it. Every call after `close`, but for another `close`, raises `StreamError`.
    """

    name: str
    sizes: tuple[int, ...]
    """Numbers of streams that a step can take, ascending."""
    pads: bool
    """True if a step of few streams costs as much as one of more, as on a GPU that is not full."""

    @property
    def device(self) -> Device | None:
        """Abilities on a GPU; None for a backend on the host."""
        ...

    def initial_state(self, batch: int | None = None) -> State:
        """The state of so many streams before the first frame, one of `sizes`; None for the bundle's own number."""
        ...

    def gather(self, rows: Sequence[tuple[State, int]]) -> State:
        """A state of its own, whose stream i is the stream `rows[i][1]` of the state `rows[i][0]`."""
        ...

    def step(self, frame: Frame, state: State) -> tuple[NDArray[np.float32], State]:
        """Step each stream by one frame or picture; return the predictions [B, C, H, W] after it and the next state.

        The state that comes in stays as it is and may be used again. Pictures become frames where the step runs.
        """
        ...

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], State]:
        """The context [B, L, C, H, W] in, the forecast [B, horizon, C, H, W] and the last state out, in one call.

        Raises:
            BundleError: there is no clip graph.
        """
        ...

    def rollout(self, prediction: NDArray[np.float32], state: State) -> tuple[NDArray[np.float32], State]:
        """Return the forecast [B, horizon, C, H, W] that begins with `prediction`, and its last state, in one call.

        `prediction` is what `step` returned last. The state that comes in stays as it is; the one that goes out is that
        after the forecast's last step, which has seen its last frame but one.

        Raises:
            BundleError: there is no rollout graph.
        """
        ...

    def to_arrays(self, state: State) -> dict[str, NDArray[Any]]:
        """Return a copy of a state in NumPy, as `contract.States` describes it."""
        ...

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """The state that `to_arrays` copied, with zeros in empty slots whatever the arrays hold there."""
        ...

    def close(self) -> None:
        """Free what it holds; it cannot be used after, and closing it again does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True)
class NodeTime:
    """Time that a library spent under one name, in one run or more, or in the mean of a step."""

    name: str
    kind: str
    ms: float
    calls: float = 1


class Drive(Protocol):
    """Runs the steps that a profiler looks at."""

    def __call__(
        self,
        backend: Backend,
        *,
        recording: AbstractContextManager[object] | None = None,
        after: Callable[[], object] = lambda: None,
    ) -> float:
        """Run steps with a full history inside `recording`, call `after` after each, and return the time of one (ms).

        Steps that fill the history are run before, outside `recording`.
        """
        ...


class Profiler(Protocol):
    """Times the nodes of the step graph with the profiler of a library."""

    def __call__(
        self, bundle: "Bundle", drive: Drive, *, threads: int | None, steps: int
    ) -> tuple[list[NodeTime], float]:
        """Open a backend for profiling and drive it.

        Args:
            steps: steps that `drive` runs and times.

        Returns:
            The nodes of these steps, and the time of a step (ms).
        """
        ...


def step_size(backend: Backend, streams: int) -> int:
    """Return the number of streams that the next step takes when `streams` are ready.

    It is the largest size that they fill. If they fill none, or a step of few costs as much as one of more (`pads`), it
    is the smallest size that holds them all, if there is one.
    """
    filled = [size for size in backend.sizes if size <= streams]
    holding = [size for size in backend.sizes if size >= streams]
    return min(holding) if holding and (backend.pads or not filled) else max(filled)


def initial_arrays(config: ModelConfig, batch: int) -> dict[str, NDArray[Any]]:
    """Return the states of a network before the first frame: zeros, one of them an entry of the history."""
    return contract.states_of(config).initial(batch)
