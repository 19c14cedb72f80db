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
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        graph = bundle.graph("step")
        try:
            self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base of their own
            raise BundleError(f"{graph}: ONNX Runtime {onnxruntime.__version__} cannot load it ({error})") from error
        self.bundle = bundle
        self.outputs = [output.name for output in self.session.get_outputs()]

    def initial_state(self) -> State:
        return initial_arrays(self.bundle.config, self.bundle.batch)

    def step(self, frame: NDArray[np.float32], state: State) -> tuple[NDArray[np.float32], State]:
        results = self.session.run(self.outputs, {contract.FRAME: frame, **state})
        outputs = dict(zip(self.outputs, results, strict=True))
        prediction = outputs.pop(contract.PREDICTION)
        return prediction, {name.removeprefix(contract.NEXT): value for name, value in outputs.items()}

    def to_arrays(self, state: State) -> dict[str, NDArray[Any]]:
        return {name: value.copy() for name, value in state.items()}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        return {name: value.copy() for name, value in arrays.items()}

    def close(self) -> None:
        del self.session
