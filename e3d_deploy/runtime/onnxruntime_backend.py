"""The step graph on ONNX Runtime, on the CPU."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.errors import BundleError
from e3d_deploy.runtime.backend import State, initial_arrays
from e3d_deploy.runtime.bundle import Bundle


class OnnxRuntimeBackend:
    """Runs step.onnx; a state is a dictionary of NumPy arrays.

    Raises:
        BundleError: ONNX Runtime cannot load the graph.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        self.bundle, self.threads = bundle, threads
        self.session = self._open("step")
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.others: dict[str, onnxruntime.InferenceSession] = {}

    def load(self, graph: str) -> onnxruntime.InferenceSession:
        """A session of a graph."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        file = str(self.bundle.graph(graph))
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def _open(self, graph: str) -> onnxruntime.InferenceSession:
        file = self.bundle.graph(graph)
        try:
            session = self.load(graph)
        except Exception as error:  # its exceptions have no common base of their own
            raise BundleError(f"{file}: ONNX Runtime {onnxruntime.__version__} cannot load it ({error})") from error
        for direction, found in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            listed = [(tensor["name"], tensor["shape"]) for tensor in self.bundle.manifest["graphs"][graph][direction]]
            if [(tensor.name, tensor.shape) for tensor in found] != listed:
                raise BundleError(
                    f"{file}: its {direction} are not those that the manifest lists; export the model again"
                )
        return session

    def initial_state(self) -> State:
        return initial_arrays(self.bundle.config, self.bundle.batch)

    def step(self, frame: NDArray[np.float32], state: State) -> tuple[NDArray[np.float32], State]:
        results = self.session.run(self.outputs, {contract.FRAME: frame, **state})
        outputs = dict(zip(self.outputs, results, strict=True))
        prediction = outputs.pop(contract.PREDICTION)
        return prediction, {name.removeprefix(contract.NEXT): value for name, value in outputs.items()}

    def clip(self, context: NDArray[np.float32]) -> tuple[NDArray[np.float32], State]:
        return self._forecast("clip", {contract.CONTEXT: context})

    def rollout(self, prediction: NDArray[np.float32], state: State) -> tuple[NDArray[np.float32], State]:
        return self._forecast("rollout", {contract.PREDICTION: prediction, **state})

    def _forecast(self, graph: str, inputs: dict[str, Any]) -> tuple[NDArray[np.float32], State]:
        session = self.others.get(graph) or self.others.setdefault(graph, self._open(graph))
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, inputs), strict=True))
        forecast = outputs.pop(contract.FORECAST)
        return forecast, {name.removeprefix(contract.NEXT): value for name, value in outputs.items()}

    def to_arrays(self, state: State) -> dict[str, NDArray[Any]]:
        return {name: value.copy() for name, value in state.items()}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        return {name: value.copy() for name, value in arrays.items()}

    def close(self) -> None:
        del self.session, self.others
