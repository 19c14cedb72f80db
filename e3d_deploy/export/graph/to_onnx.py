"""Export of one step from PyTorch to ONNX."""

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
"""Logger that warns about the missing torchvision, which the export does not need."""
FOLDING = "onnxscript.optimizer._constant_folding"
"""Logger that warns about each operator with several outputs, because constant folding does not change it."""


def export_core(model: E3DLSTM, batch: int | None, *, fold: bool = True) -> GraphProto:
    """Export `Step` as a graph in which each operation of the domain `e3d_deploy` is one node.

    `variants.expand` replaces these operations. The initializers are named like the parameters of the model.

    Args:
        batch: batch size; None for a named axis of any size.
        fold: with `google` and `openstl` semantics, whose memory stays zero, replace its convolution with a constant.

    Raises:
        ExportError: PyTorch cannot export the step.
    """
    step = Step(model, ("frozen-memory",) if fold else ()).eval()
    for cell in step.model.cells:
        name_operations(cell)
    inputs = example(model.config, batch or 2)  # PyTorch would export an axis of size 1 as a fixed size
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
        if node.domain == DOMAIN or node.op_type in PRODUCTS:  # `types.products` reads the layer from the name
            node.name = f"{_module(node)}/{node.name}"
        # The metadata give the Python source of the node and take ten times the space of the node itself.
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        node.input[:] = [name.removeprefix("model.") for name in node.input]
    return graph


def _module(node: NodeProto) -> str:
    """Return the path of the module that a node was exported from, such as `cells.0.hidden_conv`."""
    scopes = next(entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes")
    path: str = ast.literal_eval(scopes)[-2]
    return path.removeprefix("model.")


def _ignore() -> None:
    """Ignore the exporter's deprecation warnings about its own code, and a warning about a repeated axis name."""
    warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))
    # All inputs share one name for the batch axis, and the exporter warns at each further use of the name.
    warnings.filterwarnings("ignore", "# The axis name: batch will not be used")
