"""Model that Triton's Python backend runs: one stream for each sequence of requests."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from e3d_deploy import runtime
from e3d_deploy.errors import BackendUnavailable, BundleError, ConfigError, E3DError
from e3d_deploy.triton import contract
from e3d_deploy.triton.reports import Metrics, send_logs
from e3d_deploy.triton.repository import BUNDLE
from e3d_deploy.triton.requests import Answer, Request
from e3d_deploy.triton.table import Table

INSTALL_NUMPY = "pip install 'numpy<2'"


class TritonPythonModel:
    """Model of Triton's Python backend, which calls the three methods in one thread."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle.

        Args:
            args: description of the model and of this instance, from the server.

        Raises:
            E3DError: the model cannot be served; the server shows the message and does not serve the model.
        """
        import triton_python_backend_utils as triton  # exists only in the server

        self._triton = triton
        check_tensors(triton)
        send_logs(triton.Logger)
        if args["model_instance_kind"] == "GPU":
            use_gpu(int(args["model_instance_device_id"]))
        config = json.loads(args["model_config"])
        settings = Settings(config)
        folder = Path(args["model_repository"]) / args["model_version"] / BUNDLE
        self._predictor = runtime.load(folder, settings.backend, threads=settings.threads)
        settings.check(self._predictor)
        self._metrics = Metrics(triton, {"model": args["model_name"], "instance": args["model_instance_name"]})
        self._table = Table(
            self._predictor,
            renewal=settings.renewal,
            max_streams=settings.max_streams,
            idle_s=settings.idle_s,
            report=self._metrics.report,
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests of different sequences, which are stepped together."""
        found = self._table.answer([self._request(request) for request in requests])
        return [self._response(request, answer) for request, answer in zip(requests, found, strict=True)]

    def finalize(self) -> None:
        """Close the streams and free the bundle."""
        self._table.close()
        self._predictor.close()

    def _request(self, request: Any) -> Request:
        wanted = request.requested_output_names()
        picture = self._input(request, contract.PICTURE)  # A missing one counts as empty, which its stream refuses.
        horizon = self._input(request, contract.HORIZON)  # A missing one counts as 0, which the table refuses.
        return Request(
            # As an input, a text would be cut off, so that sequences would share a stream; a long one hangs the server.
            sequence=request.correlation_id(),
            picture=np.empty(0, np.uint8) if picture is None else picture[0],
            start=bool(self._input(request, contract.START).item()),
            end=bool(self._input(request, contract.END).item()),
            prediction=contract.PREDICTION in wanted,
            horizon=None if contract.FORECAST not in wanted else 0 if horizon is None else int(horizon.item()),
        )

    def _input(self, request: Any, name: str) -> Any:
        """Return an input as an array [1, …]; None if the request does not have it."""
        tensor = self._triton.get_input_tensor_by_name(request, name)
        return None if tensor is None else tensor.as_numpy()

    def _response(self, request: Any, answer: Answer | E3DError) -> Any:
        triton = self._triton
        if isinstance(answer, E3DError):
            code = triton.TritonError.INVALID_ARG if isinstance(answer, ValueError) else triton.TritonError.INTERNAL
            return triton.InferenceResponse(error=triton.TritonError(str(answer), code))
        results: dict[str, Any] = {contract.PREDICTION: answer.prediction, contract.FORECAST: answer.forecast}
        return triton.InferenceResponse(
            [triton.Tensor(name, results[name][None]) for name in request.requested_output_names()]
        )


class Settings:
    """Settings of a model, from its configuration.

    Raises:
        ConfigError: the configuration was written for another version of this model.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        values = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        version = values.get(contract.CONTRACT)
        if version != contract.VERSION:
            raise ConfigError(
                f"{config['name']}: got a model configuration of version {version}, expected {contract.VERSION}; "
                "write the repository again with `e3d pack --triton`"
            )
        self.bundle, self.renewal = values[contract.IDENTITY], values[contract.RENEWAL]
        self.backend, threads = values[contract.BACKEND], values[contract.THREADS]
        self.threads = int(threads) if threads else None
        sequences = config["sequence_batching"]
        self.idle_s = int(sequences["max_sequence_idle_microseconds"]) / 1e6
        self.max_streams = int(sequences["oldest"]["max_candidate_sequences"])

    def check(self, predictor: runtime.Predictor) -> None:
        """Raise BundleError if the bundle is not the one that the configuration was written for."""
        if predictor.identity != self.bundle:
            raise BundleError(
                f"{BUNDLE}: got the bundle {predictor.identity}, expected {self.bundle} as in the model configuration; "
                "write the repository again with `e3d pack --triton`"
            )


def check_tensors(triton: Any) -> None:
    """Check that this NumPy and the server read each other's arrays.

    Raises:
        BackendUnavailable: they do not. With NumPy 2, this server's tensors silently hold zeros.
    """
    array = np.arange(1, 5, dtype=np.float32)
    copy = triton.Tensor.from_dlpack("copy", triton.Tensor("original", array).to_dlpack()).as_numpy()
    if not np.array_equal(copy, array):
        raise BackendUnavailable(
            f"numpy: got {np.__version__}, with which this server's tensors hold wrong values; run in its environment: "
            f"{INSTALL_NUMPY}"
        )


def use_gpu(number: int) -> None:
    """Make a GPU the only one that this process sees; call this before a library opens a GPU.

    Args:
        number: number of the GPU among those that the server sees.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[number] if visible != [""] else str(number)
