"""Order of pictures and clips by their names."""

import re
from pathlib import Path

import pytest

from e3d_deploy.data.order import in_order


def ordered(names: list[str]) -> list[str]:
    return [file.name for file in in_order(Path(name) for name in sorted(names)).files]


@pytest.mark.parametrize(
    "names",
    [
        ["frame_1.png", "frame_2.png", "frame_10.png"],
        ["IMG_1.png", "img_2.png", "Img_9.PNG", "img_10.png"],
        ["f_0.5.png", "f_1.25.png", "f_1.5.png", "f_9.75.png", "f_10.25.png"],
        ["f_0.5.png", "f_1.png", "f_1.25.png", "f_2.png", "f_10.png"],
        ["clip.1.png", "clip.2.png", "clip.10.png"],
        ["1.1.png", "1.2.png", "1.9.png", "1.10.png", "1.11.png"],
        ["t_-10.png", "t_-5.png", "t_0.png", "t_5.png", "t_10.png"],
        ["-1.5.png", "-1.25.png", "0.png", "0.5.png"],
        ["f-1.png", "f0.png", "f1.png"],
        ["frame-1.png", "frame-2.png", "frame-10.png"],
        ["2024-05-01T12.30.09.png", "2024-05-01T12.30.10.png", "2024-12-01T01.00.00.png"],
        ["1714567890.25.jpg", "1714567890.5.jpg", "1714567891.125.jpg"],
        ["a1.2.3.png", "a1.2.10.png", "a1.10.1.png"],
        ["09.png", "0a.png", "0f.png", "10.png", "1a.png"],
        ["left_9.png", "left_10.png", "right_9.png", "right_10.png"],
        ["a.png", "a0.png", "a1.png"],
        ["v1.5", "v1.25"][::-1],
        ["shot 9.05.01 AM.png", "shot 11.59.59 AM.png", "shot 12.59.00 PM.png", "shot 1.05.00 PM.png"],
        ["at 12.59 am.png", "at 1.05 am.png", "at 9.05\u202fPM.png"],
        ["cam 11-05 AM.png", "cam 12-59 PM.png", "cam 1-05 PM.png"],
        ["2024-05-01 1.05 p.m..png", "2024-05-02 9.05 a.m..png", "2024-05-02 10.00 a.m..png"],
        ["x_0905AM.png", "x_0105PM.png"],
        ["2024_05_01_09_05_01_AM.png", "2024_05_01_01_05_01_PM.png"],
        ["2024-05-01 09 05 01 AM.png", "2024-05-01 01 05 01 PM.png"],
        ["9.05.01.250 AM.png", "9.05.01.500 AM.png", "1.05.01.125 PM.png"],
        ["31122023235959.png", "01012024000001.png"],
        ["30 Apr.png", "1 May.png", "2 May.png"],
        ["1e-05.png", "0.0001.png", "0.5.png"],
        ["t_\N{MINUS SIGN}10.png", "t_\N{MINUS SIGN}5.png", "t_0.png"],
        ["a998.png", "a999.png", "a000.png", "a001.png"],
        ["999.png", "1,000.png", "1,001.png"],
        ["30-04-2024.png", "01-05-2024.png"],
        ["30.04.2024_10.00.png", "01.05.2024_09.00.png"],
        ["12_31_2023.png", "01_01_2024.png"],
        ["31122023.png", "01012024.png"],
        ["30-Apr-2024.png", "01-May-2024.png"],
        ["Apr 30, 2024.png", "May 1, 2024.png"],
        ["January_1.png", "January_10.png", "Feb_1.png"],
        ["20231231_1.png", "20240101_1.png"],
        ["8.png", "9.png", "a.png", "b.png", "c.png", "d.png", "e.png", "f.png", "10.png"],
        ["0xF.png", "0x1f.png", "0x2F.png"],
        ["t_1e-3.png", "t_2e-3.png", "t_1e-2.png", "t_1e0.png"],
        ["lr9.00e+00.png", "lr1.00e+01.png"],
        ["f_0,5.png", "f_1,25.png", "f_1,5.png"],
        ["t-5.png", "t+5.png", "t+10.png"],
        ["frame (1).png", "frame (2).png", "frame (10).png"],
        ["IMG_9998.JPG", "IMG_9999.jpg", "IMG_0001.JPG", "IMG_0002.jpg"],
        ["DSC09998.JPG", "DSC09999.JPG", "DSC00001.JPG"],
        ["2024-10-27T02-30-00+0200.png", "2024-10-27T02-10-00+0100.png"],
        ["x_20241103T013000.5-0400.png", "x_20241103T011000.5-0500.png"],
        ["2024-10-27T12-00-00-0000.png", "2024-10-27T12-00-00-0001.png", "2024-10-27T12-00-01-0000.png"],
    ],
)
def test_files_are_in_the_intended_order_of_their_names(names: list[str]) -> None:
    assert ordered(names) == names


