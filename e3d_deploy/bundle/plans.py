"""TensorRT plans of a bundle, which are native code: what has to hold before one is handed to the library."""

import hashlib
import json

from e3d_deploy.bundle.folder import ENGINES, WEIGHTS_SUFFIX, Bundle
from e3d_deploy.bundle.sidecar import EngineSidecar
from e3d_deploy.errors import BundleError
from e3d_deploy.files import sha256


def weights_sha256(bundle: Bundle) -> str:
    """The hash of the weights that the graphs read: of the model file, or over the hashes of several."""
    files = {name: digest for name, digest in bundle.manifest.files.items() if name.endswith(WEIGHTS_SUFFIX)}
    if len(files) == 1:
        return str(*files.values())
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def sources(bundle: Bundle, graph: str, target: str) -> dict[str, str]:
    """The hashes of what an engine of a graph is made from, as its sidecar has them."""
    return {
        "graph_sha256": bundle.manifest.files[bundle.entry(graph, target).file],
        "weights_sha256": weights_sha256(bundle),
    }


def check_sources(bundle: Bundle, graph: str, target: str) -> None:
    """Raise if the files that an engine was just made from are no longer those of the manifest.

    TensorRT reads them by their paths, so this has to follow before anything is said of the engine.

    Raises:
        BundleError: the bundle was exported anew meanwhile.
    """
    for name, digest in bundle.manifest.files.items():
        file = bundle.path / name
        if name != bundle.entry(graph, target).file and not name.endswith(WEIGHTS_SUFFIX):
            continue
        if not (file.exists() and sha256(file) == digest):
            raise BundleError(f"{file}: changed while an engine was made from it; build again")


def load_plan(bundle: Bundle, graph: str, *, target: str, version: str, compute_capability: str | None = None) -> bytes:
    """The plan of a graph, for the library `target` of `version`.

    Args:
        compute_capability: of the GPU that is to run it, such as 9.0; None leaves that unchecked.

    Raises:
        BundleError: there is none; or it is not the one that the manifest names, or was built by another library or
            version, for another GPU, or from another graph.
    """
    name = f"{graph}.{target}"
    file = bundle.path / f"{ENGINES}{name}.plan"
    again = f"build it again: `e3d build {bundle.path} --target {target}`"
    sidecar = bundle.manifest.engines.get(name)
    digest = bundle.manifest.files.get(f"{ENGINES}{file.name}")
    if sidecar is None or digest is None:
        there = ", ".join(bundle.manifest.engines) or "none at all"
        raise BundleError(f"{bundle.path}: its manifest names no engine {name}, only {there}; {again}")
    if problem := _problem(bundle, graph, sidecar, version, compute_capability):
        raise BundleError(f"{file}: {problem}; {again}")
    try:
        plan = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}); {again}") from error
    # Here, and not when the bundle was opened: what is run is what was hashed.
    if (found := hashlib.sha256(plan).hexdigest()) != digest or sidecar.sha256 != digest:
        raise BundleError(
            f"{file}: altered, its SHA-256 is {found[:12]}…, the manifest says {digest[:12]}…; do not run it; {again}"
        )
    return plan


def _problem(
    bundle: Bundle, graph: str, sidecar: EngineSidecar, version: str, compute_capability: str | None
) -> str | None:
    made_from = sources(bundle, graph, sidecar.target)
    if sidecar.graph_sha256 != made_from["graph_sha256"]:
        return "was built from another graph than the bundle's"
    if sidecar.weights_sha256 != made_from["weights_sha256"]:
        return "was built with other weights than the bundle's"
    built, options = sidecar.builder, sidecar.options
    if built != version and not (options.version_compatible and _runs_on(built, version)):
        return f"was built by {sidecar.target} {built}, this is {version}"
    here, capability = compute_capability, sidecar.compute_capability
    if here is None or capability == "portable" or options.hardware_compatibility == "ampere-plus":
        return None
    if here not in [one.split()[0] for one in capability.split(",")]:
        return f"was built for {capability}, this GPU is {here}"
    return None


def _runs_on(built: str, version: str) -> bool:
    """Return True if a version-compatible plan runs on a TensorRT: not older, and at most one major version newer."""
    old, new = ([int(part) for part in text.split(".")[:3]] for text in (built, version))
    return old <= new and new[0] - old[0] <= 1
