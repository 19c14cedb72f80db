"""No command overwrites an input or writes into one."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from e3d_deploy.errors import ConfigError
from e3d_deploy.workflows.places import check_apart
from tests.tools import contents, e3d

SAME, INSIDE, BUNDLE = (
    "is an input and would be overwritten",
    "the next run would read it as a clip",
    "is inside the bundle",
)
PLACES = {
    "predict {bundle} {clips} -o {clips}/a.npz": "is a file of",
    "predict {bundle} {clips} -o {clips}/new.gif": INSIDE,
    "predict {bundle} {clips} -o {clips}/new": INSIDE,
    "predict {bundle} {clips} -o {clips}/below/new.npz": INSIDE,
    "predict {bundle} {clip} -o {clip}": SAME,
    "predict {bundle} {clip} -o {bundle}/reference.npz": "is a file of",
    "stream {bundle} {clip} -o {clip}": SAME,
    "stream {bundle} {clips} -o {clips}/new.gif": INSIDE,
    "data inspect {picture} --picture {picture}": SAME,
    "data inspect {clips} --picture {clips}/new.png": INSIDE,
    "data inspect {clip},{clips}/b.npz --picture {clip}": SAME,
    "verify {bundle} --clip {picture} --picture {picture}": SAME,
    "verify {bundle} --picture {bundle}/new.png": BUNDLE,
    "evaluate {bundle} --data {clips} -o {clips}/new.report": INSIDE,
    "evaluate {bundle} --data {clips} -o {bundle}/new": BUNDLE,
    "evaluate {bundle} --data {clips} --streaming -o {clips}/new": INSIDE,
    "export {model} -o {clips}/new.e3d --precision int8 --calibration {clips}": INSIDE,
    "export {model} -o {bundle} --overwrite --reference {bundle}/reference.npz": "contains the input",
    "import {model} -o {model} --overwrite": SAME,
    "pack {bundle} -o {bundle}/new.zip": "is inside the bundle",
    "unpack {bundle}/model.safetensors -o {bundle} --overwrite": "contains the input",
    "refit {bundle} --from {bundle} --target tensorrt": SAME,
    "build {bundle} --target tensorrt --timing-cache {bundle}/new": BUNDLE,
    "build {bundle} --target tensorrt --cache {bundle}": SAME,
    "benchmark {bundle} --picture {bundle}/new.png": BUNDLE,
    "benchmark {bundle} --baseline {picture} --picture {picture}": SAME,
    "train --data {clips} --preset tiny -o {clips}": SAME,
    "train --data {clips} --preset tiny -o {new} --samples {clips}/new": INSIDE,
    "train --data {clips}:2 --preset tiny -o {new} --parts {clips}": SAME,
}
"""Command lines, and a part of their error."""


@pytest.fixture
def names(exported: Path, tmp_path: Path) -> dict[str, Path]:
    """Return paths of a bundle, its model and clips, all copies that a test may overwrite."""
    bundle, clips, picture = tmp_path / "tiny.e3d", tmp_path / "clips", tmp_path / "x.png"
    shutil.copytree(exported / "tiny.e3d", bundle)
    (clips / "below").mkdir(parents=True)
    frames = np.random.default_rng(0).integers(0, 256, (1, 8, 16, 24, 1), np.uint8)
    for name in ("a", "b", "below/c"):
        np.savez(clips / f"{name}.npz", frames=frames)
    Image.fromarray(frames[0, 0, :, :, 0]).save(picture)
    model = bundle / "model.safetensors"
    return {
        "bundle": bundle,
        "model": model,
        "clips": clips,
        "clip": clips / "a.npz",
        "picture": picture,
        "new": tmp_path / "new",
    }


@pytest.mark.parametrize("line", PLACES)
def test_an_input_is_not_changed(line: str, names: dict[str, Path], tmp_path: Path) -> None:
    before = contents(tmp_path)
    result = e3d(*[word.format(**names) for word in line.split()], code=2)
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert PLACES[line] in result.stderr
    assert result.stderr.endswith("; choose another path\n")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("turned", [False, True])
def test_links_are_resolved(
    link: Callable[[Path, Path], None], turned: bool, names: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.npz"
    link(names["clip"], other)
    source, output = (other, names["clip"]) if turned else (names["clip"], other)
    assert SAME in e3d("predict", names["bundle"], source, "-o", output, code=2).stderr
    assert "is a file of" in e3d("predict", names["bundle"], names["clips"], "-o", other, code=2).stderr


def test_a_linked_folder_is_part_of_a_source(names: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (names["clips"] / "more").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "up").symlink_to(names["clips"])
    output = tmp_path / "store" / "new.npz"
    assert INSIDE in e3d("predict", names["bundle"], names["clips"], "-o", output, code=2).stderr


def test_generated_data_is_not_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("moving-mnist").mkdir()
    Path("moving-mnist/last.ckpt").touch()
    for options in ([], ["--data", "moving-mnist:2"]):
        assert "holds a run already" in e3d("train", "-o", "moving-mnist", "--preset", "tiny", *options, code=2).stderr


@pytest.mark.parametrize("output", [".cache/new.npz", ".new.npz", "masks/new.npz", "__MACOSX/new.npz"])
def test_an_output_that_is_not_read_may_be_among_clips(output: str, names: dict[str, Path]) -> None:
    (names["clips"] / "masks").mkdir()
    shutil.copy(names["clip"], names["clips"] / "masks" / "a.npz")
    place = names["clips"] / output
    place.parent.mkdir(exist_ok=True)
    check_apart(place, names["clips"])
    with pytest.raises(ConfigError, match=INSIDE):
        check_apart(names["clips"] / "below" / "more" / "new.npz", names["clips"])
    with pytest.raises(ConfigError, match=INSIDE):
        check_apart(names["clips"] / "masks" / "new.npz", names["clips"] / "masks")
    (names["bundle"] / ".cache").mkdir()
    with pytest.raises(ConfigError, match=BUNDLE):
        check_apart(names["bundle"] / ".cache" / "new.npz", names["bundle"])


def test_an_output_that_is_not_a_clip_may_be_among_clips(
    names: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(names["clips"])
    e3d("data", "inspect", ".", "--image-size", "16x24", "--length", 4, "--picture", "sheet.pic", "--json")
    assert Path("sheet.pic").is_file()
    e3d("predict", names["bundle"], "a.npz", "-o", "new.npz", "--context", 4, "--horizon", 2)
    assert Path("new.npz").is_file()
