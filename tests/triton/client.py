"""Client of one Triton server for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc

from e3d_deploy.triton import contract

ANSWER_S = 30.0
"""Maximum time that a test waits for an answer (s)."""
DTYPES = {"uint8": "UINT8", "int32": "INT32"}
Result = dict[str, NDArray[Any] | None]


def inputs_of(picture: NDArray[np.uint8], horizon: int | None = None) -> list[Any]:
    arrays = {contract.PICTURE: picture[None]}
    if horizon is not None:
        arrays[contract.HORIZON] = np.array([[horizon]], np.int32)
    found = [grpc.InferInput(name, array.shape, DTYPES[array.dtype.name]) for name, array in arrays.items()]
    for one, array in zip(found, arrays.values(), strict=True):
        one.set_data_from_numpy(array)
    return found


def outputs_of(*names: str) -> list[Any]:
    return [grpc.InferRequestedOutput(name) for name in names]


def result_of(answer: Any) -> Result:
    """Return the outputs of an answer without their batch axis; None for outputs that it does not have."""
    arrays = {name: answer.as_numpy(name) for name in (contract.PREDICTION, contract.FORECAST)}
    return {name: None if array is None else array[0] for name, array in arrays.items()}


class Client:
    """Sends requests to one model, over one gRPC stream or one by one."""

    def __init__(self, connection: Any, model: str) -> None:
        self.connection, self.model = connection, model
        self.answers: SimpleQueue[tuple[Any, Any]] = SimpleQueue()

    def infer(
        self, sequence: int | str, picture: NDArray[np.uint8], *, horizon: int | None = None, **marks: bool
    ) -> Result:
        """Send one request, and return its result.

        Args:
            marks: `start` and `end`.
        """
        return result_of(
            self.connection.infer(
                self.model, inputs_of(picture, horizon), client_timeout=ANSWER_S, **options(sequence, horizon, **marks)
            )
        )

    def send(self, name: str, sequence: int, picture: NDArray[np.uint8], *, horizon: int | None, **marks: bool) -> None:
        """Send a request over the gRPC stream; `receive` returns its result under `name`."""
        self.connection.async_stream_infer(
            self.model, inputs_of(picture, horizon), request_id=name, **options(sequence, horizon, **marks)
        )

    def receive(self, count: int) -> dict[str, Result]:
        """Return the results of the next answers of the gRPC stream, by the names of their requests."""
        results = {}
        for _ in range(count):
            answer, error = self.answers.get(timeout=ANSWER_S)
            assert error is None, error
            results[answer.get_response().id] = result_of(answer)
        return results


def options(sequence: int | str, horizon: int | None, *, start: bool = False, end: bool = False) -> dict[str, Any]:
    names = [contract.PREDICTION] if horizon is None else [contract.PREDICTION, contract.FORECAST]
    return {
        "outputs": outputs_of(*names),
        "sequence_id": sequence,
        "sequence_start": start,
        "sequence_end": end,
    }


@contextmanager
def connected(address: str, model: str) -> Iterator[Client]:
    """Connect to a server; the gRPC stream ends with the block, because an open one would hang Python's exit."""
    with grpc.InferenceServerClient(address) as connection:
        client = Client(connection, model)
        connection.start_stream(partial(_keep, client))
        try:
            yield client
        finally:
            connection.stop_stream()


def _keep(client: Client, result: Any, error: Any) -> None:
    client.answers.put((result, error))
