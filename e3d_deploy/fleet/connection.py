"""Connection to one Triton server, which carries one sequence of pictures."""

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from e3d_deploy.errors import StreamError
from e3d_deploy.fleet.lost import HostLost, SequenceLost
from e3d_deploy.fleet.messages import ServedModel, read_answer, read_config, request
from e3d_deploy.triton import contract

OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),  # a forecast of large pictures exceeds the default of 4 MB
    ("grpc.enable_http_proxy", 0),
    # Otherwise all streams of a host share one TCP connection, and a new one would reuse it although it is broken.
    ("grpc.use_local_subchannel_pool", 1),
)
READY_S = 1.0
"""Interval of the checks that a server is still ready (s); a server that is told to end still answers for a while."""
DEAD_MODEL = ("is not healthy", "Failed to process the request(s)")
"""Parts of the errors of a model that has crashed or fails every request; Triton 2.51 still reports it as ready."""
SIGNALS_S = 0.2
"""Longest wait before Python looks for signals (s). A signal just before a wait does not interrupt it."""


class Connection:
    """Connection to the model on one host; the first picture that it sends starts a sequence.

    The class uses the messages of tritonclient but not its client. The stream of that client loses the id of a failed
    request, and its thread keeps a program from ending.

    Args:
        timeout_s: time limit of each request (s).
    """

    served: ServedModel
    """Model that the server described when the connection was opened."""

    def __init__(self, host: str, model: str, timeout_s: float) -> None:
        self.host, self._model, self._timeout_s = host, model, timeout_s
        self._channel = grpc.insecure_channel(host, options=OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        # A random id: a request of an abandoned sequence, or of another client, can never reach this sequence. The
        # protocol has a signed field for the id.
        self._sequence = secrets.randbelow(2**63 - 1) + 1
        self._sent = 0
        self._checked = time.monotonic()
        """Time of the last check that the server is ready (s)."""
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()

    @classmethod
    def open(cls, host: str, model: str, timeout_s: float) -> Self:
        """Connect to a host, and ask which model it serves.

        Raises:
            HostLost: the server does not answer, or does not have the model.
            BundleError: the model has inputs or parameters of another version.
        """
        connection = cls(host, model, timeout_s)
        try:
            connection.served = connection._describe()
        except BaseException:
            connection.close()
            raise
        return connection

    def _describe(self) -> ServedModel:
        answer = self._call(self._stub.ModelConfig, service_pb2.ModelConfigRequest(name=self._model))
        return read_config(answer.config, self.host)

    def _call(self, method: Callable[..., Any], message: Any) -> Any:
        """Return the answer to a single request; raises HostLost."""
        try:
            return method(message, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise HostLost(self._reason(error)) from error
        except ValueError as error:  # gRPC raises it if another thread closed the connection
            raise HostLost(str(error)) from error

    def infer(self, picture: NDArray[np.uint8], horizon: int | None) -> NDArray[Any]:
        """Send the next picture of the sequence, and return the answer of the server, as `read_answer` does.

        After an error the connection must not be used again.

        Raises:
            HostLost: the connection was lost, no answer arrived within the time limit, or the server is about to end.
            SequenceLost: the server does not know the sequence, for example because it expired.
            StreamError: the server refuses the picture, or its answer is not the expected one.
        """
        self._check_ready(picture)
        number = self._send(picture, horizon)
        response = self._receive()
        if response.error_message:
            raise self._refusal(response.error_message)
        answer = response.infer_response
        found = read_answer(answer, self.served, horizon)
        if answer.id != str(number) or found is None:
            raise StreamError(
                f"{self.host}: the answer to request {number} has id {answer.id!r}, or outputs of an unexpected shape; "
                "use the same version of e3d_deploy on servers and clients"
            )
        return found

    def _send(self, picture: NDArray[np.uint8], horizon: int | None, *, end: bool = False) -> int:
        """Send one picture, and return its number in the sequence."""
        number = self._sent
        self._sent += 1
        if number == 0:
            self._open()
        self._requests.put(request(self._model, picture, horizon, number=number, sequence=self._sequence, end=end))
        return number

    def _receive(self) -> Any:
        """Return the next response; raises HostLost."""
        until = time.monotonic() + self._timeout_s
        while (left := until - time.monotonic()) > 0:
            with suppress(Empty):
                return self._checked_response(self._answers.get(timeout=min(SIGNALS_S, left)))
        raise HostLost(f"no answer within {self._timeout_s:g} s")

    def _checked_response(self, response: Any) -> Any:
        """Return a response; raise HostLost for the error or None that follows the last one."""
        if response is None:
            raise HostLost("the connection was closed")
        if isinstance(response, grpc.RpcError):
            raise HostLost(self._reason(response)) from response
        return response

    def _open(self) -> None:
        try:
            # `get` blocks until the next request; None ends the requests.
            call = self._stub.ModelStreamInfer(iter(self._requests.get, None))
        except ValueError as error:  # another thread closed the connection
            raise HostLost(str(error)) from error
        threading.Thread(target=_queue, args=(call, self._answers), name=f"fleet {self.host}", daemon=True).start()

    def _refusal(self, message: str) -> Exception:
        """Return the error for a request that the server answered with an error."""
        if contract.START in message:
            return SequenceLost(message)
        if any(part in message for part in DEAD_MODEL):
            return HostLost(message)
        try:
            self._require_ready()
        except HostLost:
            return HostLost(message)
        return StreamError(f"{self.host}: the server refused the picture ({message})")

    def _check_ready(self, picture: NDArray[np.uint8]) -> None:
        """Check every `READY_S` seconds that the server is ready; end the sequence if not, so that it can end soon."""
        if time.monotonic() - self._checked < READY_S:
            return
        try:
            self._require_ready()
        except HostLost:
            self.end(picture)
            raise
        self._checked = time.monotonic()

    def _require_ready(self) -> None:
        """Raise HostLost if the model is not ready, or does not answer."""
        if not self._call(self._stub.ModelReady, service_pb2.ModelReadyRequest(name=self._model)).ready:
            raise HostLost("the model is not ready")

    def _reason(self, error: Any) -> str:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"no answer within {self._timeout_s:g} s"
        return str(error.details())

    def end(self, picture: NDArray[np.uint8]) -> None:
        """End the sequence, so that the server frees its state now.

        Args:
            picture: any picture, because a request needs one.

        Raises:
            HostLost: no answer arrived within the time limit.
        """
        if self._sent:
            self._send(picture, None, end=True)
            self._receive()

    def close(self) -> None:
        """Close the connection; a request in progress in another thread raises HostLost."""
        self._requests.put(None)
        self._channel.close()


def _queue(call: Any, answers: "SimpleQueue[Any]") -> None:
    """Put all responses of a call, then its error or None, into a queue."""
    try:
        for response in call:
            answers.put(response)
        answers.put(None)
    except grpc.RpcError as error:
        answers.put(error)
