"""Packs a bundle into one archive, unpacks it on a device, and copies it; none of this needs PyTorch."""

import dataclasses
import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from e3d_deploy.bundle.archive import MAX_BYTES, check_names, entry, open_archive
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
from e3d_deploy.files import check_writable, new_file, place_of, sync
from e3d_deploy.paths import check_path
from e3d_deploy.progress import Notify, silent

BLOCK = 1 << 20
MAX_MANIFEST_BYTES = 1 << 24


def pack(
    bundle: Bundle | str | Path,
    output: str | Path,
    *,
    engines: bool = False,
    overwrite: bool = False,
    progress: Notify = silent,
) -> Path:
    """Write a bundle to the archive `output`, and return the path of the archive.

    The same bundle always yields the same bytes: the manifest, then its files in order of their names, without
    compression. (Deflate makes a full-size bundle a tenth smaller and takes six times as long, and its bytes depend on
    the version of zlib.) The archive appears under its name only when it is complete.

    Args:
        bundle: bundle, opened or as the path of its folder.
        output: path of the archive, such as `kth.e3d.zip`.
        engines: pack the TensorRT plans too; `unpack` drops them unless `trust_engines` is set.
        overwrite: replace an existing file.
        progress: function that is called with the name of the file being written and the share that is done.

    Raises:
        ConfigError: `output` exists (and `overwrite` is not set), its parent folder does not exist, or `output` is
            inside the bundle.
        BundleError: A file is missing or has changed since the bundle was opened, or the bundle is too large for an
            archive.
    """
    bundle, output = Bundle.of(bundle), check_path("output", output)
    if output.exists() and not output.is_dir() and not overwrite:
        raise ConfigError(f"{output}: already exists; give --overwrite to replace the file, or give another name")
    place = output.resolve()
    if place.is_relative_to(bundle.path.resolve()):
        raise ConfigError(f"{output}: is inside the bundle {bundle.path}, which is being packed; choose another path")
    check_writable(output)
    manifest = bundle.manifest if engines else without_engines(bundle.manifest)
    check_names([MANIFEST, *manifest.files], bundle.path)
    sizes = {}
    for name in sorted(manifest.files):
        if (size := bundle.size(name)) is None:
            raise BundleError(f"{bundle.path / name}: is missing; build the engines again, or pack without them")
        sizes[name] = size
    if (total := sum(sizes.values())) > MAX_BYTES:
        raise BundleError(
            f"{bundle.path}: is {total:,} bytes, but an archive can hold {MAX_BYTES:,}; copy the folder instead"
        )
    with new_file(output) as partial, zipfile.ZipFile(partial, "w", allowZip64=False) as archive:
        text = manifest_bytes(manifest)
        _add(archive, MANIFEST, len(text), io.BytesIO(text), progress)
        for name, size in sizes.items():
            with _source(bundle, name) as source:
                digest = _add(archive, name, size, source, progress)
            if digest != manifest.files[name]:
                raise BundleError(f"{bundle.path / name}: changed during packing; pack the bundle again")
    return output


def copy_bundle(bundle: Bundle, folder: Path, *, engines: bool = False, progress: Notify = silent) -> None:
    """Copy an opened bundle into a new folder, with the content that an archive of `pack` would have.

    Args:
        engines: copy the TensorRT plans too.
        progress: function that is called with the name of the file being written and the share that is done.

    Raises:
        BundleError: A file is missing or has changed since the bundle was opened.
    """
    manifest = bundle.manifest if engines else without_engines(bundle.manifest)
    check_names([MANIFEST, *manifest.files], bundle.path)
    folder.mkdir()
    for name, digest in manifest.files.items():
        if (size := bundle.size(name)) is None:
            raise BundleError(f"{bundle.path / name}: is missing; build the engines again, or leave them out")
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        with _source(bundle, name) as source, file.open("xb") as destination:
            found = _copy(source, destination, size, lambda done, name=name: progress(f"{name}{done}"))  # type: ignore[misc]
        if found != digest:
            raise BundleError(f"{bundle.path / name}: changed while it was copied; run the command again")
        sync(file)
    write_manifest(folder, manifest)


