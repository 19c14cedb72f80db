"""Configurations in a real Triton server, and the example of docs/triton.md against it.

The server that pip installs has only the Python backend. The models whose states Triton keeps therefore run a stand-in
there, which returns the states that the server passes to it.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc

from e3d_deploy.runtime import Bundle, load
from e3d_deploy.triton.config import Serving
from e3d_deploy.triton.repository import write_repository
from tests.triton.server import Addresses, serving, why_not

pytestmark = pytest.mark.skipif(bool(reason := why_not()), reason=reason)

ROOT = Path(__file__).parents[2]
STAND_IN = """
import numpy as np, triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        return [self.response(request) for request in requests]

    def response(self, request):
        names = ["cell.0", "cell.1", "hidden.0", "hidden.1", "history.0", "history.1", "memory", "window", "written"]
        states = [triton.get_input_tensor_by_name(request, name).as_numpy() for name in names]
        said = np.zeros(triton.get_input_tensor_by_name(request, "frame").as_numpy().shape, np.float32)
        for row, state in enumerate(states):
            said[0, 0, row, : state.ndim] = state.shape
            said[0, 0, row, 6:9] = state.min(), state.max(), state.dtype == np.int32
        return triton.InferenceResponse([triton.Tensor("prediction", said)])
"""
"""Model that returns shape, extremes and type of each state, as rows of its output."""


@pytest.fixture(scope="module")
def bundles(exported: Path, any_batch: Path) -> dict[str, Bundle]:
    """Return a bundle for one stream and a bundle for any number, by the names of their models."""
    return {"one": Bundle.open(exported / "tiny.e3d"), "any": Bundle.open(any_batch)}


@pytest.fixture(scope="module")
def addresses(bundles: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    folder = tmp_path_factory.mktemp("repository")
    settings = Serving(backend="onnxruntime", threads=1)
    write_repository([bundles["one"]], folder / "models", name="demo", serving=settings)
    for name, bundle in bundles.items():
        write_repository([bundle], folder / name, name=name, flavours=["onnxruntime"])
        model = folder / "models" / name
        shutil.move(folder / name / f"{name}_onnxruntime", model)
        text = (model / "config.pbtxt").read_text()
        text = text.replace('backend: "onnxruntime"', 'backend: "python"').replace(f"{name}_onnxruntime", name)
        (model / "config.pbtxt").write_text(text)
        (model / "1" / "model.py").write_text(STAND_IN)
    with serving(folder / "models") as found:
        yield found


@pytest.mark.parametrize("name", ["one", "any"])
def test_the_server_gives_a_new_sequence_the_initial_states(
    name: str, addresses: Addresses, bundles: dict[str, Bundle]
) -> None:
    frame = grpc.InferInput("frame", [1, 1, 16, 24], "FP32")
    frame.set_data_from_numpy(np.zeros((1, 1, 16, 24), np.float32))
    with grpc.InferenceServerClient(addresses.grpc) as client:
        result = client.infer(name, [frame], sequence_id=1, sequence_start=True, sequence_end=True, client_timeout=30)
    rows = result.as_numpy("prediction")[0, 0]
    for row, state in zip(rows, bundles[name].states.tensors, strict=False):
        shape = [1, 1] if (name, state.name) == ("any", "written") else [*state.shape]
        assert [*row[: len(shape)]] == shape
        assert [*row[6:9]] == [state.initial, state.initial, state.dtype == "int32"]


def test_the_example_of_the_page_forecasts_like_the_local_runtime(
    addresses: Addresses, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "triton.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copy(exported / "clip.npy", "clip.npy")
    names: dict[str, Any] = {}
    exec(code.replace("127.0.0.1:8001", addresses.grpc), names)
    with load(exported / "tiny.e3d", "onnxruntime", threads=1) as predictor:
        stream = predictor.stream()
        for picture in np.load("clip.npy"):
            stream.push(picture)
        np.testing.assert_array_equal(names["forecast"], stream.predict(10))
