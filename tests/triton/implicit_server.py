"""Stand-in for Triton's implicit state, written after its sources.

In core/src, sequence_state.cc and sequence_batch_scheduler.cc keep the states (commit 73aad7c). In onnxruntime_backend,
src/onnxruntime.cc checks and runs the graph (commit 00fd3e8).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tests.triton.configs import config_of

Arrays = dict[str, NDArray[Any]]
DTYPES = {"TYPE_FP32": "<f4", "TYPE_INT32": "<i4"}
ELEMENTS = {"TYPE_FP32": "tensor(float)", "TYPE_INT32": "tensor(int32)"}


class ImplicitServer:
    """Keeps the states of the sequences of one model.

    Args:
        pairing: `sorted` pairs the states that a graph takes and returns by their sorted names, as servers with bug
            server#8586 do; `named` pairs them as the configuration says.
    """

    def __init__(self, model: Path, pairing: Literal["sorted", "named"]) -> None:
        self.model, self.config, self.pairing = model, config_of(model), pairing
        self.states = list(self.config.sequence_batching.state)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(self.config.parameters["intra_op_thread_count"].string_value or 0)
        self.session = onnxruntime.InferenceSession(model / "1" / "model.onnx", options)
        self.sequences: dict[int, Arrays] = {}
        self._check()

    def _check(self) -> None:
        """Check what the ONNX Runtime backend checks when it loads a model."""
        assert not self.config.sequence_batching.control_input  # the graph has no inputs for them
        inputs = {one.name: one for one in self.session.get_inputs()}
        outputs = {one.name: one for one in self.session.get_outputs()}
        assert len(inputs) == len(self.config.input) + len(self.states)
        given = [*self.config.input, *self.config.output]
        takes = [(inputs[one.input_name], one) for one in self.states]
        returns = [(outputs[one.output_name], one) for one in self.states]
        for found, one in [*takes, *returns, *(((inputs | outputs)[one.name], one) for one in given)]:
            batched = self.config.max_batch_size > 0
            if batched:
                assert isinstance(found.shape[0], str)  # an axis of any length
            assert list(found.shape[1:] if batched else found.shape) == [*one.dims]
            assert found.type == ELEMENTS[self._type(one.data_type)]

    def _type(self, number: int) -> str:
        return str(self.config.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[number].name)

    def start(self, sequence: int) -> None:
        """Give a sequence the initial states of the configuration."""
        states = {}
        for one in self.states:
            assert not one.use_same_buffer_for_input_output
            (initial,) = one.initial_state
            assert initial.name
            assert (initial.data_type, [*initial.dims]) == (one.data_type, [*one.dims])
            dtype, dims = np.dtype(DTYPES[self._type(one.data_type)]), [*one.dims]
            count = math.prod(dims) if dims else 0  # as GetElementCount counts
            if initial.WhichOneof("state_data") == "zero_data":
                content = bytes(count * dtype.itemsize)
            else:
                content = (self.model / "initial_state" / initial.data_file).read_bytes()
                assert len(content) == count * dtype.itemsize
            lead = [1] if self.config.max_batch_size > 0 else []
            states[one.input_name] = np.frombuffer(content, dtype).reshape([*lead, *dims])
        self.sequences[sequence] = states

    def step(self, frames: dict[int, NDArray[np.float32]]) -> dict[int, NDArray[np.float32]]:
        """Run one request for each of several sequences in one call; return the prediction of each."""
        assert len(frames) <= max(1, self.config.max_batch_size)
        (frame,), (prediction,) = self.config.input, self.config.output
        taken = {one: np.concatenate([self.sequences[number][one] for number in frames]) for one in self._names()}
        taken[frame.name] = np.concatenate(list(frames.values()))
        names = [prediction.name, *(one.output_name for one in self.states)]
        returned = dict(zip(names, self.session.run(names, taken), strict=True))
        for row, number in enumerate(frames):
            self.sequences[number] = {one: returned[other][row : row + 1] for one, other in self._pairs()}
        return {number: returned[prediction.name][row : row + 1] for row, number in enumerate(frames)}

    def _names(self) -> Sequence[str]:
        return [one.input_name for one in self.states]

    def _pairs(self) -> list[tuple[str, str]]:
        if self.pairing == "named":
            return [(one.input_name, one.output_name) for one in self.states]
        takes, returns = (
            sorted(names, key=str.encode) for names in (self._names(), [one.output_name for one in self.states])
        )
        return list(zip(takes, returns, strict=True))
