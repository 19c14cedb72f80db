"""TensorRT plans of a bundle, and the checks before a plan, which is native code, is passed to the library."""

import hashlib
import json

from e3d_deploy.bundle.folder import ENGINES, WEIGHTS_SUFFIX, Bundle
from e3d_deploy.bundle.sidecar import EngineSidecar
from e3d_deploy.errors import BundleError
from e3d_deploy.files import sha256


def weights_sha256(bundle: Bundle) -> str:
    """Return the SHA-256 of the weights file; with several weights files, a hash over their names and hashes."""
    files = {name: digest for name, digest in bundle.manifest.files.items() if name.endswith(WEIGHTS_SUFFIX)}
    if len(files) == 1:
        return str(*files.values())
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def sources(bundle: Bundle, graph: str, target: str) -> dict[str, str]:
    """Return the hashes of the files that an engine is built from, under the names that its sidecar uses."""
    return {
        "graph_sha256": bundle.manifest.files[bundle.entry(graph, target).file],
        "weights_sha256": weights_sha256(bundle),
    }


def check_sources(bundle: Bundle, graph: str, target: str) -> None:
    """Check that the files that an engine was just built from still have the hashes of the manifest.

    TensorRT reads these files by their paths, so they may have changed since the bundle was opened. Call this after a
    build and before the engine is listed in the manifest.

    Raises:
        BundleError: A file has changed, for example because the bundle was exported again.
    """
    for name, digest in bundle.manifest.files.items():
        file = bundle.path / name
        if name != bundle.entry(graph, target).file and not name.endswith(WEIGHTS_SUFFIX):
            continue
        if not (file.exists() and sha256(file) == digest):
            raise BundleError(f"{file}: changed while an engine was built from it; build the engine again")


def load_plan(bundle: Bundle, graph: str, *, target: str, version: str, compute_capability: str | None = None) -> bytes:
    """Return the content of the plan of a graph, after checking that it fits the bundle, the library and the GPU.

    Args:
        target: library that will run the plan, `tensorrt` or `tensorrt-rtx`.
        version: version of this library.
        compute_capability: compute capability of the GPU that will run the plan, such as 9.0; None skips the check.

    Raises:
        BundleError: The manifest lists no such plan, or the plan cannot be read, does not have the hash of the
            manifest, or was built from a different graph, with different weights, or for a different version or GPU.
    """
    name = f"{graph}.{target}"
    file = bundle.path / f"{ENGINES}{name}.plan"
    again = f"build it again: `e3d build {bundle.path} --target {target}`"
    sidecar = bundle.manifest.engines.get(name)
    digest = bundle.manifest.files.get(f"{ENGINES}{file.name}")
    if sidecar is None or digest is None:
        there = ", ".join(bundle.manifest.engines) or "no engines"
        raise BundleError(f"{bundle.path}: has no engine {name}, its manifest lists {there}; {again}")
    if problem := _problem(bundle, graph, sidecar, version, compute_capability):
        raise BundleError(f"{file}: {problem}; {again}")
    try:
        plan = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}); {again}") from error
    # Hash the plan here and not when the bundle was opened, so that the bytes that run are the bytes that were hashed.
    if (found := hashlib.sha256(plan).hexdigest()) != digest or sidecar.sha256 != digest:
        raise BundleError(
            f"{file}: altered, its SHA-256 is {found[:12]}…, expected {digest[:12]}… from the manifest; do not run it; "
            f"{again}"
        )
    return plan


def _problem(
    bundle: Bundle, graph: str, sidecar: EngineSidecar, version: str, compute_capability: str | None
) -> str | None:
    """Return why a plan cannot be used, as a clause whose subject is the plan; None if it can be used."""
    made_from = sources(bundle, graph, sidecar.target)
    if sidecar.graph_sha256 != made_from["graph_sha256"]:
        return "was built from a different graph than the bundle contains"
    if sidecar.weights_sha256 != made_from["weights_sha256"]:
        return "was built with different weights than the bundle contains"
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
    """Return True if a version-compatible plan runs on a version of TensorRT.

    Such a plan runs on the version that built it, and on later versions up to and including the next major version.
    """
    old, new = ([int(part) for part in text.split(".")[:3]] for text in (built, version))
    return old <= new and new[0] - old[0] <= 1
