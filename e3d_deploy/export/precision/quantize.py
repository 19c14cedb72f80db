"""Calibration for int8 and fp8: the range of a value is its largest magnitude over rollouts of real clips."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, helper

from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import ConfigError
from e3d_deploy.export.graph.compose import step_graph
from e3d_deploy.export.precision.types import fixed_values, products
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.operators import on
from e3d_deploy.runtime.backends.emulated import Steps, session
from e3d_deploy.runtime.backends.protocol import Frame, State

MARK = "largest/"


def calibrate(
    core: GraphProto,
    config: ModelConfig,
    batch: int | None,
    clips: Iterable[NDArray[np.float32]],
    *,
    context_length: int,
    threads: int | None = None,
) -> dict[str, float]:
    """Measure the ranges of the factors of `products`, and of the result of each convolution before its bias is added.

    The float32 step runs over the clips [T, C, H, W] as in a rollout: it reads `context_length` true frames, then its
    own predictions, and the states continue from step to step. Only the maxima are stored.

    Returns:
        The largest absolute value by the name of the value in the core.
    """
    names = _values(core)
    model = step_graph(_watched(core, names), config, batch)
    for name in names:
        model.graph.output.append(helper.make_tensor_value_info(f"t0/{MARK}{name}", TensorProto.FLOAT, []))
    steps = _Watching(session(model, threads=threads), config, batch or 1, names)
    for clip in clips:
        for _ in steps.predictions(clip, context_length):
            pass
    return steps.largest


def check_ranges(core: GraphProto, largest: Mapping[str, float], usual: Mapping[str, float], source: str) -> None:
    """Check that calibration found a range for each layer.

    Args:
        largest: ranges from `calibrate`, on clips of `source`.
        usual: ranges from `calibrate`, on clips from a different source. A value whose range is 0 in both is always 0,
            such as a memory that stays zero.

    Raises:
        ConfigError: a range is not finite, or it is 0 and the same range in `usual` is not.
    """
    for label, nodes in products(core).items():
        for name in (name for node in nodes for name in (*node.input[:2], node.output[0]) if name in largest):
            if not np.isfinite(largest[name]) or (largest[name] == 0 and usual[name] > 0):
                raise ConfigError(
                    f"calibration: on {source} the values of {label} have the range {largest[name]:g}, expected a "
                    f"finite range above 0; give other clips, or keep the layer in float32 with --exclude {label}"
                )


class _Watching(Steps):
    """Steps that record the largest value of each watched output."""

    def __init__(
        self, session: onnxruntime.InferenceSession, config: ModelConfig, batch: int, names: Sequence[str]
    ) -> None:
        super().__init__(session, config, batch)
        self.largest = dict.fromkeys(names, 0.0)

    def step(self, frame: Frame, state: State) -> tuple[NDArray[np.float32], State]:
        found = self.run(frame, state)
        for name, before in self.largest.items():
            self.largest[name] = float(np.maximum(before, found[f"t0/{MARK}{name}"]))  # keeps NaN
        return self.split(found)


def _values(core: GraphProto) -> list[str]:
    fixed = fixed_values(core)
    nodes = [node for nodes in products(core).values() for node in nodes]
    factors = [value for node in nodes for value in node.input[:2] if value not in fixed]
    return sorted({*factors, *(node.output[0] for node in nodes if node.op_type == "Conv")})


def _watched(core: GraphProto, names: Sequence[str]) -> GraphProto:
    """Return a copy of a core that also computes the largest absolute value of each named value."""
    graph = GraphProto()
    graph.CopyFrom(core)
    biased = {node.output[0]: node for node in core.node if node.op_type == "Conv" and len(node.input) > 2}
    for name in names:
        value, watch = name, MARK + name
        if name in biased:
            # The convolution is computed again without its bias: subtracting a large bias would lose digits.
            value = f"{watch}/unbiased"
            graph.node.append(on(biased[name], biased[name].input[:2], value))
        graph.node.append(helper.make_node("Abs", [value], [f"{watch}/all"], name=f"{watch}/all"))
        graph.node.append(helper.make_node("ReduceMax", [f"{watch}/all"], [watch], name=watch, keepdims=0))
    return graph
