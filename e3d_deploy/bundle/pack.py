"""A bundle as one archive, and back: what a device gets, and takes apart without PyTorch."""

import dataclasses
import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from e3d_deploy.bundle.archive import MOST_BYTES, check_names, entry, open_archive
from e3d_deploy.bundle.folder import (
    ENGINES,
    MANIFEST,
    Bundle,
    check_file,
    manifest_bytes,
    new_bundle,
    read_manifest,
    write_manifest,
)
from e3d_deploy.bundle.manifest import Manifest
from e3d_deploy.errors import BundleError, ConfigError
from e3d_deploy.files import check_place, new_file, place_of, sync
from e3d_deploy.progress import Notify, silent

BLOCK = 1 << 20
MOST_MANIFEST_BYTES = 1 << 24


def pack(
    bundle: Bundle,
    output: Path,
    *,
    engines: bool = False,
    overwrite: bool = False,
    progress: Notify = silent,
) -> Path:
    """Write a bundle as the archive `output`; return its path.

    The same bundle gives the same bytes: the manifest, then the other files by name, stored. (Deflated, the full-size
    bundle is a tenth smaller and takes six times as long, and its bytes change with the zlib.) The archive appears when
    it is whole, not before.

    Args:
        engines: pack the plans too; `unpack` drops them unless it is told to trust them.
        overwrite: replace a file that is there.
        progress: called with what is being written.

    Raises:
        ConfigError: `output` is there already, its folder is not, or it lies in the bundle.
        BundleError: a file that is lost or changed meanwhile, or a bundle too large for an archive.
    """
    if output.exists() and not output.is_dir() and not overwrite:
        raise ConfigError(f"{output}: is there already; give --overwrite to replace a file, or another name")
    place = output.resolve()
    if place.is_relative_to(bundle.path.resolve()):
        raise ConfigError(f"{output}: lies in the bundle {bundle.path}, which is packed; choose another place")
    check_place(output)
    manifest = bundle.manifest if engines else without_engines(bundle.manifest)
    check_names([MANIFEST, *manifest.files], bundle.path)
    sizes = {}
    for name in sorted(manifest.files):
        if (size := bundle.size(name)) is None:
            raise BundleError(f"{bundle.path / name}: is missing; build the engines again, or pack without them")
        sizes[name] = size
    if (total := sum(sizes.values())) > MOST_BYTES:
        raise BundleError(
            f"{bundle.path}: has {total:,} bytes, an archive holds {MOST_BYTES:,}; copy the folder instead"
        )
    with new_file(output) as partial, zipfile.ZipFile(partial, "w", allowZip64=False) as archive:
        text = manifest_bytes(manifest)
        _add(archive, MANIFEST, len(text), io.BytesIO(text), progress)
        for name, size in sizes.items():
            with _source(bundle, name) as source:
                digest = _add(archive, name, size, source, progress)
            if digest != manifest.files[name]:
                raise BundleError(f"{bundle.path / name}: changed while it was packed; pack the bundle again")
    return output


def unpack(
    path: Path,
    output: Path,
    *,
    trust_engines: bool = False,
    overwrite: bool = False,
    most_bytes: int = MOST_BYTES,
    progress: Notify = silent,
) -> tuple[Bundle, list[str]]:
    """Take an archive apart into the bundle `output`, which appears when it is whole and checked, not before.

    Args:
        trust_engines: keep the plans, which are native code; only for an archive whose maker is trusted.
        overwrite: replace a bundle that is there.
        most_bytes: of all files together.
        progress: called with what is being written.

    Returns:
        The bundle, and the names of the engines that were dropped.

    Raises:
        BundleError: an archive that is damaged, incomplete, too large, or not of the form that `pack` writes.
        ConfigError: `output` is there already, or its folder is not.
    """
    place_of(output)
    with new_bundle(output, overwrite=overwrite) as folder, open_archive(path) as (archive, entries):
        try:
            dropped = _extract(
                archive, entries, folder, trust_engines=trust_engines, most_bytes=most_bytes, progress=progress
            )
            bundle = Bundle.open(folder)
            for name, digest in bundle.manifest.files.items():
                if name.startswith(ENGINES):
                    check_file(folder, name, digest)
        except BundleError as error:  # which names a folder that nobody will find
            raise BundleError(str(error).replace(str(folder), str(path))) from error
    return dataclasses.replace(bundle, path=output), dropped


def without_engines(manifest: Manifest) -> Manifest:
    """Return a manifest without the engines and the reports of `verify` about them."""
    targets = {name.rpartition(".")[2] for name in manifest.engines}
    return dataclasses.replace(
        manifest,
        engines={},
        verification={name: one for name, one in manifest.verification.items() if name not in targets},
        files={name: digest for name, digest in manifest.files.items() if not name.startswith(ENGINES)},
    )


def _source(bundle: Bundle, name: str) -> IO[bytes]:
    """Open a file of a bundle: what is held of it, or an engine by its path."""
    return io.BytesIO(bundle.held[name].data) if name in bundle.held else (bundle.path / name).open("rb")


def _add(archive: zipfile.ZipFile, name: str, size: int, source: IO[bytes], progress: Notify) -> str:
    """Put a file into an archive; return its SHA-256."""
    with archive.open(entry(name, size), "w") as destination:
        return _copy(source, destination, size, lambda done: progress(f"{name}{done}"))


def _extract(
    archive: zipfile.ZipFile,
    entries: Mapping[str, zipfile.ZipInfo],
    folder: Path,
    *,
    trust_engines: bool,
    most_bytes: int,
    progress: Notify,
) -> list[str]:
    """Write the files of an archive into a folder, if they are those of its manifest; return the engines left out."""
    if MANIFEST not in entries:
        raise BundleError(f"{folder}: has no {MANIFEST}, so it is no bundle; give an archive that `e3d pack` wrote")
    if entries[MANIFEST].file_size > MOST_MANIFEST_BYTES:
        raise BundleError(f"{folder}: its {MANIFEST} has {entries[MANIFEST].file_size:,} bytes; do not use it")
    (folder / MANIFEST).write_bytes(archive.read(MANIFEST))
    packed = read_manifest(folder)
    if odd := sorted({MANIFEST, *packed.files} ^ set(entries)):
        what = "holds a file that its manifest does not list" if odd[0] in entries else "lacks a file of its manifest"
        raise BundleError(f"{folder}: {what}, {odd[0]}; copy it again, or pack the bundle anew")
    manifest = packed if trust_engines else without_engines(packed)
    total = sum(entries[name].file_size for name in manifest.files)
    if total > most_bytes:
        raise BundleError(f"{folder}: holds {total:,} bytes, the limit is {most_bytes:,}; raise it by --limit-mb")
    for name in manifest.files:
        size = entries[name].file_size
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as source, (folder / name).open("xb") as destination:
            _copy(source, destination, size, lambda done, name=name: progress(f"{name}{done}"))  # type: ignore[misc]
        sync(folder / name)
    write_manifest(folder, manifest)
    return sorted(set(packed.engines) - set(manifest.engines))


def _copy(source: IO[bytes], destination: IO[bytes], size: int, progress: Notify) -> str:
    """Copy a file; return its SHA-256."""
    digest, done = hashlib.sha256(), 0
    progress("")
    while block := source.read(BLOCK):
        digest.update(block)
        destination.write(block)
        done += len(block)
        if size > BLOCK:
            progress(f", {done / size:.0%}")
    return digest.hexdigest()