def unpack(
    path: str | Path,
    output: str | Path,
    *,
    trust_engines: bool = False,
    overwrite: bool = False,
    most_bytes: int = MAX_BYTES,
    progress: Notify = silent,
) -> tuple[Bundle, list[str]]:
    """Unpack an archive into the bundle `output`, which appears only when it is complete and checked.

    Args:
        path: archive that `pack` wrote.
        output: folder of the bundle to write, such as `kth.e3d`.
        trust_engines: keep the TensorRT plans. Plans are native code: set this only for archives from a trusted source.
        overwrite: replace an existing bundle.
        most_bytes: maximum total size of the unpacked files (bytes).
        progress: function that is called with the name of the file being written and the share that is done.

    Returns:
        The bundle, and the names of the engines that were dropped.

    Raises:
        BundleError: The archive is damaged, incomplete or too large, or does not have the form that `pack` writes.
        ConfigError: `output` exists (and `overwrite` is not set, or `output` is not a bundle), or its parent folder
            does not exist.
    """
    path, output = check_path("path", path), check_path("output", output)
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
        except BundleError as error:  # The text names the temporary folder; the user knows the archive.
            raise BundleError(str(error).replace(str(folder), str(path))) from error
    return dataclasses.replace(bundle, path=output), dropped


def without_engines(manifest: Manifest) -> Manifest:
    """Return a manifest without its engines, and without the reports of `verify` on backends that use them."""
    targets = {name.rpartition(".")[2] for name in manifest.engines}
    return dataclasses.replace(
        manifest,
        engines={},
        verification={name: one for name, one in manifest.verification.items() if name not in targets},
        files={name: digest for name, digest in manifest.files.items() if not name.startswith(ENGINES)},
    )


def _source(bundle: Bundle, name: str) -> IO[bytes]:
    """Open a file of a bundle for reading: its content in memory, or for an engine, the file on disk."""
    return io.BytesIO(bundle.held[name].data) if name in bundle.held else (bundle.path / name).open("rb")


def _add(archive: zipfile.ZipFile, name: str, size: int, source: IO[bytes], progress: Notify) -> str:
    """Add a file to an archive, and return the file's SHA-256."""
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
    """Write the files of an archive into a folder, after comparing their names with the archive's manifest.

    Returns:
        The names of the engines that were dropped.
    """
    if MANIFEST not in entries:
        raise BundleError(f"{folder}: has no {MANIFEST}, so it is not a bundle; give an archive that `e3d pack` wrote")
    if entries[MANIFEST].file_size > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{folder}: its {MANIFEST} is {entries[MANIFEST].file_size:,} bytes, expected at most "
            f"{MAX_MANIFEST_BYTES:,}; do not use this archive"
        )
    (folder / MANIFEST).write_bytes(archive.read(MANIFEST))
    packed = read_manifest(folder)
    if odd := sorted({MANIFEST, *packed.files} ^ set(entries)):
        what = (
            "contains a file that its manifest does not list" if odd[0] in entries else "lacks a file of its manifest"
        )
        raise BundleError(f"{folder}: {what}, {odd[0]}; copy it again, or pack the bundle again")
    manifest = packed if trust_engines else without_engines(packed)
    total = sum(entries[name].file_size for name in manifest.files)
    if total > most_bytes:
        raise BundleError(
            f"{folder}: contains {total:,} bytes, but the limit is {most_bytes:,}; raise the limit with --limit-mb"
        )
    for name in manifest.files:
        size = entries[name].file_size
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as source, (folder / name).open("xb") as destination:
            _copy(source, destination, size, lambda done, name=name: progress(f"{name}{done}"))  # type: ignore[misc]
        sync(folder / name)
    write_manifest(folder, manifest)
    return sorted(set(packed.engines) - set(manifest.engines))


def _copy(source: IO[bytes], destination: IO[bytes], size: int, progress: Notify) -> str:
    """Copy a file block by block, and return its SHA-256."""
    digest, done = hashlib.sha256(), 0
    progress("")
    while block := source.read(BLOCK):
        digest.update(block)
        destination.write(block)
        done += len(block)
        if size > BLOCK:
            progress(f", {done / size:.0%}")
    return digest.hexdigest()
