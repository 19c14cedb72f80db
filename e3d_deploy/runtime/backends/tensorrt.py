"""The graphs on TensorRT or TensorRT-RTX, on a GPU of NVIDIA."""

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
    """Runs the engines of a bundle.

    The first step from either set of states is an ordinary one, which warms up, and is then captured as a CUDA graph;
    those after it launch the graph. So each number of streams has two graphs, each with a context of its own, as a
    graph is only good while its context stays as it was. Clip and rollout are run as they come, and by single steps
    where the bundle has no engine of them.

    Raises:
        BackendUnavailable: the library, a GPU or its driver is not here, or does not run the engine.
        BundleError: the bundle has no engine of the step that may be loaded; of the others, when they are first run.
        ResourceLimit: the GPU has not enough memory.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None, target: Target = "tensorrt") -> None:
        self.target = target
        library(target)  # to name it first if it is missing
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
        """Keep the run that was just made as a graph; it does not run again."""
        self.cuda.synchronise()
        capturable = getattr(context, "is_stream_capturable", lambda _: True)  # TensorRT-RTX can be asked
        graph = None
        if capturable(self.cuda.handle):
            graph = self.cuda.capture(context.execute_async_v3)
        if graph is None:
            self.captures = False
            log.warning(
                "%s: the step cannot be captured as a CUDA graph (%s), so each is enqueued kernel by kernel, "
                "which takes the processor longer",
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
        """Return True if the bundle has an engine of a graph; `e3d build --graphs step` leaves the others out."""
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
