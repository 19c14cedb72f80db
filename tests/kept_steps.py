"""Cache of steps exported by PyTorch, because the export takes seconds even for the smallest network."""

import hashlib
from typing import Any

from onnx import GraphProto

from e3d_deploy.export.graph.to_onnx import export_core
from e3d_deploy.model import E3DLSTM


class KeptSteps:
    """Cached `export_core`, which exports once per network, batch size and value of `fold`."""

    def __init__(self) -> None:
        self._kept: dict[Any, GraphProto] = {}

    def __call__(self, model: E3DLSTM, batch: int | None, *, fold: bool = True) -> GraphProto:
        weights = hashlib.sha256()
        for weight in model.state_dict().values():
            weights.update(weight.numpy().tobytes())
        key = model.config, batch, fold, weights.digest()
        if key not in self._kept:
            self._kept[key] = export_core(model, batch, fold=fold)
        copied = GraphProto()
        copied.CopyFrom(self._kept[key])
        return copied
