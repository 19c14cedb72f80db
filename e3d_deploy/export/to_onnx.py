"""PyTorch to ONNX: one step, exported once."""

import logging
import warnings

import torch
from onnx import GraphProto

from e3d_deploy import contract
from e3d_deploy.errors import ExportError
from e3d_deploy.export.compose import OPSET
from e3d_deploy.export.step import Step, example
from e3d_deploy.model import E3DLSTM


def export_core(model: E3DLSTM, batch: int) -> GraphProto:
    """`Step` as a graph with static shapes; its initializers are named as the model's parameters.

    Raises:
        ExportError: PyTorch could not export it.
    """
    step = Step(model).eval()
    # It warns of the missing torchvision, which nothing here uses.
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))
            program = torch.onnx.export(
                step,
                example(model.config, batch),
                input_names=[contract.FRAME, "key_bias", *step.inputs],
                output_names=[contract.PREDICTION, *step.outputs],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"PyTorch could not export the step: {error}") from error
    finally:
        registration.setLevel(level)
    assert program is not None
    graph: GraphProto = program.model_proto.graph
    for initializer in graph.initializer:
        initializer.name = initializer.name.removeprefix("model.")
    for node in graph.node:
        # Where in the Python source it came from: ten times the size of the node.
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        node.input[:] = [name.removeprefix("model.") for name in node.input]
    return graph
