"""Frames of two series in one folder are refused; names of real data sets are accepted."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from e3d_deploy.data.clips import play, read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.data.series import check_one_series
from e3d_deploy.data.sources import open_source
from e3d_deploy.errors import ClipError

TIMES = range(8, 13)
"""Counters with different numbers of digits."""


@pytest.mark.parametrize(
    "kinds",
    [
        ("frame-{:06}.color.png", "frame-{:06}.depth.png"),
        ("{:04}_L.png", "{:04}_R.png"),
        ("{}.jpg", "{}.png"),
        ("{:03}.tif", "{:03}.bmp"),
        ("{:04}.png", "{:04}_thumb.png"),
        ("{:04}.jpg", "{:04}-mask.png"),
        ("{}.png", "{} mask.png"),
        ("img_{}.png", "gt_{}.png"),
        ("left_{}.png", "right_{}.png"),
        ("aachen_000000_{:06}_gtFine_color.png", "aachen_000000_{:06}_gtFine_labelIds.png"),
        ("{:04}.png", "{:04}_mask_1.png"),
        ("{:04}.png", "{:04}.gt.png"),
        ("DSC_{:04}.JPG", "DSC_{:04}-edited.jpg"),
        ("f{}.png", "f{} (1).png"),
        ("f{}.png", "Copy of f{}.png"),
        ("{:04}a.png", "{:04}b.png"),
        ("{}.png", "{}a.png"),
        ("2024-05-01_{:03}.png", "2024-05-01_{:03}_ir.png"),
        ("{}_rgb.png", "{}_ir.png", "{}_uv.png"),
        ("cam0_{:04}.png", "cam1_{:04}.png"),
        ("{}-Camera 1.jpg", "{}-Camera 2.jpg"),
        ("{}.png", "{}_mask_1.png", "{}_mask_2.png"),
        ("view_{:02}.png", "view_{:02}_ir.png"),
        ("exp_t{:02}_ch00.png", "exp_t{:02}_ch01.png"),
        ("t{:03}_c001.tif", "t{:03}_c002.tif"),
        ("C001T{:03}.tif", "C002T{:03}.tif"),
        ("t{:02}_z0.png", "t{:02}_z1.png", "t{:02}_z2.png"),
        ("f{:02}_ev-2.png", "f{:02}_ev0.png", "f{:02}_ev+2.png"),
        ("exp_w1_s1_t{}.tif", "exp_w1_s2_t{}.tif"),
        ("exp_w1_t{}.tif", "exp_w2_t{}.tif"),
        ("{:06}_cam000.png", "{:06}_cam001.png"),
        ("{}.png", "{:03}.png"),
    ],
)
def test_two_series_with_the_same_counters_are_refused(kinds: tuple[str, ...]) -> None:
    names = [kind.format(time) for time in TIMES for kind in kinds]
    with pytest.raises(ClipError, match=r"walk: holds frames of two series, such as .*; give each its own folder"):
        check_one_series("walk", names)


def test_copies_of_few_frames_are_named() -> None:
    frames = [f"IMG_{time}.JPG" for time in range(1000, 2000)]
    pairs = "IMG_1003.JPG and IMG_E1003.JPG, IMG_1007.JPG and IMG_E1007.JPG"
    with pytest.raises(ClipError, match=rf"may be duplicates, {pairs}; remove the copies, or move them to"):
        check_one_series("walk", ["IMG_E1003.JPG", "IMG_E1007.JPG", *frames])
    with pytest.raises(ClipError, match=r"3.png and 3b.png, 4.png and 4b.png, 5.png and 5b.png and 6 more;"):
        check_one_series("walk", [f"{time}.png" for time in range(99)] + [f"{time}b.png" for time in range(3, 12)])


def test_a_number_written_twice_is_named() -> None:
    with pytest.raises(ClipError, match=r"walk: holds frames that may be duplicates, 01.png and 1.png; remove"):
        check_one_series("walk", ["0.png", "01.png", "1.png", "2.png", "3.png"])


def test_a_series_of_half_of_the_frames_is_refused() -> None:
    names = [f"{time:02}.png" for time in range(20)] + ["03_old.png", "07_old.png", "21_old.png"]
    with pytest.raises(ClipError, match=r"03.png and 03_old.png"):
        check_one_series("walk", names)


@pytest.mark.parametrize(
    "names",
    [
        [f"{time:010}.png" for time in TIMES],
        [f"{time:03}.tif" for time in TIMES],
        [f"image_{time:04}.png" for time in TIMES],
        ["IMG_0001.JPG", "IMG_0002.jpg", "IMG_0003.jpeg", "IMG_0004.JPG"],
        [f"{time}.{'png' if time % 2 else 'jpg'}" for time in TIMES],
        [f"2024-0{month}-01_{time:03}.png" for month in (1, 2) for time in TIMES],
        [f"{month}_{time:02}.png" for month in ("Jan", "March", "sept") for time in TIMES],
        [f"{day}-{time}.png" for day in ("Mon", "Tuesday", "wed") for time in TIMES],
        [f"{time}-05 {half}.png" for half in ("AM", "PM") for time in TIMES],
        [f"12.30.{time:02}{part}.png" for time in TIMES for part in ("", ".5")],
        [f"{time}{part}.png" for time in TIMES for part in ("", ".5")],
        [f"1714567890.{time}.png" for time in TIMES],
        [f"t_{time}.png" for time in range(-9, 10)],
        [f"{time:x}.png" for time in range(300)],
        [f"{time:02x}.png" for time in range(28)],
        [f"f{time:04x}.png" for time in range(0, 3000, 7)],
        [hashlib.md5(b"%d" % time).hexdigest() + ".png" for time in range(300)],
        [hashlib.md5(b"%d" % time).hexdigest()[:4] + ".png" for time in range(300)],
        [hashlib.sha1(b"%d" % time).hexdigest()[:8] + ".png" for time in range(300)],
        [f"view_{time}.png" for time in TIMES],
        [f"camera_2024-05-0{day}_{time:03}.png" for day in (1, 2) for time in TIMES],
        [f"cam1_{time:04}.png" for time in TIMES],
        [f"t{time:03}_c{time % 2}.png" for time in TIMES],
        [f"t00_z{place}.png" for place in TIMES],
        [f"{minute}_s{second:02}.png" for minute in TIMES for second in range(60)],
        [f"img_{time:04}_{1500 + 33 * time}.png" for time in range(30)],
        [f"frame_{time:04}_of_0100.png" for time in TIMES],
        [f"2024-01-01_12-00-00_{time:04}.png" for time in TIMES],
        [f"2024-01-01_12-00-{second:02}_{time:04}.png" for second in TIMES for time in range(4)],
        [f"IMG_20240101_1200{second:02}_{time:03}.jpg" for second in TIMES for time in range(1, 4)],
        [f"IMG_20240101_1200{second:02}_BURST{time:03}.jpg" for second in TIMES for time in range(1, 4)],
        [f"20240{month}01_{hour:02}00.tif" for month in (1, 2) for hour in range(24)],
        [f"2018_{day:03}_{hour:02}.png" for day in TIMES for hour in range(24)],
        [f"image_{time:04}.png" for time in range(257, 300)],
        [f"v_X_g01_c01_{time:04}.jpg" for time in TIMES],
        [f"{time:06}.jpg" for time in range(1, 40)],
        [f"{time:05}.jpg" for time in range(40)],
        [f"{time}.png" for time in range(30)],
        [f"{second:02}_{part:03}.png" for second in TIMES for part in range(0, 1000, 40)],
        [f"{33367 * time // 1_000_000:02}_{33367 * time // 1000 % 1000:03}.png" for time in range(100)],
        [f"{(time * 100 + time * 7 % 13) // 1000}_{(time * 100 + time * 7 % 13) % 1000:03}.png" for time in range(99)],
        [f"12_{34 + 33 * time:03}.png" for time in range(10)],
        [f"{second}_{part}.png" for second in TIMES for part in range(0, 1000, 40)],
        [f"{second}_{part:03}.png" for second in TIMES for part in (0, 500)],
        [f"{second}_{part}.png" for second in TIMES for part in (0, 5)],
        [f"1714567{second}_{part:03}.png" for second in (890, 891, 892) for part in (1, 2, 3)],
        [f"{minute:02}-{second:02}.png" for minute in TIMES for second in range(60)],
        [f"12-{minute:02}-{second:02}.png" for minute in TIMES for second in range(60)],
        [f"{minute}m{second:02}s.png" for minute in TIMES for second in range(30)],
        [f"{day:03}_{hour:02}.png" for day in TIMES for hour in range(0, 24, 6)],
        [f"2401{day:02}_{hour:02}.png" for day in TIMES for hour in range(24)],
        [f"{day:02}0124_{hour:02}.png" for day in TIMES for hour in range(24)],
        [f"20180{day:02}_{hour:02}00.png" for day in TIMES for hour in range(24)],
        [f"00{day:02}_{hour:02}{minute:02}.png" for day in TIMES for hour in range(24) for minute in (0, 30)],
        ["a.png", "b.png", "c.png"],
        [],
    ],
)
def test_names_of_one_clip_are_not_remarked(names: list[str]) -> None:
    assert check_one_series("walk", names) is None


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            [f"{time:06}_{pair}.png" for time in range(12) for pair in (10, 11)],
            "series, such as 000000_10.png and 000000_11.png, or of several "
            "sequences, such as 000000_10.png and 000001_10.png",
        ),
        (["0_0.png", "0_1.png", "1_0.png", "1_1.png"], "series, such as 0_0.png and 0_1.png, or of several .*"),
        ([f"{row:03}_{time:03}.png" for row in range(3) for time in range(7)], "series, such as .*"),
        (
            [f"{time:06}_{pair}.png" for time in range(12) for pair in (0, 1)][:-1],
            "sequences, such as 000000_0.png and .*",
        ),
        (
            [f"aachen_{scene:06}_{time:06}_leftImg8bit.png" for scene in (0, 1) for time in range(9 + scene)],
            "sequences, such as aachen_000000_000000_leftImg8bit.png and aachen_000001_000000_leftImg8bit.png",
        ),
        ([f"{scene:05}_{time:02}.png" for scene in range(4) for time in range(30)], "series, such as .*"),
        (
            [f"video{film}_frame{time}.png" for film in TIMES for time in range(20)],
            "sequences, such as video8_frame0.png.*",
        ),
        ([f"2011_09_26_drive_{drive}_{time:010}.png" for drive in (1, 2) for time in range(9)], "series, such as .*"),
    ],
)
def test_sequences_and_grids_of_numbers_are_refused(names: list[str], reason: str) -> None:
    with pytest.raises(ClipError, match=rf"walk: holds frames of several {reason}; give each its own folder"):
        check_one_series("walk", names)


@pytest.mark.parametrize(
    ("names", "turn"),
    [
        ([f"v_X_g{group:02}_c{clip:02}.png" for group in TIMES for clip in range(1, 5)], "v_X_g09_c01"),
        ([f"{second:02}_{part:02}.png" for second in TIMES for part in range(30)], "09_00"),
        ([f"{one}_{two}.png" for one in TIMES for two in range(10)], "9_0"),
        ([f"1200{second:02}_{time:03}.png" for second in TIMES for time in range(1, 4)], "120009_001"),
        ([f"01{day:02}_{hour:02}00.png" for day in TIMES for hour in range(9, 17)], "0109_0900"),
        ([f"01{day:02}_{time:03}.png" for day in TIMES for time in range(3)], "0109_000"),
        ([f"12{minute:02}_{second:02}.png" for minute in TIMES for second in range(60)], "1209_00"),
        ([f"24-01-{day:02}_{time:03}.png" for day in TIMES for time in range(3)], "24-01-09_000"),
        ([f"day{day}_{time}.png" for day in TIMES for time in range(3)], "day9_0"),
        ([f"12-00-{second:02}_{time:03}.png" for second in TIMES for time in range(1, 4)], "12-00-09_001"),
        ([f"20240101_1200{take}_frame{time}.png" for take in (10, 20) for time in range(5)], "20240101_120020_frame0"),
    ],
)
def test_numbers_that_start_again_and_may_be_times_are_remarked(names: list[str], turn: str) -> None:
    remark = f"the last number starts again at {turn}.png, but all frames are read as one clip"
    assert check_one_series("walk", names) == remark


@pytest.mark.parametrize(
    ("names", "remark"),
    [
        (
            [f"frame_{time}.png" for time in TIMES] + ["img_13.png", "img_14.png"],
            "5 like frame_8.png, 2 like img_13.png",
        ),
        ([f"f{time}.png" for time in TIMES] + ["f9 (1).png"], "5 like f8.png, 1 like f9 (1).png"),
    ],
)
def test_other_names_among_frames_are_remarked(names: list[str], remark: str) -> None:
    assert check_one_series("walk", names) == f"files with 2 kinds of names are read as one clip: {remark}"


def test_every_reader_refuses_two_series(tmp_path: Path) -> None:
    for name in ("1_L.png", "1_R.png", "2_L.png", "2_R.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    form = Form(image_size=(8, 8), channels=1)
    for read in (
        lambda: play(tmp_path, form),
        lambda: read_clips(tmp_path, form),
        lambda: open_source(str(tmp_path), form, split="train", length=1),
    ):
        with pytest.raises(ClipError, match=r"1_L.png and 1_R.png"):
            read()
