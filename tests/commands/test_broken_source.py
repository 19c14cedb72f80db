"""Truncated videos: every command ends with one error and keeps its results for the frames before."""

from pathlib import Path

from e3d_deploy.data.clips import read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.errors import SourceLost
from tests.data.test_data import gray_levels, write_video
from tests.tools import e3d

COUNT = 40
FORM = Form(image_size=(16, 24), channels=1)


def broken(path: Path) -> Path:
    """Write a truncated video."""
    write_video(path, gray_levels(FORM.image_size, [6 * number for number in range(COUNT)]))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    return path


def test_every_command_ends_with_the_error_of_the_source(exported: Path, tmp_path: Path) -> None:
    path = broken(tmp_path / "cut.mkv")
    bundle, size = exported / "tiny.e3d", ("--image-size", "16x24", "--patch-size", 8)
    for arguments in (
        ("predict", bundle, path, "-o", tmp_path / "o.npz"),
        ("stream", bundle, path, "--horizon", 2),
        ("train", "--data", path, *size, "--context", 2, "--horizon", 2, "-o", tmp_path / "run"),
        ("data", "inspect", path, "--image-size", "16x24", "--length", 4),
    ):
        said = e3d(*arguments, code=SourceLost.exit_code).stderr
        assert "broke off after" in said.splitlines()[-1]
    assert {one.name for one in tmp_path.iterdir()} == {"cut.mkv"}


def test_results_for_the_frames_before_are_kept(exported: Path, tmp_path: Path) -> None:
    path = broken(tmp_path / "cut.mkv")
    output = tmp_path / "kept.mp4"
    shown = e3d("stream", exported / "tiny.e3d", path, "--horizon", 2, "-o", output, code=SourceLost.exit_code)
    assert "model p50" in shown.stdout
    frames = read_clips(output, Form(image_size=(64, 192), channels=1)).frames[0]
    assert 0 < len(frames) < COUNT
