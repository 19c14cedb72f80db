"""Bundle of the demo film, and runs of the examples as programs of their own."""

from pathlib import Path

import pytest

from e3d_deploy.demo.exhibits import FILM
from e3d_deploy.export.bundle import export
from e3d_deploy.shipped import extracted

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def film_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bundle of the demo film, with shared graphs only; tests must not change it."""
    path = tmp_path_factory.mktemp("film") / "film.e3d"
    with extracted(FILM.model) as model:
        return export(model, path, context_length=2, horizon=2, batch=1, backend="onnxruntime-cuda")
