"""Opening of bundles, predictors and engine caches by the paths that a user gave."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e3d_deploy.export.engines.cache import EngineCache
    from e3d_deploy.runtime import Bundle, Predictor


def open_bundle(path: Path) -> "Bundle":
    from e3d_deploy.runtime import Bundle

    return Bundle.open(path)


def open_predictor(
    path: Path, backend: str, threads: int | None, importing: Mapping[str, Any] | None = None
) -> "Predictor":
    """Open a predictor for a bundle, a model file or a third-party checkpoint.

    Model files and checkpoints run on PyTorch.

    Args:
        path: bundle, model file or checkpoint.
        backend: name of a backend, or `auto`.
        threads: CPU threads of a step; None leaves the number to the library.
        importing: options of `import_checkpoint`; None refuses third-party checkpoints.

    Raises:
        CheckpointError: the path is a third-party checkpoint, and `importing` is None.
        ConfigError: the backend, the threads or the import options do not apply to this path.
    """
    from e3d_deploy import runtime
    from e3d_deploy.errors import CheckpointError, ConfigError
    from e3d_deploy.runtime.backends.specs import REFERENCE_BACKEND, find
    from e3d_deploy.tensors import is_foreign

    is_third_party = path.suffix in (".ckpt", ".pth", ".pt") or index_of(path).exists() or is_foreign(path)
    foreign = is_third_party and importing is not None
    if is_third_party and importing is None and (path.is_file() or index_of(path).exists()):
        raise CheckpointError(
            f"{path}: got a third-party checkpoint; import it first: `e3d import {path} -o MODEL.safetensors`"
        )
    given = [name for name, value in (importing or {}).items() if value is not None]
    if given and path.exists() and not foreign:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(
            f"{path}: {options}: only for third-party checkpoints; this file stores these values, so leave them out"
        )
    is_file = (
        path.is_file() and path.suffix.lower() != ".zip"
    )  # `load` refuses an archive of a bundle with its own error
    if not foreign and not is_file:
        if threads is not None and backend != "auto" and find(backend).device == "gpu":
            raise ConfigError(f"threads: {backend} runs on the GPU and has no setting for threads; leave --threads out")
        return runtime.load(path, backend, threads=threads)
    if backend not in ("auto", REFERENCE_BACKEND):
        raise ConfigError(
            f"{path}: a model file runs only on {REFERENCE_BACKEND}; for {backend}, give a bundle made by `e3d export`"
        )
    from e3d_deploy import checkpoint
    from e3d_deploy.files import sha256
    from e3d_deploy.runtime.backends.torch_eager import TorchBackend

    if foreign:
        from e3d_deploy.importing import import_checkpoint

        imported = import_checkpoint(path, **(importing or {}))
        model, card = imported.model, imported.card
        file = path if path.exists() else index_of(path)
    else:
        model, card, file = checkpoint.load(path), checkpoint.read_card(path), path
    context_length, horizon = card.lengths()
    return runtime.Predictor(
        model.config,
        TorchBackend(model, threads=threads),
        identity=sha256(file),
        context_length=context_length,
        horizon=horizon,
        card=card,
    )


def index_of(prefix: Path) -> Path:
    """Return the path of the file that lists the tensors of a TensorFlow checkpoint."""
    return prefix.with_name(prefix.name + ".index")


def open_cache(folder: str | None, limit_gb: float | None = None) -> "EngineCache":
    from e3d_deploy.export.engines.cache import LIMIT_BYTES, EngineCache
    from e3d_deploy.files import cache_folder

    limit = LIMIT_BYTES if limit_gb is None else int(limit_gb * 1e9)
    return EngineCache(cache_folder("engines") if folder is None else Path(folder), limit_bytes=limit)
