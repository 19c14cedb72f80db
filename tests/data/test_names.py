"""Names that look like syntax: protocols, shares, pairs, patterns."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from e3d_deploy.commands.train import source
from e3d_deploy.data.form import Form
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.data.sources import _pair
from e3d_deploy.data.videos import play_video

CLIP = Path(__file__).parents[2] / "e3d_deploy" / "data" / "clips" / "pedestrians.mp4"
ODD = ("2024-05-01T12:30:00.mp4", "http:a.mp4", "concat:a|b.mp4", "a%03d.mp4", "?#*[a].mp4", "-a.mp4", "new\nline.mp4")


@pytest.mark.parametrize("name", [*ODD, "pipe:0.mp4", os.fsdecode(b"\xff.mp4"), "n" * 251 + ".mp4"])
def test_a_video_of_any_name_is_opened_from_its_own_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(CLIP, name)
    video = play_video(Path(name), Form(image_size=(16, 48), channels=1), remarks=Remarks(silent=True))
    assert next(video.pictures).shape == (16, 48, 1)


def test_an_existing_source_with_a_colon_has_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source("clips:2") == ("clips", 2.0)
    assert source("12:30") == ("12", 30.0)
    for name in ("clips:2", "12:30"):
        Path(name).mkdir()
        assert source(name) == (name, 1.0)
        assert source(f"{name}:0.5") == (name, 0.5)


def test_the_names_of_a_pair_may_contain_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _pair("a.npz,b.npz") == [Path("a.npz"), Path("b.npz")]
    assert _pair("a,b") is None
    for name in ("a,1.npz", "b,2.npz", "c.npz,d.npz"):
        np.savez(tmp_path / name, x=np.zeros(1))
    assert _pair("a,1.npz,b,2.npz") == [Path("a,1.npz"), Path("b,2.npz")]
    assert _pair("a,1.npz,c.npz,d.npz") == [Path("a,1.npz"), Path("c.npz,d.npz")]
