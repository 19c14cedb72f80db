"""Writes a model repository, the folder from which Triton serves bundles."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.bundle.pack import copy_bundle
from e3d_deploy.errors import BundleError, ConfigError
from e3d_deploy.files import check_writable, naming, swap, workspace
from e3d_deploy.paths import check_path
from e3d_deploy.progress import Notify, silent, within
from e3d_deploy.runtime.arguments import check_list
from e3d_deploy.tensorrt_library import Target
from e3d_deploy.triton import contract, implicit
from e3d_deploy.triton.config import Flavour, Message, Serving, python_config, renewal_of, text_of
from e3d_deploy.triton.names import named_models

CONFIG, VERSION_FOLDER, BUNDLE = "config.pbtxt", "1", "bundle.e3d"
"""Names inside the folder of a model: its configuration, its only version, and the bundle in this version."""
CONTENT = {CONFIG, VERSION_FOLDER, implicit.INITIAL_STATE}
"""Names of all entries in the folder of a model."""
VERSION_CONTENT = ("model.py", "__pycache__", BUNDLE, "model.onnx", "*.safetensors", "model.plan")
"""Patterns of the names of all entries in the folder of a version; the server makes `__pycache__`."""
MODEL = '''\
"""Model of Triton's Python backend; the code is part of e3d_deploy."""

from e3d_deploy.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
"""Content of model.py, which Triton's Python backend imports."""
DEFAULTS = Serving()


@dataclass(frozen=True)
class Model:
    """Model of a repository."""

    name: str
    """Name of the model, which is the name of its folder."""
    bundle: Bundle
    """Bundle that the model serves."""
    flavour: Flavour
    """Backend of Triton that serves the model."""
    backend: str
    """Backend that runs the network: for `python` a backend of e3d_deploy, otherwise the flavour."""
    device: str
    """Device class of the model's instances."""
    max_batch: int
    """Maximum number of streams that one call steps."""
    renewal: str
    """Renewal of the streams: the default of the bundle for `python`, otherwise `none`."""


def write_repository(
    bundles: Sequence[Bundle | str | Path],
    output: str | Path,
    *,
    flavours: Sequence[Flavour] = ("python",),
    name: str | None = None,
    serving: Serving = DEFAULTS,
    engines: bool = False,
    overwrite: bool = False,
    progress: Notify = silent,
) -> list[Model]:
    """Write a model repository with one model for each bundle and flavour, and return the models.

    The repository appears under its name only when it is complete.

    Args:
        bundles: bundles, opened or as the paths of their folders.
        name: name of the model of the only bundle; None makes the names from the names of the bundles.
        engines: include the TensorRT plans in the bundles of the flavour `python`.
        overwrite: replace an existing repository.
        progress: function that is called with the name of the file being written.

    Raises:
        ConfigError: two models have the same name; `name` is invalid; or `output` exists (and `overwrite` is not set,
            or it contains something that `e3d pack` did not write), is inside a bundle, or contains a bundle.
        BundleError: a flavour cannot serve a bundle.
    """
    for what, given in (("bundles", bundles), ("flavours", flavours)):
        check_list(what, given)
    output, opened = check_path("output", output), [Bundle.of(bundle) for bundle in bundles]
    named = named_models(opened, flavours, name)
    _check_apart(output, opened)
    _check_batches(opened)
    with _new_repository(output, overwrite=overwrite) as folder:
        return [
            _write_model(folder / key, bundle, flavour, serving, engines=engines, progress=within(progress, key))
            for key, (bundle, flavour) in named.items()
        ]


