"""The OpenAPI description matches the server: schemathesis generates valid and invalid requests from it."""

import io
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from PIL import Image
from schemathesis import GenerationMode

from e3d_deploy.serve.run import serving
from tests.fake_backend import FakeBackend, predictor_of
from tests.serve.conftest import TOKEN, settings_of

HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def gif(value: int) -> bytes:
    """Return a GIF of 12 pictures of one gray level each; `value` is the gray level of the first picture."""
    file = io.BytesIO()
    first, *others = [Image.new("L", (8, 4), (value + 20 * number) % 256) for number in range(12)]
    first.save(file, "gif", save_all=True, append_images=others, duration=100)
    return file.getvalue()


# OpenAPI describes a clip only as binary data, and random bytes are not a clip, so these GIFs are generated instead.
schemathesis.openapi.format("binary", strategies.integers(0, 255).map(gif))


@pytest.fixture(scope="module")
def api() -> Iterator[schemathesis.BaseSchema]:
    with predictor_of(FakeBackend()) as predictor, serving(predictor, settings_of(token=TOKEN)) as served:
        address = served.address.partition("#")[0]
        yield schemathesis.openapi.from_url(f"{address}openapi.json", headers=HEADERS)


OPERATIONS = [
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/v1/model"),
    ("POST", "/v1/clips"),
    ("POST", "/v1/predict"),
]


def test_every_operation_is_described(api: schemathesis.BaseSchema) -> None:
    found = [result.ok() for result in api.get_all_operations()]
    assert sorted((one.method.upper(), one.path) for one in found) == sorted(OPERATIONS)


CASES = [(*one, GenerationMode.POSITIVE) for one in OPERATIONS] + [
    (*one, GenerationMode.NEGATIVE)
    for one in OPERATIONS
    if one[0] == "POST"  # the other operations have no parameters
]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_errors_are_described_as_json(api: schemathesis.BaseSchema, method: str, path: str) -> None:
    described = api[path][method].definition.raw["responses"]
    for status in {"401", "403", "422", "429", "503"} & described.keys():
        assert list(described[status]["content"]) == ["application/json"]
    assert ("401" in described) == path.startswith(("/v1", "/metrics"))


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_every_response_is_described(
    api: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    operation = api[path][method]

    @settings(max_examples=15, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def answers(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE and path == "/v1/predict":
            del case.body["clip"][1:]  # a schema cannot state that several files must all be pictures
        case.call_and_validate(headers=HEADERS)

    answers()
