"""The bundle: a folder NAME.e3d with graphs, weights, a reference clip and a manifest."""

import hashlib
import io
import json
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy import contract
from e3d_deploy.bundle.held import Folder, HeldFiles, open_folder
from e3d_deploy.bundle.manifest import READS, GraphEntry, Manifest, Verification
from e3d_deploy.card import Card, Decay
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BundleError, CheckpointError, ConfigError, ResourceLimit
from e3d_deploy.files import is_swapping, locked, naming, replace_file, sha256, swap, workspace
from e3d_deploy.paths import check_path
from e3d_deploy.tensors import Content, entries_of, header_of, without_number

log = logging.getLogger(__name__)

MANIFEST, MODEL, REFERENCE = "manifest.json", "model.safetensors", "reference.npz"
VERIFICATION = "verify.json"
"""File with the reports of `verify`; not part of the bundle and not packed, because results depend on the machine."""
WEIGHTS, FLOAT32_STEP = "weights.safetensors", "float32.onnx"
"""Weights in the low type of the graphs, and the step graph in float32; absent if the graphs use no low type."""
WEIGHTS_SUFFIX = ".safetensors"
FILE_SUFFIXES = (".onnx", ".engine", ".plan", ".trt", ".zip", ".safetensors", ".pt", ".pth", ".ckpt")
"""Suffixes of single files, which a bundle's name must not have."""
ENGINES = "engines/"
"""Prefix of the names of all files of engines."""

ATTEMPTS, PAUSE_S = 10, 0.01
"""Maximum number of attempts to read a bundle that is being replaced, and the pause between two attempts (s)."""

SIZES = (1, 2, 4, 8, 16, 32)
"""Batch sizes of steps if the graph accepts any batch size; only a few, because some backends compile each size."""


