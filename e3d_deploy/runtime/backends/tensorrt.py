"""Backend that runs TensorRT or TensorRT-RTX engines on an NVIDIA GPU."""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.runtime.backends.cuda import Cuda, Graph
from e3d_deploy.runtime.backends.device import Addresses, DeviceBackend
from e3d_deploy.runtime.backends.device_states import DeviceState
from e3d_deploy.runtime.backends.rollout import clip_by_steps, rollout_by_steps
from e3d_deploy.runtime.backends.tensorrt_engine import Engine
from e3d_deploy.tensorrt_library import Target, library

log = logging.getLogger(__name__)


class TensorRTBackend(DeviceBackend):
    """Backend that runs the engines of a bundle.

    For each of the two sets of states, the first step that reads the set runs uncaptured, which warms up the engine;
    the step is then captured as a CUDA graph, which later steps launch. Each batch size therefore has two CUDA graphs.
    Each CUDA graph has its own execution context, because it is invalid once its context changes. Clip and rollout run
    uncaptured, or by single steps if the bundle has no engine for them.

    Raises:
        BackendUnavailable: the library, the GPU or its driver is missing, or does not run the engine.
        BundleError: the bundle has no step engine that may be loaded. An error in another engine is raised when that
            engine first runs.
        ResourceLimit: the GPU does not have enough memory.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None, target: Target = "tensorrt") -> None:
        self.target = target
        library(target)  # Checked before CUDA, so that an error names the missing library first.
        cuda = Cuda()
        with cuda.opening():
            cuda.compile_kernel()
            self.engines = {"step": Engine(bundle, "step", target, cuda)}
        super().__init__(bundle.holding(()), cuda, self.engines["step"].sizes)
        self.name = target
        self.contexts: dict[tuple[str, int, int], Any] = {}
        self.graphs: dict[tuple[int, int], Graph] = {}

    def run_step(self, batch: int, side: int, addresses: Addresses) -> None:
        if (batch, side) in self.graphs:
            self.cuda.launch(self.graphs[batch, side])
            return
        context = self._context("step", batch, side)
        self.engines["step"].enqueue(context, addresses)
        if self.captures:
            self._capture(context, batch, side)

    def _capture(self, context: Any, batch: int, side: int) -> None:
        """Capture the step that has just run as a CUDA graph, without running it again."""
        self.cuda.synchronise()
        capturable = getattr(context, "is_stream_capturable", lambda _: True)  # Only TensorRT-RTX has this method.
        graph = None
        if capturable(self.cuda.handle):
            graph = self.cuda.capture(context.execute_async_v3)
        if graph is None:
            self.captures = False
            log.warning(
                "%s: the step cannot be captured as a CUDA graph (%s), so each step is enqueued kernel by "
                "kernel, which takes more CPU time",
                self.name,
                self.engines["step"].logger.reason,
            )
        else:
            self.graphs[batch, side] = graph

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], DeviceState]:
        if self._has("clip"):
            return super().clip(context)
        return clip_by_steps(self, context, self.bundle.horizon)

    def rollout(self, prediction: NDArray[np.float32], state: DeviceState) -> tuple[NDArray[np.float32], DeviceState]:
        if self._has("rollout"):
            return super().rollout(prediction, state)
        return rollout_by_steps(self, prediction, state, self.bundle.horizon)

    def _has(self, graph: str) -> bool:
        """Return True if the bundle has an engine for a graph; `e3d build --graphs step` builds only the step."""
        return f"{graph}.{self.target}" in self.bundle.manifest.engines

    def run_graph(self, graph: str, batch: int, addresses: Addresses) -> None:
        if graph not in self.engines:
            with self.cuda.all_or_nothing():
                self.engines[graph] = Engine(self.bundle, graph, self.target, self.cuda)
        self.engines[graph].enqueue(self._context(graph, batch, 0), addresses)

    def _context(self, graph: str, batch: int, side: int) -> Any:
        key = graph, batch, side
        if key not in self.contexts:
            self.contexts[key] = self.engines[graph].context(batch)
        return self.contexts[key]

    def release(self) -> None:
        for graph in self.graphs.values():
            graph.close()
        self.graphs.clear()
        self.contexts.clear()
        self.engines.clear()
