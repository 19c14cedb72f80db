"""What gets deployed: a folder NAME.e3d with graphs, weights, a reference clip and a manifest."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.bundle.manifest import problems
from e3d_deploy.card import Card, Decay
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import BundleError, ConfigError
from e3d_deploy.files import locked, sha256, swap, workspace, write_file

log = logging.getLogger(__name__)

SCHEMA = 1
MANIFEST, MODEL, REFERENCE = "manifest.json", "model.safetensors", "reference.npz"
WEIGHTS, YARDSTICK = "weights.safetensors", "float32.onnx"
"""Where graphs have a low type: its weights, and the step graph without it."""
ENGINES = "engines/"
"""What the names of all files of engines begin with."""

SIZES = (1, 2, 4, 8, 16, 32)
"""How many streams a step takes at once where its graph takes any number: a few sizes, so that few are compiled."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were found, and found unaltered; but its engines, which can be built again, were not
    looked for: `plans.load_plan` does that."""

    path: Path
    manifest: dict[str, Any]
    """As in manifest.json; docs/bundle.md lists its fields."""
    config: ModelConfig

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """The bundle in a folder, after its manifest and the hashes of its files were checked.

        Raises:
            BundleError: a missing, truncated or altered file, or a manifest that this version cannot read.
        """
        path = Path(path)
        manifest = read_manifest(path)
        for name, digest in manifest["files"].items():
            if not name.startswith(ENGINES):
                check_file(path, name, digest)
        try:
            return cls(path, manifest, ModelConfig.from_dict(manifest["config"]))
        except ConfigError as error:
            raise BundleError(f"{path / MANIFEST}: {error}") from error

    @property
    def digest(self) -> str:
        """Stands for what the bundle computes: the hash over its graphs and weights."""
        computing = {MODEL, WEIGHTS, *(graph["file"] for graph in self.manifest["graphs"].values())}
        files = {name: digest for name, digest in self.manifest["files"].items() if name in computing}
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    @property
    def context_length(self) -> int:
        """Frames that the clip graph takes."""
        return int(self.manifest["context_length"])

    @property
    def horizon(self) -> int:
        """Frames that the clip graph gives."""
        return int(self.manifest["horizon"])

    @property
    def card(self) -> Card:
        """Facts about the model; empty in a bundle of an older version."""
        return Card.from_dict(self.manifest.get("card", {}))

    @property
    def batch(self) -> int:
        """Streams that the graphs run at once; 1 where they take any number."""
        return int(self.manifest["batch"])

    @property
    def precision(self) -> str:
        """The policy of its graphs, of `policies.POLICIES`."""
        return str(self.manifest["graphs"]["step"]["precision"])

    @property
    def dynamic_batch(self) -> bool:
        """Whether the graphs take any number of streams."""
        return bool(self.manifest["dynamic_batch"])

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many streams a step is run with, ascending."""
        return SIZES if self.dynamic_batch else (self.batch,)

    def graph(self, name: str) -> Path:
        """The file of a graph.

        Raises:
            BundleError: the bundle has no such graph.
        """
        try:
            return self.path / str(self.manifest["graphs"][name]["file"])
        except KeyError as error:
            raise BundleError(
                f"{self.path}: has no graph {name!r}, only {', '.join(self.manifest['graphs'])}"
            ) from error

    def reference(self) -> dict[str, NDArray[Any]]:
        """A clip, and what PyTorch made of it; docs/bundle.md lists the arrays."""
        with np.load(self.path / REFERENCE) as archive:
            return {name: archive[name] for name in archive.files}


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """A manifest as it stands in its file."""
    return (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode()


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest of the bundle in `path`, whole or not at all."""
    write_file(path / MANIFEST, manifest_bytes(manifest))


def record_verification(bundle: Bundle, report: dict[str, Any]) -> None:
    """Put a report of `verify` into the manifest, in the place of an older one of the same backend.

    A bundle that cannot be written, as on many devices, or that was exported anew meanwhile, is left as it is; the
    log says so.
    """
    try:
        with _changing(bundle) as manifest:
            manifest["verification"][report["backend"]] = report
    except (OSError, BundleError) as error:
        log.warning("the report is not recorded in the manifest (%s)", error)


def record_decay(bundle: Bundle, decay: Decay) -> None:
    """Put a decay into the card of a bundle, which stays the same bundle to its snapshots and engines.

    Raises:
        BundleError: it was exported anew meanwhile.
        OSError: it cannot be written.
    """
    with _changing(bundle) as manifest:
        manifest["card"] = replace(Card.from_dict(manifest.get("card", {})), decay=decay).to_dict()


@contextmanager
def _changing(bundle: Bundle) -> Iterator[dict[str, Any]]:
    """Give the manifest of a bundle, which is written when the block ends; nobody else writes it meanwhile.

    Raises:
        BundleError: it was exported anew since it was opened.
    """
    with locked(bundle.path):
        manifest = read_manifest(bundle.path)  # which may have other engines by now
        if replace(bundle, manifest=manifest).digest != bundle.digest:
            raise BundleError(f"{bundle.path}: was exported anew meanwhile; run this again")
        yield manifest
        write_manifest(bundle.path, manifest)


@contextmanager
def new_bundle(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which stands at `output` when the block ends, and nowhere when it fails.

    Where `output` is a link, the folder that it leads to is the one that is made or replaced.

    Raises:
        ConfigError: something is there already: anything, or with `overwrite` what is no bundle.
    """
    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: is there already; give --overwrite to replace it, or another name")
    if output.exists() and not (output / MANIFEST).is_file():
        raise ConfigError(f"{output}: is there already and no bundle, so it is not replaced; give another name")
    place = output.resolve()
    with workspace(place) as folder:
        yield folder
        folder.chmod(0o755)
        if overwrite and place.exists():
            with locked(place):  # else who writes its manifest meanwhile may write into the new one
                swap(folder, place)
        else:
            folder.replace(place)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the bundle in `path`, which has all its fields.

    Raises:
        BundleError: there is none, or none that this version can read.
    """
    if not path.is_dir():
        raise BundleError(f"{path}: no such bundle; give the folder that `e3d export MODEL -o NAME.e3d` made")
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text())
        schema = manifest["schema"]
    except FileNotFoundError as error:
        raise BundleError(f"{path}: has no {MANIFEST}, so it is no bundle; make one with `e3d export`") from error
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}); copy or export the bundle again") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{file}: not a manifest ({error}); export the model again") from error
    if schema != SCHEMA:
        raise BundleError(f"{file}: schema {schema!r}, this version reads {SCHEMA}; update e3d_deploy or export again")
    if problem := next(problems(manifest, always={MODEL, REFERENCE}), None):
        raise BundleError(f"{file}: {problem}; export the model again")
    result: dict[str, Any] = manifest
    return result


def check_file(bundle: Path, name: str, digest: str) -> None:
    """Whether a file of a bundle is the one that its manifest names.

    Raises:
        BundleError: it is not, or it lies elsewhere.
    """
    file = bundle / name
    if not file.resolve().is_relative_to(bundle.resolve()):
        raise BundleError(f"{bundle / MANIFEST}: names {name!r}, which lies outside the bundle; do not use this bundle")
    try:
        found = sha256(file)
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}); copy or export the bundle again") from error
    if found != digest:
        raise BundleError(
            f"{file}: altered or truncated, its SHA-256 is {found[:12]}…, the manifest says {digest[:12]}…; "
            "copy or export the bundle again"
        )
