"""Bundles, predictors and engine caches for the paths that a user gave."""

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
    """A predictor for a bundle, or by PyTorch for a model file, and with `importing` for a checkpoint of others."""
    from e3d_deploy import runtime
    from e3d_deploy.errors import CheckpointError, ConfigError
    from e3d_deploy.runtime.backends.specs import YARDSTICK, find
    from e3d_deploy.tensors import is_foreign

    of_others = path.suffix in (".ckpt", ".pth", ".pt") or index_of(path).exists() or is_foreign(path)
    foreign = of_others and importing is not None
    if of_others and importing is None and (path.is_file() or index_of(path).exists()):
        raise CheckpointError(
            f"{path}: a checkpoint of others; make a model of it first: `e3d import {path} -o MODEL.safetensors`"
        )
    given = [name for name, value in (importing or {}).items() if value is not None]
    if given and path.exists() and not foreign:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f"{path}: {options}: for a checkpoint of others; this one knows its own, so leave it out")
    is_file = path.is_file() and path.suffix.lower() != ".zip"  # an archive of a bundle is told as such
    if not foreign and not is_file:
        if threads is not None and backend != "auto" and find(backend).device == "gpu":
            raise ConfigError(f"threads: {backend} steps on the GPU and takes none; leave --threads out")
        return runtime.load(path, backend, threads=threads)
    if backend not in ("auto", YARDSTICK):
        raise ConfigError(
            f"{path}: a model file runs on {YARDSTICK}; for {backend}, give a bundle made by `e3d export`"
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
    """The file that lists the tensors of a TensorFlow checkpoint."""
    return prefix.with_name(prefix.name + ".index")


def open_cache(folder: str | None, limit_gb: float | None = None) -> "EngineCache":
    from e3d_deploy.export.engines.cache import LIMIT_BYTES, EngineCache
    from e3d_deploy.files import cache_folder

    limit = LIMIT_BYTES if limit_gb is None else int(limit_gb * 1e9)
    return EngineCache(cache_folder("engines") if folder is None else Path(folder), limit_bytes=limit)
