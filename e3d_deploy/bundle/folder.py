"""Deployable folder NAME.e3d with graphs, weights, a reference clip and a manifest."""

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
from e3d_deploy.tensors import Content, entries_of, header_of, without_number

log = logging.getLogger(__name__)

MANIFEST, MODEL, REFERENCE = "manifest.json", "model.safetensors", "reference.npz"
VERIFICATION = "verify.json"
"""Reports of `verify`; no part of the bundle, as other machines may find otherwise, and not packed."""
WEIGHTS, FLOAT32_STEP = "weights.safetensors", "float32.onnx"
"""Weights in the low type of the graphs, and the step graph without that type; only where there is one."""
WEIGHTS_SUFFIX = ".safetensors"
FILE_SUFFIXES = (".onnx", ".engine", ".plan", ".trt", ".zip", ".safetensors", ".pt", ".pth", ".ckpt")
"""Suffixes that no bundle is named with, as they are those of single files."""
ENGINES = "engines/"
"""Prefix of the names of all files of engines."""

ATTEMPTS, PAUSE_S = 10, 0.01
"""Times that a bundle is read, each time published anew while it is read, and the pause before the next."""

SIZES = (1, 2, 4, 8, 16, 32)
"""Numbers of streams that a step takes at once where its graph takes any number; few, so that few are compiled."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were read once and found unaltered; it goes on with them whatever becomes of its folder.

    Its engines, which can be built again, were not looked for: `plans.load_plan` does that.
    """

    path: Path
    """Folder that it was opened from, for messages and for what is written into it; another may be there by now."""
    manifest: Manifest
    """Content of manifest.json."""
    config: ModelConfig
    held: HeldFiles = field(default_factory=HeldFiles, repr=False, compare=False)
    """Files of the manifest in memory, as they were hashed; engines are not among them."""

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Open the bundle in a folder, after its manifest and the hashes of its files were checked.

        Where another bundle is published under that path meanwhile, it is one of the two, and whole.

        Raises:
            BundleError: a missing, truncated or altered file, or a manifest that this version cannot read or that
                describes another network than the model file.
            ResourceLimit: its files do not fit into memory.
        """
        path = Path(path)
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

    @classmethod
    def _read(cls, path: Path, *, last: bool) -> "Bundle | None":
        """Read a bundle; return None where it was replaced meanwhile, unless this is the last attempt."""
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
        """Hash over graphs and weights, which changes when the bundle is exported in another way."""
        computing = {MODEL, WEIGHTS, *(graph.file for graph in self.manifest.graphs)}
        files = {name: digest for name, digest in self.manifest.files.items() if name in computing}
        return _hash(files)

    @property
    def identity(self) -> str:
        """Hash over weights, config and policy: the network whose states a snapshot holds, whatever graphs run it.

        Fields of the config that have their defaults are left out, so that a new one changes no identity.
        """
        defaults = ModelConfig().to_dict()
        config = {name: value for name, value in self.config.to_dict().items() if value != defaults[name]}
        policy = self.manifest.precision.policy
        return _hash({"weights": self.manifest.files[MODEL], "config": config, "policy": policy})

    @property
    def earlier_identities(self) -> tuple[str, ...]:
        """Identities that older versions gave to snapshots of it: the hash over its files."""
        return (self.digest,)

    @property
    def context_length(self) -> int:
        """Frames that the clip graph takes."""
        return self.manifest.context_length

    @property
    def horizon(self) -> int:
        """Frames that the clip graph gives."""
        return self.manifest.horizon

    @property
    def card(self) -> Card:
        """Facts about the model; empty in a bundle of an older version."""
        return Card.from_dict(self.manifest.card)

    @property
    def batch(self) -> int:
        """Streams that the graphs run at once; 1 where they take any number."""
        return self.manifest.batch

    @property
    def precision(self) -> str:
        """Policy of the bundle, one of `policies.POLICIES`; the graph of one backend may have another."""
        return self.manifest.precision.policy

    @property
    def dynamic_batch(self) -> bool:
        """True if the graphs take any number of streams."""
        return self.manifest.dynamic_batch

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of streams that a step is run with, ascending."""
        return SIZES if self.dynamic_batch else (self.batch,)

    @cached_property
    def states(self) -> contract.States:
        """State of a stream; of a bundle of schema 1 as its config stands for it."""
        return self.manifest.stream_states() or contract.states_of(self.config)

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs."""
        return tuple(dict.fromkeys(one.name for one in self.manifest.graphs))

    def entry(self, name: str, backend: str | None = None) -> GraphEntry:
        """Return the graph of a name for a backend; without one, that for all.

        Raises:
            BundleError: the bundle has no such graph.
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
        """Return the path of the graph that `entry` returns, for a library that reads nothing else.

        Another file may be there by now: `plans.check_sources` compares it with the manifest after the work.

        Raises:
            BundleError: the bundle has no such graph.
        """
        return self.path / self.entry(name, backend).file

    def onnx(self, name: str, backend: str | None = None) -> bytes:
        """Return the content of the graph that `entry` returns, without its weights.

        Raises:
            BundleError: the bundle has no such graph.
        """
        file = self.entry(name, backend).file
        if file not in self.held:
            raise BundleError(f"{self.path / file}: is not among the files of the manifest; export the model again")
        return self.held[file].tobytes()

    @property
    def weights(self) -> dict[str, Content]:
        """Files that graphs read their weights from, by name. They are shared with libraries; nobody may write them."""
        return {name: self.held.shared(name) for name in self.held if name.endswith(WEIGHTS_SUFFIX)}

    def size(self, name: str) -> int | None:
        """Return the size of a file (bytes), of an engine as it is now; None for one that is missing."""
        if name in self.held:
            return len(self.held[name])
        with suppress(OSError):
            return (self.path / name).stat().st_size
        return None

    def holding(self, names: Collection[str]) -> "Bundle":
        """Return the bundle with these files in memory alone, as a program that runs for long needs no others."""
        return replace(self, held=self.held.only(names))

    def reference(self) -> dict[str, NDArray[Any]]:
        """Return a clip and PyTorch's answer to it; docs/bundle.md lists the arrays."""
        with np.load(io.BytesIO(self.held[REFERENCE].data)) as archive:
            return {name: archive[name] for name in archive.files}


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the content of the file of a manifest."""
    return (json.dumps(manifest.to_json(), indent=2, allow_nan=False) + "\n").encode()


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Replace the manifest of the bundle in `path`, whole or not at all.

    A link gives way to a file: what it leads to may belong to other bundles too.
    """
    replace_file(path / MANIFEST, manifest_bytes(manifest))