def _write_model(
    folder: Path, bundle: Bundle, flavour: Flavour, serving: Serving, *, engines: bool, progress: Notify
) -> Model:
    """Write the folder of a model."""
    version = folder / VERSION_FOLDER
    version.mkdir(parents=True)
    if flavour == "python":
        backend, renewal = serving.backend, renewal_of(bundle)
        config = _write_python(version, bundle, serving, engines=engines, progress=progress)
    else:
        backend, renewal = flavour, implicit.RENEWAL
        write = {"onnxruntime": implicit.write_onnxruntime, "tensorrt": implicit.write_tensorrt}[flavour]
        config = write(folder, version, bundle, serving, progress)
    (folder / CONFIG).write_text(text_of({"name": folder.name, **config}))
    device = "gpu" if serving.on_gpu(flavour) else "cpu"
    streams = config["max_batch_size"]
    assert isinstance(streams, int)
    return Model(folder.name, bundle, flavour, backend, device, max(1, streams), renewal)


def _write_python(version: Path, bundle: Bundle, serving: Serving, *, engines: bool, progress: Notify) -> Message:
    """Write the model and its bundle, and return the configuration without the name of the model."""
    if serving.backend in get_args(Target):
        _check_engine(bundle, serving.backend, engines=engines)
    (version / "model.py").write_text(MODEL)
    copy_bundle(bundle, version / BUNDLE, engines=engines, progress=progress)
    return python_config(bundle, serving)


def _check_engine(bundle: Bundle, target: str, *, engines: bool) -> None:
    """Check that the repository will have the engine that the backend of the model runs."""
    if f"step.{target}" not in bundle.manifest.engines:
        there = ", ".join(bundle.manifest.engines) or "no engines"
        raise BundleError(
            f"{bundle.path}: has no engine step.{target}, its manifest lists {there}; build it: "
            f"`e3d build {bundle.path} --target {target}`"
        )
    if not engines:
        raise ConfigError(f"backend: {target} runs the engines of the bundle; give --with-engines to include them")


def _check_apart(output: Path, bundles: Sequence[Bundle]) -> None:
    """Check that the repository and the bundles do not contain one another."""
    place = output.resolve()
    for bundle in bundles:
        source = bundle.path.resolve()
        if place.is_relative_to(source):
            raise ConfigError(f"{output}: is inside the bundle {bundle.path}; choose another path")
        if source.is_relative_to(place):
            raise ConfigError(f"{output}: contains the bundle {bundle.path}; choose another path")


def _check_batches(bundles: Sequence[Bundle]) -> None:
    """Check that the graphs of the bundles step single streams, because each request of a server is for one stream."""
    for bundle in bundles:
        if bundle.batch != 1:
            raise BundleError(
                f"{bundle.path}: its graphs take {bundle.batch} streams at once; export with --batch any to serve it"
            )


@contextmanager
def _new_repository(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that moves to `output` when the `with` block succeeds, and is removed if it fails."""
    if output.exists():
        if not overwrite:
            raise ConfigError(f"{output}: already exists; give --overwrite to replace it, or give another name")
        if not output.is_dir():
            raise ConfigError(f"{output}: already exists and is not a folder, so it is not replaced; give another name")
        if other := _other_content(output):
            raise ConfigError(
                f"{output}: contains {other}, which `e3d pack --triton` did not write, so it is not replaced; give "
                "another name"
            )
    check_writable(output, folder=True)
    place = output.resolve()
    with naming(output), workspace(place) as folder:
        yield folder
        folder.chmod(0o755)
        if overwrite and place.exists():
            swap(folder, place)
        else:
            folder.replace(place)


def _other_content(repository: Path) -> str | None:
    """Return the path of a model, or of an entry of one, that `write_repository` did not write; None without one."""
    marker = f'"{contract.IDENTITY}"'
    for model in sorted(repository.iterdir()):
        config = model / CONFIG
        if not config.is_file() or marker not in config.read_text(errors="replace"):
            return model.name
        if others := {one.name for one in model.iterdir()} - CONTENT:
            return f"{model.name}/{min(others)}"
        for entry in sorted(model.glob(f"{VERSION_FOLDER}/*")):
            if not any(fnmatchcase(entry.name, pattern) for pattern in VERSION_CONTENT):
                return str(entry.relative_to(repository))
    return None
