"""Opening of predictors for everything that can forecast: bundles, model files and third-party checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e3d_deploy import runtime
from e3d_deploy.errors import CheckpointError, ConfigError
from e3d_deploy.files import sha256
from e3d_deploy.paths import check_path
from e3d_deploy.runtime.backends.specs import REFERENCE_BACKEND, find
from e3d_deploy.tensors import is_foreign

if TYPE_CHECKING:
    from e3d_deploy.card import Card
    from e3d_deploy.model import E3DLSTM

THIRD_PARTY = (".ckpt", ".pth", ".pt")
"""Suffixes of third-party checkpoints."""


def open_predictor(
    path: runtime.Bundle | str | Path,
    backend: str = "auto",
    *,
    threads: int | None = None,
    importing: Mapping[str, Any] | None = None,
) -> runtime.Predictor:
    """Open a predictor for a bundle, a model file or a third-party checkpoint.

    Model files and checkpoints run on PyTorch.

    Args:
        path: bundle, opened or as its path; model file or checkpoint.
        backend: name of a backend, or `auto`.
        threads: CPU threads of a step; None leaves the number to the library.
        importing: options of `import_checkpoint`; None refuses third-party checkpoints.

    Raises:
        CheckpointError: the path is a third-party checkpoint, and `importing` is None; or the file is damaged.
        BundleError: the bundle is damaged, incomplete or too new.
        BackendUnavailable: the library of the backend is not installed.
        ConfigError: the backend, the threads or the import options do not apply to this path.
    """
    bundle = path if isinstance(path, runtime.Bundle) else None
    path = check_path("path", path)
    is_third_party = path.suffix in THIRD_PARTY or index_of(path).exists() or is_foreign(path)
    if is_third_party and importing is None and (path.is_file() or index_of(path).exists()):
        raise CheckpointError(
            f"{path}: got a third-party checkpoint; import it first: `e3d import {path} -o MODEL.safetensors`"
        )
    foreign = is_third_party and importing is not None
    given = [name for name, value in (importing or {}).items() if value is not None]
    if given and path.exists() and not foreign:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(
            f"{path}: {options}: only for third-party checkpoints; this file stores these values, so leave them out"
        )
    if foreign:
        _check_reference(path, backend)
        return _of_checkpoint(path, threads, importing or {})
    # `load` refuses an archive of a bundle with its own error
    if path.is_file() and path.suffix.lower() != ".zip":
        _check_reference(path, backend)
        return _of_model(path, threads)
    if threads is not None and backend != "auto" and find(backend).device == "gpu":
        raise ConfigError(f"threads: {backend} runs on the GPU and has no setting for threads; leave --threads out")
    return runtime.load(bundle or path, backend, threads=threads)


def folder_of(bundle: runtime.Bundle | str | Path) -> Path:
    """Return the path of a bundle without opening it.

    Raises:
        ConfigError: `bundle` is neither a bundle nor a path.
    """
    return bundle.path if isinstance(bundle, runtime.Bundle) else check_path("bundle", bundle)


def index_of(prefix: Path) -> Path:
    """Return the path of the file that lists the tensors of a TensorFlow checkpoint."""
    return prefix.with_name(prefix.name + ".index")


def _check_reference(path: Path, backend: str) -> None:
    if backend not in ("auto", REFERENCE_BACKEND):
        raise ConfigError(
            f"{path}: a model file runs only on {REFERENCE_BACKEND}; for {backend}, give a bundle made by `e3d export`"
        )


def _of_model(path: Path, threads: int | None) -> runtime.Predictor:
    from e3d_deploy import checkpoint

    return _on_pytorch(checkpoint.load(path), checkpoint.read_card(path), path, threads)


def _of_checkpoint(path: Path, threads: int | None, importing: Mapping[str, Any]) -> runtime.Predictor:
    from e3d_deploy.importing import import_checkpoint

    imported = import_checkpoint(path, **importing)
    return _on_pytorch(imported.model, imported.card, path if path.exists() else index_of(path), threads)


def _on_pytorch(model: "E3DLSTM", card: "Card", file: Path, threads: int | None) -> runtime.Predictor:
    """Return a predictor of a model on PyTorch, with the hash of its file as its identity."""
    from e3d_deploy.runtime.backends.torch_eager import TorchBackend

    context_length, horizon = card.lengths()
    return runtime.Predictor(
        model.config,
        TorchBackend(model, threads=threads),
        identity=sha256(file),
        context_length=context_length,
        horizon=horizon,
        card=card,
    )