def record_verification(bundle: Bundle, report: Mapping[str, Any]) -> None:
    """Put a report of `verify` beside the manifest, in the place of an older one of the same backend.

    The manifest stays as it is, so that a bundle is packed to the same bytes before and after. A bundle that cannot be
    written, as on many devices, or that was exported anew meanwhile, is left as it is; the log says so.
    """
    try:
        with locked(bundle.path):
            _check_same(bundle, read_manifest(bundle.path))
            reports = {**_reports(bundle), report["backend"]: dict(report)}
            text = json.dumps({"bundle": bundle.digest, "reports": reports}, indent=2, allow_nan=False) + "\n"
            replace_file(bundle.path / VERIFICATION, text.encode())
    except (OSError, BundleError) as error:
        log.warning("the report is not recorded beside the manifest (%s)", without_number(error))


def verifications(bundle: Bundle) -> dict[str, Verification]:
    """Return the last report of `verify` by backend; older versions wrote them into the manifest."""
    beside = {name: Verification.from_json(report) for name, report in _reports(bundle).items()}
    return {**bundle.manifest.verification, **beside}


def _reports(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Return the reports beside the manifest that are of this bundle; a file that cannot be read has none."""
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
    """Put a decay into the card of a bundle, which stays the same bundle to its snapshots and engines.

    Raises:
        BundleError: it was exported anew meanwhile.
        OSError: it cannot be written.
    """
    new = Card(decay=decay).to_dict()
    _change(bundle, lambda manifest: replace(manifest, card={**manifest.card, **new}))


def _change(bundle: Bundle, change: Callable[[Manifest], Manifest]) -> None:
    """Write the manifest of a bundle after a change; nobody else writes it meanwhile.

    Raises:
        BundleError: it was exported anew since it was opened.
    """
    with locked(bundle.path):
        manifest = read_manifest(bundle.path)  # which may have other engines by now
        _check_same(bundle, manifest)
        write_manifest(bundle.path, change(manifest))


def _check_same(bundle: Bundle, manifest: Manifest) -> None:
    """Raise if the manifest that is on disk now is of another export than the bundle."""
    if replace(bundle, manifest=manifest).digest != bundle.digest:
        raise BundleError(f"{bundle.path}: was exported anew meanwhile; run this again")


@contextmanager
def new_bundle(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which stands at `output` when the block ends, and nowhere when it fails.

    Where `output` is a link, the folder that it leads to is the one that is made or replaced.

    Raises:
        ConfigError: the name is that of a file; something is there already: anything, or with `overwrite` what is no
            bundle.
    """
    if output.suffix.lower() in FILE_SUFFIXES:
        raise ConfigError(
            f"{output}: is the name of a file, and a bundle is a folder; name it {output.with_suffix('.e3d')}"
        )
    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: is there already; give --overwrite to replace it, or another name")
    if output.exists() and not (output / MANIFEST).is_file():
        raise ConfigError(f"{output}: is there already and no bundle, so it is not replaced; give another name")
    place = output.resolve()
    with naming(output), workspace(place) as folder:
        yield folder
        folder.chmod(0o755)
        if overwrite and place.exists():
            with locked(place):  # else who writes its manifest meanwhile may write into the new one
                swap(folder, place)
            return
        try:
            folder.replace(place)
        except OSError as error:
            if not place.exists():
                raise
            raise ConfigError(
                f"{output}: was made by another process meanwhile; give --overwrite to replace it, or another name"
            ) from error


def _finite(text: str) -> float:
    """Read a number of a manifest, wherever it stands, as it could not be written again if it were not finite."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"got {text}, expected a number")
    return number


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the bundle in `path`, which has all its fields.

    Raises:
        BundleError: there is none, or none that this version can read.
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
            f"{folder.path}: has no {MANIFEST}, so it is no bundle; make one with `e3d export`"
        ) from error
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}); copy or export the bundle again") from error


def _manifest_of(path: Path, text: bytes) -> Manifest:
    """Return the manifest that a file of the bundle in `path` holds."""
    file = path / MANIFEST
    try:
        content = json.loads(text, parse_constant=_finite, parse_float=_finite)
        schema = content["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{file}: not a manifest ({error}); export the model again") from error
    if type(schema) is not int or schema not in READS:
        raise BundleError(
            f"{file}: schema {schema!r}, this version reads {' and '.join(map(str, READS))}; update e3d_deploy or "
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
    """Return True if another bundle than the one with this manifest is at the path of a folder by now."""
    if folder.replaced():
        return True
    try:
        with open_folder(folder.path) as now:
            return _manifest_text(now) != text
    except BundleError:
        return bool(text)


def _held(folder: Folder, manifest: Manifest) -> HeldFiles:
    """Read the files of a bundle but its engines, and compare what was read with the manifest."""
    names = [name for name in manifest.files if not name.startswith(ENGINES)]
    for name in names:
        _check_inside(folder.path, name)
    contents = {}
    for name, content in folder.read(names):
        _check_hash(folder.path / name, hashlib.sha256(content.data).hexdigest(), manifest.files[name])
        contents[name] = content
    return HeldFiles(contents)


def _config(path: Path, manifest: Manifest, model_file: Content) -> ModelConfig:
    """Return the config of the network, after it was compared with that in the model file."""
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
        raise BundleError(f"{path / MODEL}: not a model file ({error}); export the model again") from error
    for one in fields(config):
        ours, its = getattr(config, one.name), getattr(model, one.name)
        if ours != its:
            raise BundleError(
                f"{path / MANIFEST}: {one.name} is {ours}, in {MODEL} it is {its}; export the model again"
            )
    return config


def _check_regular(file: Path) -> None:
    """Raise if something is there that is no file: reading a pipe waits for ever, and a device may have no end."""
    if file.exists() and not file.is_file():
        raise BundleError(f"{file}: is no regular file; copy or export the bundle again")


def check_file(bundle: Path, name: str, digest: str) -> None:
    """Raise unless a file of a bundle is the one that its manifest names.

    Raises:
        BundleError: it is not, or it lies elsewhere.
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
    """Refuse a name that leads out of the bundle. A link may: the files of model hubs are links into their stores.

    The hash decides what such a file is worth.
    """
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise BundleError(f"{bundle / MANIFEST}: names {name!r}, which lies outside the bundle; do not use this bundle")


def _check_hash(file: Path, found: str, digest: str) -> None:
    if found != digest:
        raise BundleError(
            f"{file}: altered or truncated, its SHA-256 is {found[:12]}…, the manifest says {digest[:12]}…; "
            "copy or export the bundle again"
        )


def _hash(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 over JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