@dataclass(frozen=True)
class Bundle:
    """Opened bundle, whose files were read into memory and checked; later changes to the folder do not affect them.

    Engines are not read, because they can be built again; `plans.load_plan` reads and checks an engine when it is used.
    """

    path: Path
    """Folder that the bundle was opened from, for messages and for writing; the folder may have been replaced since."""
    manifest: Manifest
    """Content of manifest.json."""
    config: ModelConfig
    """Configuration of the network."""
    held: HeldFiles = field(default_factory=HeldFiles, repr=False, compare=False)
    """Contents of the files of the manifest except engines; their hashes were checked."""

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Open the bundle in a folder, and check its manifest and the hashes of its files.

        If another process replaces the bundle during this call, the result is the old or the new bundle, complete.

        Raises:
            BundleMissing: Nothing exists at `path`.
            ConfigError: `path` is neither text nor a path.
            BundleError: A file is missing, truncated or altered, this version cannot read the manifest, or the manifest
                describes a different network than the model file.
            ResourceLimit: The files do not fit into memory.
        """
        path = check_path("bundle", path)
        try:
            for _ in range(ATTEMPTS - 1):
                if bundle := cls._read(path, last=False):
                    return bundle
                time.sleep(PAUSE_S)
            bundle = cls._read(path, last=True)
        except MemoryError as error:
            raise ResourceLimit(
                f"{path}: its files do not fit into memory; close other programs, or use a smaller model"
            ) from error
        assert bundle is not None
        return bundle

    def __fspath__(self) -> str:
        """Return the path of the folder, so that a bundle can be given wherever its path can."""
        return str(self.path)

    @classmethod
    def of(cls, bundle: "Bundle | str | Path") -> "Bundle":
        """Return an opened bundle unchanged, or open the bundle in a folder as `open` does.

        Raises:
            BundleError, ConfigError, ResourceLimit: see `open`.
        """
        return bundle if isinstance(bundle, Bundle) else cls.open(bundle)

    @classmethod
    def _read(cls, path: Path, *, last: bool) -> "Bundle | None":
        """Read a bundle once.

        Returns:
            The bundle, or None if reading failed because the bundle was being replaced. The last attempt raises the
            error instead.
        """
        folder, text = None, b""
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(open_folder(path))
                text = _manifest_text(folder)
                manifest = _manifest_of(path, text)
                held = _held(folder, manifest)
                return cls(path, manifest, _config(path, manifest, held[MODEL]), held)
            except BundleError:
                if last or not (is_swapping(path) if folder is None else _replaced(folder, text)):
                    raise
        return None

    @property
    def digest(self) -> str:
        """Hash over graphs and weights; it changes with the model and with the settings of the export."""
        computing = {MODEL, WEIGHTS, *(graph.file for graph in self.manifest.graphs)}
        files = {name: digest for name, digest in self.manifest.files.items() if name in computing}
        return _hash(files)

    @property
    def identity(self) -> str:
        """Hash over weights, config and precision policy, which identifies the network that a snapshot belongs to.

        The hash does not depend on the graphs. Fields of the config that have their default value are omitted, so that
        adding a field to `ModelConfig` does not change the identity of existing bundles.
        """
        defaults = ModelConfig().to_dict()
        config = {name: value for name, value in self.config.to_dict().items() if value != defaults[name]}
        policy = self.manifest.precision.policy
        return _hash({"weights": self.manifest.files[MODEL], "config": config, "policy": policy})

    @property
    def earlier_identities(self) -> tuple[str, ...]:
        """Values that older versions stored as the identity in snapshots of the bundle: `digest`."""
        return (self.digest,)

    @property
    def context_length(self) -> int:
        """Number of frames that the clip graph takes."""
        return self.manifest.context_length

    @property
    def horizon(self) -> int:
        """Number of frames that the clip graph returns."""
        return self.manifest.horizon

    @property
    def card(self) -> Card:
        """Facts about the model; empty in bundles of older versions."""
        return Card.from_dict(self.manifest.card)

    @property
    def batch(self) -> int:
        """Number of streams that the graphs step at once; 1 if the graphs accept any number."""
        return self.manifest.batch

    @property
    def precision(self) -> str:
        """Precision policy of the bundle, one of `policies.POLICIES`; backend-specific graphs may have another."""
        return self.manifest.precision.policy

    @property
    def dynamic_batch(self) -> bool:
        """True if the graphs accept any number of streams."""
        return self.manifest.dynamic_batch

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes that steps are run with, in ascending order."""
        return SIZES if self.dynamic_batch else (self.batch,)

    @cached_property
    def states(self) -> contract.States:
        """Description of a stream's state; for a bundle of schema 1, derived from the config."""
        return self.manifest.stream_states() or contract.states_of(self.config)

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs, each once."""
        return tuple(dict.fromkeys(one.name for one in self.manifest.graphs))

    def entry(self, name: str, backend: str | None = None) -> GraphEntry:
        """Return the manifest's entry of the backend-specific graph if there is one, otherwise of the shared graph.

        Args:
            name: `step`, `clip` or `rollout`.
            backend: name of the backend; None prefers the shared graph.

        Raises:
            BundleError: The bundle has no such graph.
        """
        found = self.manifest.entry(name, backend)
        if found is not None:
            return found
        if name not in self.graphs:
            raise BundleError(
                f"{self.path}: has no graph {name!r}, only {', '.join(self.graphs)}; export the model again"
            )
        there = sorted({one for graph in self.manifest.graphs for one in graph.backends or () if graph.name == name})
        raise BundleError(
            f"{self.path}: has no graph {name!r} for {backend}, only for {', '.join(there)}; export it again: "
            f"`e3d export MODEL -o {self.path} --backend {backend} --overwrite`"
        )

    def graph(self, name: str, backend: str | None = None) -> Path:
        """Return the path of the graph that `entry` describes, for a library that can read graphs only from files.

        The file may have changed since the bundle was opened. Call `plans.check_sources` after the library has read the
        file.

        Raises:
            BundleError: The bundle has no such graph.
        """
        return self.path / self.entry(name, backend).file

    def onnx(self, name: str, backend: str | None = None) -> bytes:
        """Return the content of the graph that `entry` describes, without its weights.

        Raises:
            BundleError: The bundle has no such graph.
        """
        file = self.entry(name, backend).file
        if file not in self.held:
            raise BundleError(f"{self.path / file}: is not among the files of the manifest; export the model again")
        return self.held[file].tobytes()

    @property
    def weights(self) -> dict[str, Content]:
        """Contents of the files with the weights of the graphs, by name. Libraries use the memory: do not change it."""
        return {name: self.held.shared(name) for name in self.held if name.endswith(WEIGHTS_SUFFIX)}

    def size(self, name: str) -> int | None:
        """Return the size of a file (bytes), for an engine its current size on disk; None if the file is missing."""
        if name in self.held:
            return len(self.held[name])
        with suppress(OSError):
            return (self.path / name).stat().st_size
        return None

    def holding(self, names: Collection[str]) -> "Bundle":
        """Return a bundle that keeps only the given files in memory, for a program that needs no other files."""
        return replace(self, held=self.held.only(names))

    def reference(self) -> dict[str, NDArray[Any]]:
        """Return the reference clip and the outputs of PyTorch for it, by name; docs/bundle.md lists the arrays."""
        with np.load(io.BytesIO(self.held[REFERENCE].data)) as archive:
            return {name: archive[name] for name in archive.files}


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return a manifest as the content of manifest.json."""
    return (json.dumps(manifest.to_json(), indent=2, allow_nan=False) + "\n").encode()


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Replace the manifest of the bundle in `path`; the new file appears only when it is complete.

    A link is replaced by a file, because the file that the link leads to may belong to other bundles too.
    """
    replace_file(path / MANIFEST, manifest_bytes(manifest))


def record_verification(bundle: Bundle, report: Mapping[str, Any]) -> None:
    """Store a report of `verify` in verify.json next to the manifest, replacing an older report on the same backend.

    The manifest does not change, so that `pack` writes the same bytes before and after. If the report cannot
    be written, as on devices with a read-only file system, or if the bundle was exported again since it was opened,
    nothing is stored and a warning is logged.
    """
    try:
        with locked(bundle.path):
            _check_same(bundle, read_manifest(bundle.path))
            reports = {**_reports(bundle), report["backend"]: dict(report)}
            text = json.dumps({"bundle": bundle.digest, "reports": reports}, indent=2, allow_nan=False) + "\n"
            replace_file(bundle.path / VERIFICATION, text.encode())
    except (OSError, BundleError) as error:
        log.warning("verify: the report is not stored in the bundle (%s)", without_number(error))


def verifications(bundle: Bundle) -> dict[str, Verification]:
    """Return the last report of `verify` on each backend, by the name of the backend.

    Older versions stored the reports in the manifest; verify.json takes precedence.
    """
    beside = {name: Verification.from_json(report) for name, report in _reports(bundle).items()}
    return {**bundle.manifest.verification, **beside}


def _reports(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Return the reports of verify.json by backend; empty if the file is missing, invalid or of a different bundle."""
    file = bundle.path / VERIFICATION
    try:
        content = json.loads(file.read_text(), parse_constant=_finite, parse_float=_finite)
        reports: dict[str, dict[str, Any]] = content["reports"] if content["bundle"] == bundle.digest else {}
        for name, report in reports.items():
            Verification.from_json(report, name)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s: cannot be read (%s); `e3d verify` writes it again", file, error)
        return {}
    return reports


