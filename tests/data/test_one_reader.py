"""Every command reads the same files."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from e3d_deploy.config import ModelConfig
from e3d_deploy.data.clips import read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.kth import STRIDES
from e3d_deploy.data.rate import Selection
from e3d_deploy.data.sources import open_source
from e3d_deploy.data.splits import Split
from e3d_deploy.errors import ClipError, ConfigError
from e3d_deploy.export.precision.drift import real_clips
from e3d_deploy.export.settings import reference_clip
from tests.data.test_data import write_video
from tests.tools import e3d

SIZE = (16, 16)
FORM = Form(image_size=SIZE, channels=1)
CODED = 20  # mean gray levels between a picture and its video in a lossy codec; measured 8.7


def frames_of(number: int, length: int = 8) -> NDArray[np.uint8]:
    """Return a bright square that moves over a dark background, [T, H, W]."""
    frames = np.full((length, *SIZE), 20, np.uint8)
    for t in range(length):
        frames[t, t : t + 6, number : number + 6] = 230
    return frames


def write_as(path: Path, frames: NDArray[np.uint8], codec: str, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack([frame] * 3, -1), "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.3gp", "mpeg4", {}),
        ("a.MTS", "mpeg2video", {"format": "mpegts"}),
        ("a.m2ts", "mpeg2video", {"format": "mpegts"}),
        ("a.y4m", "wrapped_avframe", {"format": "yuv4mpegpipe"}),
    ],
)
def test_videos_of_cameras_are_found_in_folders(tmp_path: Path, name: str, codec: str, options: dict[str, Any]) -> None:
    path = write_as(tmp_path / name, frames_of(3), codec, **options)
    for source in (path, tmp_path):
        (clip,) = read_clips(source, FORM).clips
        assert np.abs(clip[:][..., 0].astype(int) - frames_of(3)).mean() < CODED
    assert len(open_source(str(tmp_path), FORM, split="train", length=4).clips) == 1


def test_a_folder_of_videos_is_a_reference_and_calibrates(tmp_path: Path) -> None:
    for number, length in enumerate((3, 8, 20)):
        write_video(tmp_path / f"{number}.mp4", np.repeat(frames_of(number, 10), 2, axis=0)[:length])
    reference = reference_clip(FORM, 4, tmp_path)
    assert reference.shape == (4, 1, *SIZE)
    windows = real_clips(FORM, 4, tmp_path, reference)
    assert len(windows.calibrate) + len(windows.measure) - 2 == 7  # 2 of the second video, 5 of the third
    with pytest.raises(ClipError, match="no clip has 40 frames, the longest of 3 has 20"):
        reference_clip(FORM, 40, tmp_path)


def test_clips_of_different_lengths_are_read_up_to_the_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, length in enumerate((3, 5, 8)):
        np.save(tmp_path / f"{number}.npy", frames_of(number, length)[..., None])
    found = read_clips(tmp_path, FORM, most=6, least=4)
    assert [len(clip) for clip in found.clips] == [5, 6]
    assert found.frames.shape == (2, 5, *SIZE, 1)
    assert [Path(name.split(",")[0]).name for name in found.names] == ["1.npy", "2.npy"]
    assert "1 of 3 clips have fewer than 4 frames and are skipped" in caplog.text


def test_videos_are_decoded_only_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from e3d_deploy.data import play as playing

    taken = []
    original = playing.play_video

    def counting(*arguments: Any, **options: Any) -> Any:
        video = original(*arguments, **options)
        return dataclasses.replace(video, pictures=(taken.append(1) or one for one in video.pictures))

    monkeypatch.setattr(playing, "play_video", counting)
    write_video(tmp_path / "a.mp4", np.concatenate([frames_of(0)] * 5))
    assert len(read_clips(tmp_path / "a.mp4", FORM, most=4).clips[0]) == 4
    assert len(taken) <= 5


@pytest.mark.parametrize("flat", [True, False])
def test_kth_is_read_as_published(tmp_path: Path, flat: bool) -> None:
    for number, person in enumerate((1, 2, 16, 17, 25)):
        for length, category in ((8, "boxing"), (9, "handclapping")):
            folder = tmp_path if flat else tmp_path / category
            write_as(folder / f"person{person:02}_{category}_d1_uncomp.avi", frames_of(number, length), "mpeg4")
    for split, persons in (("train", 3), ("valid", 2), ("test", 2)):
        source = open_source(str(tmp_path), FORM, split=split, length=4)  # type: ignore[arg-type]
        assert (len(source.clips), source.held_out) == (2 * persons, True)
    assert len(read_clips(tmp_path, FORM).clips) == 10


def test_kth_next_to_other_clips_is_split_by_person(tmp_path: Path) -> None:
    for person in (1, 2, 17):
        name = f"person{person:02}_boxing_d1_uncomp.npy"
        np.save(tmp_path / name, frames_of(person % 9))
    np.save(tmp_path / "demo.npy", frames_of(0))
    sources = [open_source(str(tmp_path), FORM, split=split, length=4) for split in get_args(Split)]
    assert [(len(source.clips), source.held_out) for source in sources] == [(2, True), (1, True), (1, True)]
    said = f"{tmp_path}: skipped clips that are not KTH videos, which are split by person: demo.npy"
    assert said in sources[0].remarks
    for number in range(2):
        np.save(tmp_path / f"other{number}.npy", frames_of(3 + number))
    with pytest.raises(ClipError, match=r"and other clips \(demo.npy, other0.npy, other1.npy\); give each kind"):
        open_source(str(tmp_path), FORM, split="train", length=4)


@pytest.mark.parametrize("categories", [("walking", "boxing", "running"), tuple(STRIDES)])
def test_persons_with_other_names_are_not_kth(categories: tuple[str, ...], tmp_path: Path) -> None:
    for number, category in enumerate(categories):
        (tmp_path / category / f"person{number + 1:02}" / "x").mkdir(parents=True)
        np.save(tmp_path / category / f"person{number + 1:02}" / "x" / "0.npy", frames_of(number))
    assert len(read_clips(tmp_path, FORM).clips) == len(categories)
    source = open_source(str(tmp_path), FORM, split="train", length=4)
    assert source.kind == "array"


def test_kth_as_pictures_is_read_by_every_reader(tmp_path: Path) -> None:
    from e3d_deploy.data.storage import Clip
    from tests.data.test_sources import KTH

    def contents(clips: Any) -> set[bytes]:
        return {clip[:1].tobytes() for clip in clips}

    sources: list[Clip] = []
    for split in ("train", "test"):
        sources += open_source(str(KTH), FORM, split=split, length=6).clips  # type: ignore[arg-type]
    assert contents(sources) <= contents(read_clips(KTH, FORM).clips)


def test_arrays_in_other_layouts_are_read_by_every_reader(tmp_path: Path) -> None:
    clips = np.stack([frames_of(number) for number in range(5)])  # [N, T, H, W]
    np.save(tmp_path / "mnist_test_seq.npy", clips.swapaxes(0, 1))
    with (tmp_path / "CLIPS.NPY").open("wb") as file:
        np.save(file, clips[..., None])
    places = np.array([[[8 * n, 4] for n in range(5)], [[8 * n + 4, 4] for n in range(5)]], np.int32)
    np.savez(
        tmp_path / "original.npz",
        clips=places,
        dims=np.array([[1, *SIZE]], np.int32),
        input_raw_data=(clips.reshape(-1, 1, *SIZE) / 255).astype(np.float32),
    )
    for name in ("mnist_test_seq.npy", "CLIPS.NPY", "original.npz"):
        frames = read_clips(tmp_path / name, FORM).frames[..., 0]
        frames = frames if frames.dtype == np.uint8 else (255 * frames).round()
        np.testing.assert_array_equal(frames, clips, err_msg=name)


# Commands


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from e3d_deploy import checkpoint
    from e3d_deploy.model import E3DLSTM

    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    checkpoint.save(E3DLSTM(ModelConfig(image_size=SIZE, channels=1, patch_size=4, hidden=(2,))), path)
    return path


def test_predict_reads_each_clip_of_a_folder(model: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for number, length in enumerate((2, 4, 8)):
        write_video(tmp_path / "videos" / f"{number}.mp4", frames_of(number, length))
    out = tmp_path / "out.npz"
    result = e3d("predict", model, tmp_path / "videos", "--context", 4, "--horizon", 1, "-o", out)
    assert "1 of 3 clips have fewer than 4 frames and are skipped" in result.stderr
    with np.load(out) as arrays:
        assert next(iter(arrays.values())).shape[:2] == (2, 1)


def test_layout_is_an_option_of_every_reader(model: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 5, *SIZE), np.uint8)
    path, size = tmp_path / "noise.npy", ["--image-size", "16x16", "--length", 4]
    np.save(path, noise)
    assert "give --layout" in e3d("data", "inspect", path, *size, code=2).stderr
    found = json.loads(e3d("data", "inspect", path, *size, "--layout", "bthw", "--json").stdout)
    assert found["layouts"] == ["NTHW"]
    out = tmp_path / "out.npz"
    assert "give --layout" in e3d("predict", model, path, "--context", 4, "-o", out, code=2).stderr
    e3d("predict", model, path, "--context", 4, "--horizon", 1, "--layout", "TNHW", "-o", out)
    with np.load(out) as arrays:
        assert next(iter(arrays.values())).shape[0] == 5
    options = ["--data", path, "--context", 2, "--horizon", 2, "--layout", "NTHW"]
    e3d("evaluate", model, *options, "--most", 1, "--json")
    assert "expected one of THW" in e3d("evaluate", model, *options[:-1], "X", code=2).stderr


@pytest.mark.parametrize("command", [["predict", "-o", "out.npz"], ["stream"]])
def test_a_path_that_does_not_exist_is_a_wrong_option(model: Path, command: list[str], tmp_path: Path) -> None:
    assert "absent: no such" in e3d(command[0], model, tmp_path / "absent", *command[1:], code=2).stderr


def test_an_array_cannot_be_played(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", frames_of(0)[..., None])
    message = "arrays cannot be played; give a video file or a folder of pictures"
    assert message in e3d("stream", model, tmp_path / "clip.npy", code=2).stderr


def test_kth_as_pictures_is_thinned(caplog: pytest.LogCaptureFixture) -> None:
    from tests.data.test_sources import KTH

    whole, half = (read_clips(KTH, FORM, selection=Selection(every=every)) for every in (None, 2))
    np.testing.assert_array_equal(half.clips[0][:], whole.clips[0][:][::2])
    with pytest.raises(ConfigError, match="has no known frame rate, which --resample 5 needs; give --every"):
        read_clips(KTH, FORM, selection=Selection(resample=5))


def test_the_packages_own_clip_is_read_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The clip is neither square nor gray."""
    form = Form(image_size=(16, 16), channels=3)
    reference_clip(form, 4, None)
    real_clips(form, 4, None, np.zeros((4, 3, 16, 16), np.float32))
    assert caplog.messages == []


def test_an_empty_name_is_refused(model: Path) -> None:
    for arguments in (["data", "inspect", ""], ["evaluate", model, "--data", ""]):
        assert "got an empty name, expected a file or folder" in e3d(*arguments, code=2).stderr


def test_inspect_says_a_remark_once_and_suggests_its_own_options(tmp_path: Path) -> None:
    clips = np.random.default_rng(0).integers(0, 20, (4, 8, *SIZE), np.uint8)
    np.save(tmp_path / "dark.npy", clips)
    options = ["--image-size", "16x16", "--length", 4, "--layout", "NTHW", "--skip-bad"]
    result = e3d("data", "inspect", tmp_path / "dark.npy", *options)
    assert "remark: " in result.stdout
    assert (result.stdout + result.stderr).count("less than a tenth of the range") == 1
    assert re.search(r"e3d train .* --layout NTHW --skip-bad", result.stdout + result.stderr)
