"""ONNX Runtime of versions that do not compute what a graph says."""

from pathlib import Path

import pytest

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.runtime.backends import onnxruntime as module
from e3d_deploy.runtime.backends.registry import open_backend


def test_a_version_that_ignores_the_number_of_keys_is_refused(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would give wrong forecasts until the ring is full."""
    bundle = Bundle.open(exported / "tiny.e3d")
    monkeypatch.setattr(module, "_version", lambda: (1, 24))
    open_backend(bundle, "onnxruntime").close()
    monkeypatch.setattr(module, "COUNTS_KEYS", (bundle.entry("step", "onnxruntime").opset, (1, 25)))
    with pytest.raises(BackendUnavailable, match=r"ignores the number of keys in this bundle's graphs; pip install"):
        open_backend(bundle, "onnxruntime")
