"""Engines on their way into a bundle: made beside it, then moved in together with the manifest's word for them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from e3d_deploy.bundle.folder import ENGINES, MANIFEST, Bundle, manifest_bytes, read_manifest
from e3d_deploy.bundle.plans import sources
from e3d_deploy.bundle.sidecar import EngineSidecar
from e3d_deploy.errors import BundleError
from e3d_deploy.files import locked, sha256, sync, workspace


@contextmanager
def staging(bundle: Bundle) -> Iterator[Path]:
    """A folder for plans within the bundle, gone at the end; what killed builds left of theirs goes first."""
    with workspace(bundle.path / ENGINES) as folder:
        yield folder


def move_in(bundle: Bundle, target: str, stage: Path, sidecars: Mapping[str, EngineSidecar]) -> None:
    """Make the plans `GRAPH.TARGET.plan` in a stage the bundle's engines of these graphs for a target.

    Everything is on the disk before the bundle changes. Older engines of the same leave the manifest first, so that
    at no moment it speaks of files that are gone: a build killed in between leaves a bundle without engines.

    Raises:
        BundleError: the bundle was exported anew since they were made.
    """
    sheets = {f"{graph}.{target}": sidecar for graph, sidecar in sidecars.items()}
    added = {}
    for name, sidecar in sheets.items():
        (stage / f"{name}.json").write_text(json.dumps(sidecar.to_json(), indent=2) + "\n")
        added[f"{ENGINES}{name}.plan"] = sidecar.sha256
        added[f"{ENGINES}{name}.json"] = sha256(stage / f"{name}.json")
    with locked(bundle.path):
        manifest = read_manifest(bundle.path)  # another build or export may have changed it meanwhile
        now = replace(bundle, manifest=manifest)
        for graph, sidecar in sidecars.items():
            if any(getattr(sidecar, name) != digest for name, digest in sources(now, graph, target).items()):
                raise BundleError(f"{bundle.path}: exported anew while its engines were made; build again")
        files = {name: digest for name, digest in manifest.files.items() if name not in added}
        engines = {name: sheet for name, sheet in manifest.engines.items() if name not in sheets}
        steps = (
            replace(manifest, files=files, engines=engines),
            replace(manifest, files=files | added, engines=engines | sheets),
        )
        for number, step in enumerate(steps):
            (stage / f"manifest.{number}").write_bytes(manifest_bytes(step))
        for file in stage.iterdir():
            sync(file)
        folder = bundle.path / ENGINES
        folder.mkdir(exist_ok=True)
        (stage / "manifest.0").replace(bundle.path / MANIFEST)
        for old in folder.glob(f"*.{target}.*"):
            if f"{ENGINES}{old.name}" not in step.files:
                old.unlink()
        for name in added:
            (stage / Path(name).name).replace(bundle.path / name)
        (stage / "manifest.1").replace(bundle.path / MANIFEST)
