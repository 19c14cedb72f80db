"""PyTorch to ONNX: one step, exported once."""

import ast
import warnings

import torch
from onnx import GraphProto, NodeProto

from e3d_deploy import contract
from e3d_deploy.errors import ExportError
from e3d_deploy.export.graph.compose import OPSET
from e3d_deploy.export.graph.expansion import DOMAIN
from e3d_deploy.export.graph.operations import name_operations
from e3d_deploy.model import E3DLSTM
from e3d_deploy.operators import PRODUCTS
from e3d_deploy.quiet import quiet
from e3d_deploy.step import Step, example

REGISTRATION = "torch.onnx._internal.exporter._registration"
"""Logger that warns of the missing torchvision, which nothing here uses."""
FOLDING = "onnxscript.optimizer._constant_folding"
"""Logger that warns of each operator with several outputs, which it leaves as it is."""


def export_core(model: E3DLSTM, batch: int | None, *, fold: bool = True) -> GraphProto:
    """Export `Step` as a graph, with the operations that `variants.expand` writes for an engine as one node each.

    Its initializers are named as the model's parameters.

    Args:
        batch: streams that it runs at once; None for a named axis, any number.
        fold: leave out the convolution of a memory that stays zero.

    Raises:
        ExportError: PyTorch could not export it.
    """
    step = Step(model, ("frozen-memory",) if fold else ()).eval()
    for cell in step.model.cells:
        name_operations(cell)
    inputs = example(model.config, batch or 2)  # of an axis of 1 PyTorch takes for granted that it is 1
    any_number = {0: contract.ANY}
    dynamic = (any_number, any_number, (any_number,) * (len(inputs) - 2))
    try:
        with quiet(_ignore, loggers=(REGISTRATION, FOLDING)):
            program = torch.onnx.export(
                step,
                inputs,
                input_names=[contract.FRAME, "key_bias", *step.inputs],
                output_names=[contract.PREDICTION, *step.outputs],
                dynamic_shapes=dynamic if batch is None else None,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"PyTorch could not export the step: {error}") from error
    assert program is not None
    graph: GraphProto = program.model_proto.graph
    for initializer in graph.initializer:
        initializer.name = initializer.name.removeprefix("model.")
    for node in graph.node:
        if node.domain == DOMAIN or node.op_type in PRODUCTS:  # `types.products` names them by their layers
            node.name = f"{_module(node)}/{node.name}"
        # Where in the Python source it came from: ten times the size of the node.
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        node.input[:] = [name.removeprefix("model.") for name in node.input]
    return graph


def _module(node: NodeProto) -> str:
    """The module that a node was exported from, such as cells.0.hidden_conv."""
    scopes = next(entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes")
    path: str = ast.literal_eval(scopes)[-2]
    return path.removeprefix("model.")


def _ignore() -> None:
    """Ignore the exporter's remarks on itself."""
    warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))
    warnings.filterwarnings("ignore", "# The axis name: batch will not be used")  # one name is enough
