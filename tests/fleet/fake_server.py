"""Triton server in this process: the gRPC protocol with a model that counts pictures and can misbehave."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

WAIT_S = 60.0
"""Maximum wait of a test for an event (s)."""
PICTURE = (2, 3, 1)
PARAMETERS = {"e3d_contract": "1", "e3d_bundle": "aaaa", "e3d_context": "3", "e3d_renewal": "none"}
NO_START = "must specify the START flag on the first request of the sequence"


@dataclass
class Request:
    """Request as the server received it."""

    number: str
    sequence: int
    start: bool
    end: bool
    level: int
    """Value of the first pixel."""
    outputs: list[str]


@dataclass
class FakeServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Model whose prediction is the sum of the first pixels of its sequence, and settings of its faults."""

    parameters: dict[str, str] = field(default_factory=lambda: dict(PARAMETERS))
    dims: tuple[int, ...] = PICTURE
    has_model: bool = True
    is_ready: bool = True
    delay_s: float = 0.0
    """Time that the server takes for each request (s)."""
    refusal: str = ""
    """Error that answers each request but the last of a sequence; empty answers all."""
    answer_id: Callable[[str], str] = str
    """Function that returns the id of a response for the id of its request."""
    peers: set[str] = field(default_factory=set)
    """Addresses of the connections that carried a sequence."""
    requests: list[Request] = field(default_factory=list)
    states: dict[int, list[int]] = field(default_factory=dict)
    """First pixels that each open sequence has seen."""
    address: str = ""
    connections: int = 0
    """Number of connections that carry a sequence."""
    answered: int = sys.maxsize
    """Number of requests that are answered; later ones wait for `release`."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    def ModelConfig(self, request: Any, context: Any) -> Any:
        if not self.has_model:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        time.sleep(self.delay_s)
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=8)
        config.input.add(name="picture", dims=self.dims)
        for name, value in self.parameters.items():
            config.parameters[name].string_value = value
        return service_pb2.ModelConfigResponse(config=config)

    def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=self.is_ready)

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:
        self._count(+1)
        self.peers.add(context.peer())
        context.add_callback(lambda: self._count(-1))
        for message in requests:
            time.sleep(self.delay_s)
            yield self._answer(message)

    def _count(self, change: int) -> None:
        with self.changed:
            self.connections += change
            self.changed.notify_all()

    def _answer(self, message: Any) -> Any:
        parameters = message.parameters
        got = Request(
            number=message.id,
            sequence=parameters["sequence_id"].int64_param,
            start=parameters["sequence_start"].bool_param,
            end=parameters["sequence_end"].bool_param,
            level=message.raw_input_contents[0][0],
            outputs=[one.name for one in message.outputs],
        )
        with self.changed:
            self.requests.append(got)
            number = len(self.requests)
            self.changed.notify_all()
            self.changed.wait_for(lambda: number <= self.answered, WAIT_S)
        if self.refusal and not got.end:
            return service_pb2.ModelStreamInferResponse(error_message=self.refusal)
        if got.start:
            self.states[got.sequence] = []
        if got.sequence not in self.states:
            return service_pb2.ModelStreamInferResponse(error_message=NO_START)
        self.states[got.sequence].append(got.level)
        total = sum(self.states[got.sequence])
        if got.end:
            del self.states[got.sequence]
        return service_pb2.ModelStreamInferResponse(infer_response=self._response(message, total))

    def _response(self, message: Any, total: int) -> Any:
        height, width, channels = self.dims
        answer = service_pb2.ModelInferResponse(id=self.answer_id(message.id))
        if message.outputs[0].name == "prediction":
            array: Any = np.full((1, channels, height, width), total, np.float32)
            answer.outputs.add(name="prediction", datatype="FP32", shape=array.shape)
        else:
            horizon = int(np.frombuffer(message.raw_input_contents[1], np.int32)[0])
            array = np.full((1, horizon, height, width, channels), total, np.uint8)
            answer.outputs.add(name="forecast", datatype="UINT8", shape=array.shape)
        answer.raw_output_contents.append(array.tobytes())
        return answer

    def hold(self, after: int | None = None) -> None:
        """Answer no more requests than `after`, by default than have arrived."""
        self.answered = len(self.requests) if after is None else after

    def release(self) -> None:
        """Answer all requests."""
        with self.changed:
            self.answered = sys.maxsize
            self.changed.notify_all()

    def wait_until_left(self) -> None:
        """Wait until no connection carries a sequence."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.connections == 0, WAIT_S)

    def wait_for(self, count: int) -> None:
        """Wait until a number of requests have arrived."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.requests) >= count, WAIT_S)


@contextmanager
def running(server: FakeServer, port: int = 0) -> Iterator[Callable[[], None]]:
    """Serve on a free port of the loopback interface; yields a function that ends all connections at once."""
    pool = ThreadPoolExecutor(16)
    grpc_server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(server, grpc_server)
    server.address = f"127.0.0.1:{grpc_server.add_insecure_port(f'127.0.0.1:{port}')}"
    grpc_server.start()

    def stop() -> None:
        grpc_server.stop(None).wait(10)

    try:
        yield stop
    finally:
        server.release()
        stop()
        pool.shutdown(wait=False, cancel_futures=True)


def picture(level: int) -> Any:
    """Return a picture whose pixels have one value."""
    return np.full(PICTURE, level, np.uint8)
