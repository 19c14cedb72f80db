"""PyTorch to ONNX: one step, exported once."""

import ast
import warnings
from collections.abc import Collection

import torch
from onnx import GraphProto, NodeProto

from e3d_deploy import contract
from e3d_deploy.errors import ExportError
from e3d_deploy.export.graph.compose import OPSET
from e3d_deploy.model import E3DLSTM
from e3d_deploy.quiet import quiet
from e3d_deploy.step import REWRITES, Step, example

REGISTRATION = "torch.onnx._internal.exporter._registration"
"""Logger that warns of the missing torchvision, which nothing here uses."""
FOLDING = "onnxscript.optimizer._constant_folding"
"""Logger that warns of each operator with several outputs, which it leaves as it is."""


def export_core(model: E3DLSTM, batch: int | None, rewrites: Collection[str] = tuple(REWRITES)) -> GraphProto:
    """`Step` as a graph; its initializers are named as the model's parameters.

    Args:
        batch: streams that it runs at once; None for a named axis, any number.
        rewrites: of `step.REWRITES`.

    Raises:
        ExportError: PyTorch could not export it.
    """
    step = Step(model, rewrites).eval()
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
        if node.op_type in ("Conv", "MatMul"):  # `types.products` names them by their layers
            node.name = f"{_module(node)}/{node.name}"
        # Where in the Python source it came from: ten times the size of the node.
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        node.input[:] = [name.removeprefix("model.") for name in node.input]
    return graph


def one_sided_convolutions(graph: GraphProto) -> list[str]:
    """Return the names of the convolutions whose pads differ before and after an axis.

    ONNX Runtime on CUDA has no kernel for them. An explicit Pad before the convolution does not help: PyTorch's
    exporter and ONNX Runtime both fuse it back into the convolution.
    """
    pads = {node.name: _pads(node) for node in graph.node if node.op_type == "Conv"}
    return [name for name, sides in pads.items() if sides[: len(sides) // 2] != sides[len(sides) // 2 :]]


def _pads(node: NodeProto) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == "pads"), [])


def _module(node: NodeProto) -> str:
    """The module that a node was exported from, such as cells.0.hidden_conv."""
    scopes = next(entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes")
    path: str = ast.literal_eval(scopes)[-2]
    return path.removeprefix("model.")


def _ignore() -> None:
    """Ignore the exporter's remarks on itself."""
    warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))
    warnings.filterwarnings("ignore", "# The axis name: batch will not be used")  # one name is enough