@pytest.mark.parametrize(
    ("names", "remark"),
    [
        (["frame_9.png", "frame_a.png", "frame_10.png"], "names share no pattern, .* frame_9.png comes before"),
        (["f_1.25.png", "f_1.5.png"], "read as decimals: f_1.25.png comes before f_1.5.png"),
        (["a1.2.9.png", "a1.2.10.png"], "several points are read as whole numbers: a1.2.9.png comes before a1.2.10"),
        (["IMG_9999.png", "IMG_0001.png"], "the counter seems to start again at 0: IMG_0001.png comes last"),
        (["a_1.png", "b_2.png", "a_3.png"], "words decide before numbers: a_3.png comes before b_2.png"),
        (["01-02-2024.png", "02-01-2024.png"], "dates such as 01-02-2024 are read day first"),
        (["left_1.png", "left_2.png", "right_1.png"], "words decide before numbers: left_2.png comes before right_1"),
        (["30.04.24.png", "01.05.24.png"], "numbers such as 30.04.24 are not read as day, month and year"),
        (["at 9.05 AM.png", "at 1.05 PM.png", "at.png"], "AM and PM are ignored"),
        (["05-01-09-05 AM.png", "05-01-01-05 PM.png"], "AM and PM are ignored"),
        (["t_1e3.png", "t_2e3.png", "t_1e4.png"], "numbers such as 1e3 are not read as powers of ten"),
        (["1.jpg", "1.png", "2.png"], "1.jpg and 1.png may be the same picture"),
        (["8.png", "f.png", "10.png"], "names share no pattern"),
        (["one.png", "two.png", "three.png"], "names without numbers are sorted as text: one.png comes first"),
        (["before.png", "after.png"], "names without numbers"),
        (
            ["00-00.png", "23-58.png", "23-59.png"],
            "times without a date are read as times of one day: 00-00 comes before 23-59",
        ),
        (["cam 000110.png", "cam 235900.png"], "of one day: 000110 comes before 235900"),
        (["11.59 PM.png", "12.00 AM.png"], "of one day: 00:00:00 comes before 23:59:00"),
        (["300124.png", "310124.png", "010224.png"], "numbers such as 300124 are not read as day, month and year"),
        (["998.png", "999.png", "1.000.png"], "numbers with a point are read as decimals: 1.000.png comes before 998"),
        (["1.png", "2.png", "999.png", "1.000.png"], "read as decimals: 1.000.png comes before 2.png"),
        (
            ["first_v2.png", "second_v2.png", "third_v2.png"],
            "names with equal numbers are sorted as text: first_v2",
        ),
        (["janvier_2024.png", "février_2024.png"], "names with equal numbers .*: février_2024.png comes first"),
        (["1. Januar.png", "1. März.png", "2. Februar.png"], "names share no pattern"),
        (["一.png", "二.png", "三.png"], "names without numbers are sorted as text: 一.png comes first"),
        (["f¹.png", "f².png", "f³.png"], "names without numbers"),
        (["0cc175b9c0f1b6a8.png", "d41d8cd98f00b204.png"], "names look like hashes, .* 0cc175b9c0f1b6a8.png comes"),
        (["f_2d0134ed.png", "f_5ba93c9d.png", "f_5d1be7e9.png"], "names look like hashes"),
        (["3b5f-26.png", "b8a7d-7.png", "d08ex.png", "e65a-z.png"], "names share no pattern"),
        (["900ms.png", "1s.png"], "units after numbers are ignored: 1s.png comes first"),
        (["59min.png", "1h.png"], "units after numbers"),
        (["kw52_2023.png", "kw1_2024.png"], "years that follow other numbers do not decide the order: kw1_2024"),
        (
            ["LC08_L1TP_193027_20240109_02_T1.tif", "LC09_L1TP_193027_20240101_02_T1.tif"],
            "dates that follow other words or numbers do not decide the order: LC08_L1TP_193027_20240109",
        ),
        (
            ["S2A_MSIL1C_20240111T103421_N0510.tif", "S2B_MSIL1C_20240106T103329_N0510.tif"],
            "dates .* do not decide the order: S2A_MSIL1C_20240111",
        ),
        (["run2_2024-05-01.png", "run10_2024-04-01.png"], "dates .* do not decide the order: run2_2024-05-01"),
        (
            [f"f{time:02}.png" for time in (*range(9), *range(11, 20))],
            "numbers have a gap between f08.png and f11.png, and windows ignore gaps",
        ),
        (
            [f"{time}.png" for time in range(30) if time % 10 != 1],
            "numbers have 3 gaps, the first between 0.png and 2.png, and windows ignore gaps",
        ),
        ([f"{time * 5}.png" for time in range(30) if time != 7], "a gap between 30.png and 40.png"),
        (
            [f"{time:02}_{time // 3}.png" for time in range(30) if time != 7],
            "a gap between 06_2.png and 08_2.png",
        ),
        ([f"f-{9 - time}.png" for time in range(9) if time != 2], "a gap between f-6.png and f-8.png"),
        (
            [f"{time:04}.png" for time in (*range(60), *range(100, 130), 150)],
            "a gap between 0129.png and 0150.png",
        ),
    ],
)
def test_an_ambiguous_order_is_remarked(names: list[str], remark: str) -> None:
    found = in_order(map(Path, names)).remark
    assert found is not None
    assert re.search(remark, found)


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png", "10.png"],
        ["1.50.png", "1.25.png"],
        ["1.1.png", "1.10.png"],
        ["0a", "09"],
        ["x"],
        [],
        ["9pm.png", "12pm.png"],
        ["01-02-2024.png", "02-02-2024.png"],
        ["0001.png", "4500.png", "9100.png", "9999.png"],
        ["f_1,125.png", "f_1,250.png"],
        ["09.05.00.png", "09.06.00.png", "10.01.00.png"],
        ["24.04.30.png", "24.05.01.png"],
        ["1.png", "2.png", "40.png"],
        ["2024-05-01_00-00.png", "2024-05-01_23-59.png"],
        [f"{hour:02}-30.png" for hour in range(24)],
        ["240105.png", "240205.png", "240305.png"],
        ["999.125.png", "1000.125.png"],
        ["0.125.png", "1.png"],
        ["1.125.png", "1.250.png"],
        ["a.png", "b.png", "c.png"],
        ["f_a.png", "f_b.png"],
        ["a_v2.png", "b_v2.png", "c_v2.png"],
        ["x0aa.png", "x0ab.png", "x0ac.png"],
        ["1_left.png", "2_right.png", "3_up.png"],
        ["v2_first_1.png", "v2_second_2.png", "v2_third_3.png"],
        [f"{time**2}.png" for time in range(9)],
        [f"{time * 1001 // 30}.png" for time in range(90)],
        [f"{time:04}.png" for time in (*range(1230, 1260), *range(1300, 1360))],
        [f"LC0{8 + day % 2}_193027_202401{day:02}.png" for day in (2, 4, 7, 9)],
        ["run1_seed2042_0.png", "run2_seed1999_0.png"],
        ["cam1_1920x1080_5.png", "cam1_1920x1080_7.png"],
        [f"2024{month:02}{day:02}.png" for month in (1, 2) for day in range(1, 32 - month)],
        [f"2401{day:02}.png" for day in range(1, 32)] + ["240201.png"],
        [f"{year}{month:02}.png" for year in (2019, 2020) for month in range(1, 13)],
        [f"{minute}-{second:02}.png" for minute in range(3) for second in range(60)],
    ],
)
def test_a_clear_order_is_not_remarked(names: list[str]) -> None:
    assert in_order(map(Path, names)).remark is None
