"""Bundles whose files are links into a store, like those of model hubs and DVC."""

import hashlib
from pathlib import Path

import pytest

from e3d_deploy.bundle.folder import Bundle, check_file, write_manifest
from e3d_deploy.bundle.pack import pack, unpack
from e3d_deploy.errors import BundleError
from tests.tools import contents


@pytest.fixture
def linked(bundle_path: Path) -> Path:
    """Return a bundle of links to files that are named by their hashes, like those in the cache of Hugging Face."""
    store, snapshot = bundle_path.parent / "blobs", bundle_path.parent / "snapshots" / "one"
    store.mkdir()
    snapshot.mkdir(parents=True)
    for file in bundle_path.iterdir():
        if file.is_file():
            blob = store / hashlib.sha256(file.read_bytes()).hexdigest()
            file.rename(blob)
            (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_a_bundle_of_links_opens_and_is_packed_as_files(linked: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.e3d").symlink_to("snapshots/one")
    for path in (linked, tmp_path / "folder.e3d"):
        bundle = Bundle.open(path)
        assert bundle.manifest == Bundle.open(exported / "tiny.e3d").manifest
        pack(bundle, tmp_path / "packed.zip", overwrite=True)
    unpacked, _ = unpack(tmp_path / "packed.zip", tmp_path / "unpacked.e3d")
    assert not any(path.is_symlink() for path in unpacked.path.iterdir())
    assert set(contents(unpacked.path)) == {"manifest.json", *bundle.manifest.files}


def test_writing_into_a_bundle_of_links_does_not_change_the_store(linked: Path) -> None:
    store = linked.parents[1] / "blobs"
    before = contents(store)
    write_manifest(linked, Bundle.open(linked).manifest)
    assert not (linked / "manifest.json").is_symlink()
    assert contents(store) == before
    Bundle.open(linked)


def test_a_link_to_different_content_is_refused(linked: Path, tmp_path: Path) -> None:
    model, digest = linked / "model.safetensors", Bundle.open(linked).manifest.files["model.safetensors"]
    (tmp_path / "other").write_bytes(b"other")
    for target, said in ((tmp_path / "other", "altered"), (tmp_path, "not a regular"), (tmp_path / "nothing", "read")):
        model.unlink()
        model.symlink_to(target)
        with pytest.raises(BundleError, match=said):
            Bundle.open(linked)
        with pytest.raises(BundleError, match=said):
            check_file(linked, "model.safetensors", digest)
