"""Steps of a float32 graph in OpenVINO, which is told to compute in bfloat16."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.runtime.backends.emulated import Steps
from e3d_deploy.runtime.backends.openvino import CORE, bfloat16_settings
from e3d_deploy.runtime.backends.protocol import Frame, State


class HintedSteps(Steps):
    """Steps of a graph, computed by OpenVINO with the settings of the backend `openvino`.

    Raises:
        BackendUnavailable: the processor does not support bfloat16.
    """

    def __init__(self, graph: ModelProto, config: ModelConfig, batch: int, *, threads: int | None = None) -> None:
        settings = {"PERFORMANCE_HINT": "LATENCY", **bfloat16_settings()}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        self.config, self.batch = config, batch
        model = CORE.read_model(graph.SerializeToString())
        model.reshape({port.any_name: [batch, *list(port.partial_shape)[1:]] for port in model.inputs})
        self.outputs = [output.name for output in graph.graph.output]
        self.request = CORE.compile_model(model, "CPU", settings).create_infer_request()

    def run(self, frame: Frame, state: State) -> dict[str, NDArray[Any]]:
        self.request.infer({contract.FRAME: frame, **state})
        return {name: np.array(self.request.get_tensor(name).data) for name in self.outputs}
