"""Settings of the server, and its offered sources."""

from pathlib import Path

import numpy as np
import pytest

from e3d_deploy.errors import ClipError, ConfigError
from e3d_deploy.serve.offers import offers_of
from e3d_deploy.serve.settings import is_loopback
from tests.serve.conftest import TOKEN, settings_of


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_a_server_on_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    settings_of(host=host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "localhost.example", "example", ""])
def test_a_server_that_other_machines_can_reach_needs_a_token_and_encryption(host: str, tmp_path: Path) -> None:
    for given in ({}, {"token": TOKEN}, {"behind_proxy": True}):
        with pytest.raises(
            ConfigError, match="needs a token and encryption; give --token or --token-file, and either --tls-cert"
        ):
            settings_of(host=host, **given)
    settings_of(host=host, token=TOKEN, behind_proxy=True)
    settings_of(host=host, token=TOKEN, certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")


@pytest.mark.parametrize("token", ["", " ", "ü", "a\nb"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="token: expected printable ASCII"):
        settings_of(token=token)


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only one of --tls-cert and --tls-key"):
        settings_of(certificate=tmp_path / "cert.pem")


def test_a_folder_offers_its_videos_by_names_relative_to_the_folder(video: Path) -> None:
    below = video.parent / "night" / "run.mp4"
    below.parent.mkdir()
    below.write_bytes(video.read_bytes())
    (video.parent / "notes.txt").write_text("no video")
    (video.parent / "clip.npy").write_bytes(b"an array does not play")
    offers = offers_of([str(video.parent)], lambda _: None)
    assert [(offer.id, offer.name) for offer in offers] == [("1", "night/run.mp4"), ("2", "walk.mp4")]


def test_a_link_out_of_the_folder_is_not_offered(video: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(video.read_bytes())
    (video.parent / "link.mp4").symlink_to(secret)
    assert [offer.name for offer in offers_of([str(video.parent)], lambda _: None)] == ["walk.mp4"]


def test_addresses_are_offered_without_their_password(video: Path) -> None:
    offers = offers_of([str(video), "rtsp://user:secret@camera.example/door?key=secret"], lambda _: None)
    assert [offer.name for offer in offers] == ["walk.mp4", "rtsp://camera.example/door"]


def test_a_missing_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for text, kind in [("none.mp4", ClipError), ("empty", ClipError)]:
        with pytest.raises(kind, match=text):
            offers_of([str(tmp_path / text)], lambda _: None)
    (tmp_path / "notes.md").write_text("no video")
    np.save(tmp_path / "clip.npy", np.zeros((4, 8, 8, 1), np.uint8))
    for name in ("notes.md", "clip.npy"):
        with pytest.raises(ClipError, match=name):
            offers_of([str(tmp_path / name)], lambda _: None)
    with pytest.raises(ConfigError, match="standard input cannot be served"):
        offers_of(["-"], lambda _: None)
    with pytest.raises(ConfigError, match="ftp"):
        offers_of(["ftp://host/film.mp4"], lambda _: None)
