"""Installation of engines: plans are staged in a workspace, then moved into the bundle and listed in its manifest."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from e3d_deploy.bundle.folder import ENGINES, MANIFEST, Bundle, manifest_bytes, read_manifest
from e3d_deploy.bundle.manifest import Manifest
from e3d_deploy.bundle.plans import sources
from e3d_deploy.bundle.sidecar import EngineSidecar
from e3d_deploy.errors import BundleError
from e3d_deploy.export.engines.plan import default_buckets, profile
from e3d_deploy.files import locked, sha256, sync, workspace

log = logging.getLogger(__name__)


@contextmanager
def staging(bundle: Bundle) -> Iterator[Path]:
    """Yield a temporary folder for plans within the bundle, after the removal of leftovers of killed builds."""
    with workspace(bundle.path / ENGINES) as folder:
        yield folder


def move_in(bundle: Bundle, target: str, stage: Path, sidecars: Mapping[str, EngineSidecar]) -> None:
    """Install the plans `GRAPH.TARGET.plan` of the folder `stage` as engines of the bundle.

    All files are on disk before the bundle changes. Engines that are to be replaced are first removed from the
    manifest, so that the manifest never lists a missing file; if the process is killed at that point, the bundle lacks
    these engines. Engines of other graphs that cannot be run together with the new engines are removed too, and a
    warning names them.

    Args:
        sidecars: sidecars of the new engines by graph.

    Raises:
        BundleError: the bundle was exported again after the engines were built.
    """
    sheets = {f"{graph}.{target}": sidecar for graph, sidecar in sidecars.items()}
    added = {}
    for name, sidecar in sheets.items():
        (stage / f"{name}.json").write_text(json.dumps(sidecar.to_json(), indent=2) + "\n")
        added[f"{ENGINES}{name}.plan"] = sidecar.sha256
        added[f"{ENGINES}{name}.json"] = sha256(stage / f"{name}.json")
    with locked(bundle.path):
        manifest = read_manifest(bundle.path)  # another build or export may have changed it after `bundle` was opened
        now = replace(bundle, manifest=manifest)
        for graph, sidecar in sidecars.items():
            if any(getattr(sidecar, name) != digest for name, digest in sources(now, graph, target).items()):
                raise BundleError(f"{bundle.path}: exported again during the build of its engines; build them again")
        unfit = _unfit(manifest, target, sidecars)
        dropped = {*added, *(f"{ENGINES}{name}{suffix}" for name in unfit for suffix in (".plan", ".json"))}
        files = {name: digest for name, digest in manifest.files.items() if name not in dropped}
        engines = {name: sheet for name, sheet in manifest.engines.items() if name not in {*sheets, *unfit}}
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
    for name in unfit:
        log.warning(
            "%s: its engine %s was removed, because it was built by a different version of the library, for different "
            "GPUs or for different batch sizes than the new engines; build it again with the same options",
            bundle.path,
            name,
        )


def _unfit(manifest: Manifest, target: str, sidecars: Mapping[str, EngineSidecar]) -> list[str]:
    """Return the names of the older engines of a target that cannot be run together with the new engines."""
    return [
        name
        for name, older in manifest.engines.items()
        if older.target == target and older.graph not in sidecars
        if not all(_fit_together(older, new) for new in sidecars.values())
    ]


def _fit_together(one: EngineSidecar, other: EngineSidecar) -> bool:
    """Return True if one process can run both engines with the same batch sizes."""
    first, second = (
        (each.builder, each.compute_capability, each.options.version_compatible, each.options.hardware_compatibility)
        for each in (one, other)
    )
    # The sidecar of a refitted engine does not record the buckets, so such an engine is not compared.
    streams = {_streams(each) for each in (one, other)} - {None}
    return first == second and len(streams) <= 1


def _streams(sidecar: EngineSidecar) -> str | None:
    """Return the buckets of an engine as text from `profile`; None if the sidecar does not record them.

    The default buckets of the graphs count as equal, because each default suits its graph.
    """
    built = None if sidecar.parts is None else sidecar.parts.get("profile")
    # By default only the step graph has a bucket for batch size 2, because renewal steps two states in one call.
    # Forecasts run one stream per call.
    return profile(default_buckets("rollout")) if built == profile(default_buckets(sidecar.graph)) else built