def record_decay(bundle: Bundle, decay: Decay) -> None:
    """Store a decay in the card of a bundle; snapshots and engines of the bundle stay valid.

    Raises:
        BundleError: The bundle was exported again since it was opened.
        OSError: The manifest cannot be written.
    """
    new = Card(decay=decay).to_dict()
    _change(bundle, lambda manifest: replace(manifest, card={**manifest.card, **new}))


def _change(bundle: Bundle, change: Callable[[Manifest], Manifest]) -> None:
    """Read the manifest, apply a change and write it, while a lock keeps other processes from writing.

    Raises:
        BundleError: The bundle was exported again since it was opened.
    """
    with locked(bundle.path):
        manifest = read_manifest(bundle.path)  # read again, because engines may have been built since
        _check_same(bundle, manifest)
        write_manifest(bundle.path, change(manifest))


def _check_same(bundle: Bundle, manifest: Manifest) -> None:
    """Check that the manifest on disk belongs to the same export as the opened bundle."""
    if replace(bundle, manifest=manifest).digest != bundle.digest:
        raise BundleError(f"{bundle.path}: was exported again while this command ran; run the command again")


@contextmanager
def new_bundle(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder to write a bundle into; the folder moves to `output` when the `with` block succeeds.

    If the block fails, the folder is deleted and `output` is unchanged. If `output` is a link, the folder that the link
    leads to is created or replaced.

    Raises:
        ConfigError: `output` has the suffix of a single file, exists although `overwrite` is not set, or exists and is
            not a bundle.
    """
    if output.suffix.lower() in FILE_SUFFIXES:
        raise ConfigError(
            f"{output}: is the name of a file, and a bundle is a folder; name it {output.with_suffix('.e3d')}"
        )
    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: already exists; give --overwrite to replace it, or give another name")
    if output.exists() and not (output / MANIFEST).is_file():
        raise ConfigError(f"{output}: already exists and is not a bundle, so it is not replaced; give another name")
    place = output.resolve()
    with naming(output), workspace(place) as folder:
        yield folder
        folder.chmod(0o755)
        if overwrite and place.exists():
            # Lock the old bundle. Otherwise, a process that is about to change the manifest of the old bundle could
            # write into the new bundle.
            with locked(place):
                swap(folder, place)
            return
        try:
            folder.replace(place)
        except OSError as error:
            if not place.exists():
                raise
            raise ConfigError(
                f"{output}: was created by another process during the export; give --overwrite to replace it, or give "
                "another name"
            ) from error


def _finite(text: str) -> float:
    """Convert a number of a JSON file; NaN and infinities are refused, because they could not be written back.

    Raises:
        ValueError: The number is not finite.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"got {text}, expected a finite number")
    return number


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the bundle in `path`, after checking its fields.

    Raises:
        BundleError: The manifest is missing, or this version cannot read it.
    """
    with open_folder(path) as folder:
        return _manifest_of(path, _manifest_text(folder))


def _manifest_text(folder: Folder) -> bytes:
    """Return the content of the manifest in a folder."""
    file = folder.path / MANIFEST
    try:
        with folder.open(MANIFEST) as opened:
            return opened.readall()
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder.path}: has no {MANIFEST}, so it is not a bundle; create a bundle with `e3d export`"
        ) from error
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}); copy or export the bundle again") from error


def _manifest_of(path: Path, text: bytes) -> Manifest:
    """Decode the manifest of the bundle in `path` from the content of manifest.json, and check it."""
    file = path / MANIFEST
    try:
        content = json.loads(text, parse_constant=_finite, parse_float=_finite)
        schema = content["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{file}: is not a manifest ({error}); export the model again") from error
    if type(schema) is not int or schema not in READS:
        raise BundleError(
            f"{file}: has schema {schema!r}, this version reads {' and '.join(map(str, READS))}; update e3d_deploy or "
            "export again"
        )
    try:
        manifest = Manifest.from_json(content)
    except ValueError as error:
        raise BundleError(f"{file}: {error}; export the model again") from error
    if problem := next(manifest.problems(always={MODEL, REFERENCE}), None):
        raise BundleError(f"{file}: {problem}; export the model again")
    return manifest


def _replaced(folder: Folder, text: bytes) -> bool:
    """Return True if a different folder has taken the path of `folder`, or if the manifest there is not `text`."""
    if folder.replaced():
        return True
    try:
        with open_folder(folder.path) as now:
            return _manifest_text(now) != text
    except BundleError:
        return bool(text)


def _held(folder: Folder, manifest: Manifest) -> HeldFiles:
    """Read the files of a bundle except its engines, and compare their hashes with the manifest."""
    names = [name for name in manifest.files if not name.startswith(ENGINES)]
    for name in names:
        _check_inside(folder.path, name)
    contents = {}
    for name, content in folder.read(names):
        _check_hash(folder.path / name, hashlib.sha256(content.data).hexdigest(), manifest.files[name])
        contents[name] = content
    return HeldFiles(contents)


def _config(path: Path, manifest: Manifest, model_file: Content) -> ModelConfig:
    """Return the config of the manifest, after comparing it with the config in the model file."""
    try:
        config = ModelConfig.from_dict(dict(manifest.config))
    except ConfigError as error:
        raise BundleError(f"{path / MANIFEST}: {error}") from error
    try:
        header, _ = header_of(model_file)
        model = ModelConfig.from_dict(entries_of(path / MODEL, header.get("__metadata__"))["config"])
    except CheckpointError as error:
        raise BundleError(str(error)) from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path / MODEL}: is not a model file ({error}); export the model again") from error
    for one in fields(config):
        ours, its = getattr(config, one.name), getattr(model, one.name)
        if ours != its:
            raise BundleError(f"{path / MANIFEST}: {one.name} is {ours}, but {its} in {MODEL}; export the model again")
    return config


def _check_regular(file: Path) -> None:
    """Check that a path is a regular file or does not exist; reading a pipe or a device might never end."""
    if file.exists() and not file.is_file():
        raise BundleError(f"{file}: is not a regular file; copy or export the bundle again")


def check_file(bundle: Path, name: str, digest: str) -> None:
    """Check that a file of a bundle has the hash `digest` from the manifest.

    Raises:
        BundleError: The file is missing, is not a regular file, has a different hash, or is outside the bundle.
    """
    file = bundle / name
    _check_inside(bundle, name)
    _check_regular(file)
    try:
        found = sha256(file)
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}); copy or export the bundle again") from error
    _check_hash(file, found, digest)


def _check_inside(bundle: Path, name: str) -> None:
    """Check that a name in the manifest does not lead out of the bundle.

    Links may lead out: model hubs store files elsewhere and link to them. The hash of such a file is checked.
    """
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise BundleError(f"{bundle / MANIFEST}: names {name!r}, which is outside the bundle; do not use this bundle")


def _check_hash(file: Path, found: str, digest: str) -> None:
    if found != digest:
        raise BundleError(
            f"{file}: altered or truncated, its SHA-256 is {found[:12]}…, expected {digest[:12]}… from the manifest; "
            "copy or export the bundle again"
        )


def _hash(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an object of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
