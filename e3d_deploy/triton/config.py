"""Model configuration of Triton: its text form, and the parts that all flavours share."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from e3d_deploy import __version__
from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.runtime.backends.specs import find
from e3d_deploy.runtime.renewal import default_renewal, known_context
from e3d_deploy.triton import contract

Flavour = Literal["python", "onnxruntime", "tensorrt"]
"""Backend of Triton that serves a model."""
Message = Mapping[str, "Value"]
"""Fields of a protobuf message by name."""
Value = str | bool | int | Message | Sequence["Value"]
"""Value of a field; a sequence is a repeated field."""

QUEUE_DELAY_US = 2000
"""Time for which the server waits for further requests before it runs an incomplete batch (µs)."""
TYPES = {"float32": "TYPE_FP32", "int32": "TYPE_INT32"}
"""Data types of Triton by the data types of the graphs."""


class Word(str):
    """Value that is written without quotation marks: the name of an enumeration value."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Settings of the served models."""

    max_streams: int = 32
    """Maximum number of streams of a model instance; further streams wait for the end of one."""
    max_batch: int = 8
    """Maximum number of streams that one call steps."""
    idle_s: float = 60.0
    """Time after which the server ends a stream without requests (s)."""
    backend: str = "auto"
    """Backend of the flavour `python`."""
    threads: int | None = None
    """CPU threads of a step; None leaves the number to the library."""
    device: Literal["cpu", "gpu"] | None = None
    """Device class; with `gpu`, each GPU has an instance of the model. None uses the device class of the backend."""

    def on_gpu(self, flavour: Flavour) -> bool:
        """Return True if the models of a flavour run on the GPU."""
        if self.device is not None:
            return self.device == "gpu"
        named = flavour == "python" and self.backend != "auto"
        return flavour == "tensorrt" or (named and find(self.backend).device == "gpu")


def text_of(message: Message, indent: str = "") -> str:
    """Return a message in the text form of protobuf."""
    return "".join(f"{indent}{line}\n" for name, value in message.items() for line in _lines(name, value))


def _lines(name: str, value: Value) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield f"{name} {{"
        yield from text_of(value, "  ").splitlines()
        yield "}"
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(one, Mapping) for one in value):
            for one in value:
                yield from _lines(name, one)
        else:
            yield f"{name}: [{', '.join(map(_scalar, value))}]"
    else:
        yield f"{name}: {_scalar(value)}"


def _scalar(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word | int):
        return str(value)
    return json.dumps(value)  # protobuf reads the escapes of JSON


def tensor(name: str, dtype: str, dims: Sequence[int]) -> Message:
    """Return an input or output of a model.

    Args:
        dtype: data type of Triton, such as `TYPE_FP32`.
        dims: lengths of the axes, without the batch axis if the model takes batches; -1 is any length.
    """
    return {"name": name, "data_type": Word(dtype), "dims": list(dims)}


def parameters(values: Mapping[str, str]) -> list[Message]:
    """Return the parameters of a model."""
    return [{"key": key, "value": {"string_value": value}} for key, value in values.items()]


def facts(bundle: Bundle, renewal: str) -> dict[str, str]:
    """Return the parameters that describe the bundle of a model."""
    return {
        contract.IDENTITY: bundle.identity,
        contract.WRITER: __version__,
        contract.CONTEXT: str(known_context(bundle.card, bundle.context_length)),
        contract.RENEWAL: renewal,
    }


def renewal_of(bundle: Bundle) -> str:
    """Return the default renewal of the streams of a bundle."""
    return str(default_renewal(bundle.card, bundle.context_length)[0])


def instances(gpu: bool, **more: Value) -> list[Message]:
    """Return the instances of a model: one on the CPU, or one on each GPU."""
    return [{"count": 1, "kind": Word("KIND_GPU" if gpu else "KIND_CPU"), **more}]


def sequences(serving: Serving, **more: Value) -> Message:
    """Return the settings by which the server assigns requests to streams and joins streams in batches."""
    return {
        "max_sequence_idle_microseconds": round(serving.idle_s * 1e6),
        "oldest": {"max_candidate_sequences": serving.max_streams, "max_queue_delay_microseconds": QUEUE_DELAY_US},
        **more,
    }


def python_config(bundle: Bundle, serving: Serving) -> Message:
    """Return the configuration, without the name, of a model that runs `e3d_deploy.triton.model` on Triton.

    The model takes batches even if the graphs of the bundle take one stream, because the runtime then steps the streams
    of a batch one after another.
    """
    C, (H, W) = bundle.config.channels, bundle.config.image_size
    values = {
        contract.CONTRACT: contract.VERSION,
        **facts(bundle, renewal_of(bundle)),
        contract.BACKEND: serving.backend,
        contract.THREADS: "" if serving.threads is None else str(serving.threads),
    }
    return {
        "backend": "python",
        "max_batch_size": serving.max_batch,
        "input": [
            tensor(contract.PICTURE, "TYPE_UINT8", [H, W, C]),
            {**tensor(contract.HORIZON, "TYPE_INT32", [1]), "optional": True},
        ],
        "output": [
            tensor(contract.PREDICTION, "TYPE_FP32", [C, H, W]),
            tensor(contract.FORECAST, "TYPE_UINT8", [-1, H, W, C]),
        ],
        "sequence_batching": sequences(serving, control_input=_controls()),
        "instance_group": instances(serving.on_gpu("python")),
        "parameters": parameters(values),
    }


def _controls() -> list[Message]:
    """Return the inputs with which the server marks the first and last request of a stream."""
    marks = ((contract.START, "CONTROL_SEQUENCE_START"), (contract.END, "CONTROL_SEQUENCE_END"))
    return [{"name": name, "control": [{"kind": Word(kind), "bool_false_true": [False, True]}]} for name, kind in marks]
