"""Example of a third-party backend: one class on ONNX's reference implementation, and one spec."""

from typing import Any

from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.runtime.backends.emulated import with_weights
from e3d_deploy.runtime.backends.host import HostBackend, Tensors
from e3d_deploy.runtime.backends.spec import BackendSpec


class ToyBackend(HostBackend):
    """Backend that runs the ONNX graphs in NumPy, node by node."""

    name = "toy"

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        super().__init__(bundle)
        self.graphs: dict[str, ReferenceEvaluator] = {}

    def tensor(self, array: NDArray[Any]) -> Any:
        return array

    def run(self, graph: str, batch: int, inputs: Tensors, outputs: Tensors) -> None:
        if graph not in self.graphs:
            self.graphs[graph] = ReferenceEvaluator(with_weights(self.bundle, self.bundle.entry(graph).file))
        session = self.graphs[graph]
        for name, result in zip(session.output_names, session.run(None, inputs), strict=True):
            outputs[name][:] = result

    def free(self) -> None:
        self.graphs.clear()


TOY = BackendSpec(
    name="toy",
    load=lambda: ToyBackend,
    modules=("onnx.reference",),
    install="pip install onnx",
    device="cpu",
    policies=frozenset({"fp32"}),
    summary="the ONNX graphs, unchanged, in NumPy",
    tested_on="yes",
)
