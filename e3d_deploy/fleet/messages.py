"""Messages between the client and a Triton server (KServe inference protocol 2), and their checks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferResult, service_pb2

from e3d_deploy.errors import BundleError
from e3d_deploy.triton import contract


@dataclass(frozen=True)
class ServedModel:
    """Model as its server describes it; all servers of a fleet have to agree."""

    bundle: str
    """Identity of the bundle."""
    renewal: str
    """Renewal of the streams on the server, such as `refresh:2`."""
    context: int
    """Frames of context that the model was trained with."""
    picture: tuple[int, ...]
    """Shape of a picture, (H, W, C)."""


def read_config(config: Any, host: str) -> ServedModel:
    """Read the configuration that a server returns for its model.

    Raises:
        BundleError: the model is not of the flavour `python` of `e3d pack --triton`, or its inputs and parameters have
            another version.
    """
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    version = parameters.get(contract.CONTRACT)
    if version is None:
        raise BundleError(
            f"{host}: model {config.name!r} has no parameter {contract.CONTRACT}, expected a model of the flavour "
            "python that `e3d pack --triton` wrote; give the name of such a model"
        )
    if version != contract.VERSION:
        raise BundleError(
            f"{host}: model {config.name!r} has {contract.CONTRACT} {version}, this client needs {contract.VERSION}; "
            "write its repository again with `e3d pack --triton` of this version"
        )
    return ServedModel(
        bundle=parameters[contract.IDENTITY],
        renewal=parameters[contract.RENEWAL],
        context=int(parameters[contract.CONTEXT]),
        picture=next(tuple(one.dims) for one in config.input if one.name == contract.PICTURE),
    )


def request(
    model: str, picture: NDArray[np.uint8], horizon: int | None, *, number: int, sequence: int, end: bool = False
) -> Any:
    """Return the request that sends one picture of a sequence.

    Args:
        picture: [H, W, C], C-contiguous.
        horizon: pictures to forecast; None asks for the prediction of the next frame.
        number: position in the sequence; 0 starts it.
        sequence: id of the sequence, in [1, 2**63).
        end: end the sequence after this picture.
    """
    message = service_pb2.ModelInferRequest(model_name=model, id=str(number))
    _add_input(message, contract.PICTURE, "UINT8", picture[None])
    if horizon is not None:
        _add_input(message, contract.HORIZON, "INT32", np.array([[horizon]], np.int32))
    message.outputs.add(name=contract.PREDICTION if horizon is None else contract.FORECAST)
    message.parameters["sequence_id"].int64_param = sequence
    message.parameters["sequence_start"].bool_param = number == 0
    message.parameters["sequence_end"].bool_param = end
    return message


def _add_input(message: Any, name: str, datatype: str, array: NDArray[Any]) -> None:
    message.inputs.add(name=name, datatype=datatype, shape=array.shape)
    message.raw_input_contents.append(array.tobytes())


def read_answer(answer: Any, model: ServedModel, horizon: int | None) -> NDArray[Any] | None:
    """Return the prediction or the forecast of a response; None if its type or shape is unexpected.

    Returns:
        Without a horizon, float32 [C, H, W]. With one, uint8 [horizon, H, W, C].
    """
    height, width, channels = model.picture
    expected: tuple[str, type[np.generic], tuple[int, ...]]
    if horizon is None:
        expected = contract.PREDICTION, np.float32, (1, channels, height, width)
    else:
        expected = contract.FORECAST, np.uint8, (1, horizon, height, width, channels)
    name, dtype, shape = expected
    array = InferResult(answer).as_numpy(name)
    if array is None or array.dtype != dtype or array.shape != shape:
        return None
    found: NDArray[Any] = array[0].copy()  # the array of the message is read-only
    return found
